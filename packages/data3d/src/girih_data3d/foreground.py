"""A sample of the labelled voxels of a case, so that a training patch can be drawn around one without a search."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer, UInt16
from scipy import ndimage

LIMIT = 10_000
"""Most voxels of a case, shared equally between its classes."""
Labels = Integer[np.ndarray, "z y x"]
Box = tuple[slice, slice, slice]


def sample_foreground(
    case_id: str,
    *,
    semantic: Labels | None,
    instances: Sequence[Labels],
    objects: Sequence[Mapping[str, Any]],
) -> UInt16[np.ndarray, "n 4"]:
    """Return rows (class, z, y, x), sorted, drawn with a seed made of the case's id.

    Classes are the values of the semantic labels if there are any, else the classes of the objects with a mask; those
    to ignore are left out.

    Raises:
        ValueError: an axis of more than 65536 voxels, or a class above 65535.
    """
    regions: dict[int, list[tuple[Labels, int, Box]]] = {}
    for layer in instances if semantic is None else [semantic]:
        for value, box in enumerate(ndimage.find_objects(layer), start=1):
            if box is not None and (semantic is not None or not objects[value - 1]["ignore"]):
                kind = value if semantic is not None else objects[value - 1]["class"]
                regions.setdefault(kind, []).append((layer, value, box))
    if not regions:
        return np.zeros((0, 4), np.uint16)
    shape = next(iter(regions.values()))[0][0].shape
    if max(shape) > 2**16 or max(regions) >= 2**16:
        found = f"shape {shape}, highest class {max(regions)}"
        raise ValueError(f"case {case_id!r}: {found}, wanted axes of at most 65536 voxels and classes up to 65535")
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(case_id.encode()).digest()[:8], "little"))
    rows = []
    for kind in sorted(regions):
        places = np.unravel_index(_draw(regions[kind], LIMIT // len(regions), rng), shape)
        rows.append(np.stack([np.full(len(places[0]), kind), *places], axis=1))
    return np.concatenate(rows).astype(np.uint16)


def _draw(regions: list[tuple[Labels, int, Box]], limit: int, rng: np.random.Generator) -> Int64[np.ndarray, " n"]:
    """Return the flat indices of at most `limit` voxels of regions that may overlap, sorted."""
    found = []
    for labels, value, box in regions:
        inside = np.flatnonzero(labels[box] == value)
        if len(regions) == 1:  # a tissue may fill the volume: not all of its voxels are located
            inside = _some(inside, limit, rng)
        places = np.unravel_index(inside, labels[box].shape)
        z, y, x = (place + side.start for place, side in zip(places, box, strict=True))
        found.append(np.ravel_multi_index((z, y, x), labels.shape))
    return _some(np.unique(np.concatenate(found)), limit, rng)


def _some(found: Int64[np.ndarray, " n"], limit: int, rng: np.random.Generator) -> Int64[np.ndarray, " m"]:
    return found if len(found) <= limit else np.sort(rng.choice(found, limit, replace=False))
