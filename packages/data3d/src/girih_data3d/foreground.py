"""A sample of the labelled voxels of a case, so that a training patch can be drawn around one without a search."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer, UInt16
from scipy import ndimage

LIMIT = 10_000
"""Most voxels of a case, shared equally between its classes."""


def sample_foreground(
    case_id: str,
    *,
    semantic: Integer[np.ndarray, "z y x"] | None,
    instances: Sequence[Integer[np.ndarray, "z y x"]],
    objects: Sequence[Mapping[str, Any]],
) -> UInt16[np.ndarray, "n 4"]:
    """Return rows (class, z, y, x), sorted, drawn with a seed made of the case's id.

    Classes are the values of the semantic labels if there are any, else the classes of the objects with a mask; those
    to ignore are left out.

    Raises:
        ValueError: an axis of more than 65536 voxels, or a class above 65535.
    """
    if semantic is not None:
        places = {value: [_places(semantic, value, box)] for value, box in _boxes(semantic)}
    else:
        places = {}
        for layer in instances:
            for number, box in _boxes(layer):
                if not objects[number - 1]["ignore"]:
                    places.setdefault(objects[number - 1]["class"], []).append(_places(layer, number, box))
    if not places:
        return np.zeros((0, 4), np.uint16)
    shape = semantic.shape if semantic is not None else instances[0].shape
    if max(shape) > 2**16 or max(places) >= 2**16:
        raise ValueError(
            f"case {case_id!r}: shape {shape}, highest class {max(places)}: wanted axes up to 65536, classes to 65535"
        )
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(case_id.encode()).digest()[:8], "little"))
    rows = []
    for value in sorted(places):
        found = np.unique(np.concatenate(places[value]))  # objects of one class may overlap
        limit = LIMIT // len(places)
        chosen = found if len(found) <= limit else np.sort(rng.choice(found, limit, replace=False))
        rows.append(np.stack([np.full(len(chosen), value), *np.unravel_index(chosen, shape)], axis=1))
    return np.concatenate(rows).astype(np.uint16)


def _boxes(labels: Integer[np.ndarray, "z y x"]) -> list[tuple[int, tuple[slice, slice, slice]]]:
    return [(value, box) for value, box in enumerate(ndimage.find_objects(labels), start=1) if box is not None]


def _places(
    labels: Integer[np.ndarray, "z y x"], value: int, box: tuple[slice, slice, slice]
) -> Int64[np.ndarray, " n"]:
    """Return the flat indices of the voxels that have a value."""
    inside = np.nonzero(labels[box] == value)
    z, y, x = (axis + side.start for axis, side in zip(inside, box, strict=True))
    flat: np.ndarray = (z * labels.shape[1] + y) * labels.shape[2] + x
    return flat
