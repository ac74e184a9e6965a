"""Label maps of objects: windows, layers of overlapping masks, and resampling that loses no object."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int32, Integer
from scipy import ndimage

from girih_data3d.resampling import Triple, axis_operator, new_shape

Slices = tuple[slice, slice, slice]
Mask = tuple[Slices, Bool[np.ndarray, "_ _ _"]]
"""Where an object lies, and its voxels there."""
MANY_IDS = 1 << 16
"""Above this highest id the ids are renumbered first: scipy makes a list of as many windows."""


def find_windows(labels: Integer[np.ndarray, "z y x"]) -> dict[int, Slices]:
    """Return the bounding box of every id above 0, by rising id."""
    highest = int(labels.max()) if labels.size else 0
    if highest <= MANY_IDS:
        ids = range(1, highest + 1)
    else:
        inside = labels != 0
        values = labels[inside]
        ids = np.unique(values).tolist()
        labels = np.zeros(labels.shape, np.int32)
        labels[inside] = np.searchsorted(ids, values) + 1
    found = ndimage.find_objects(labels, max_label=len(ids)) if len(ids) else []
    return {number: window for number, window in zip(ids, found, strict=True) if window is not None}


def stack_masks(masks: Sequence[Mask], shape: tuple[int, int, int]) -> list[Int32[np.ndarray, "z y x"]]:
    """Draw masks into layers, mask k as k + 1, so that every one keeps all its voxels; at least one layer.

    Each goes, the largest first, into the lowest layer above all masks that it overlaps: masks that do not overlap
    share one layer, and seen from above a small object covers a large one.
    """
    layers = [np.zeros(shape, np.int32)]
    for k in sorted(range(len(masks)), key=lambda k: (-np.count_nonzero(masks[k][1]), k)):
        window, inside = masks[k]
        level = max((i + 1 for i, layer in enumerate(layers) if layer[window][inside].any()), default=0)
        if level == len(layers):
            layers.append(np.zeros(shape, np.int32))
        layers[level][window][inside] = k + 1
    return layers


def resample_instances(
    labels: Integer[np.ndarray, "z y x"], *, spacing_zyx_mm: Triple, target_zyx_mm: Triple
) -> Int32[np.ndarray, "Z Y X"]:
    """Resample a label map to another voxel size, edge-aligned as `resample`; ids stay, and none vanishes.

    Every object is interpolated linearly inside its own bounding box; an output voxel belongs to the object with the
    largest share if all objects together have at least half of it. An object that would keep no voxel keeps the one
    with its largest share (the nearest to its centre among equals) that is not the last one of another object.

    Raises:
        ValueError: a negative label, a spacing that is not positive, or fewer output voxels than objects.
    """
    if labels.size and labels.min() < 0:
        raise ValueError(f"labels: smallest value {labels.min()}, wanted 0 or more")
    shape = new_shape(labels.shape, spacing_zyx_mm, target_zyx_mm)
    if shape == labels.shape:
        return labels.astype(np.int32)
    windows = find_windows(labels)
    sizes = zip(labels.shape, shape, strict=True)
    operators = [axis_operator(old, new, order=1, antialias=False) for old, new in sizes]
    # arrays of the whole volume, but memory is touched in the objects' windows only
    owner = np.zeros(shape, np.int32)
    best, total = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    reached = {}
    for number, box in windows.items():
        window, share = _share(labels, number, box, operators)
        reached[number] = window
        total[window] += share
        wins = share > best[window]
        best[window][wins] = share[wins]
        owner[window][wins] = number
    for window in reached.values():
        owner[window][total[window] < 0.5 - 1e-6] = 0  # the margin absorbs the rounding of an exact half
    counts = {number: int(np.count_nonzero(owner[window] == number)) for number, window in reached.items()}
    for number in [number for number, count in counts.items() if not count]:
        _keep_one_voxel(owner, counts, labels, number, windows[number], operators)
    return owner


def _share(
    labels: Integer[np.ndarray, "z y x"], number: int, box: Slices, operators: list[np.ndarray], margin: int = 0
) -> tuple[Slices, Float64[np.ndarray, "a b c"]]:
    """Return the output window that an object can reach, widened by `margin`, and the object's share in it."""
    share = (labels[box] == number).astype(np.float64)
    window = []
    for axis, (old, operator) in enumerate(zip(box, operators, strict=True)):
        near = np.flatnonzero(operator[:, old].any(axis=1))
        middle = (old.start + old.stop) * len(operator) // (2 * operator.shape[1])
        low, high = (int(near[0]), int(near[-1]) + 1) if len(near) else (middle, middle + 1)
        low, high = max(0, min(low, len(operator) - 1) - margin), min(len(operator), high + margin)
        share = np.moveaxis(np.tensordot(operator[low:high, old], share, axes=(1, axis)), 0, axis)
        window.append(slice(low, high))
    return (window[0], window[1], window[2]), share


def _keep_one_voxel(
    owner: Int32[np.ndarray, "Z Y X"],
    counts: dict[int, int],
    labels: Integer[np.ndarray, "z y x"],
    number: int,
    box: Slices,
    operators: list[np.ndarray],
) -> None:
    """Give an object that lost all its voxels the best one that may be taken; changes `owner` and `counts`."""
    margin = 1
    scale = np.array(owner.shape) / labels.shape
    inside = np.argwhere(labels[box] == number).mean(axis=0) + [s.start for s in box]
    centre = (inside + 0.5) * scale - 0.5
    while True:
        window, share = _share(labels, number, box, operators, margin)
        index = np.stack(np.meshgrid(*(np.arange(s.start, s.stop) for s in window), indexing="ij"), axis=-1)
        distance = np.linalg.norm(index - centre, axis=-1)
        for flat in np.lexsort((distance.ravel(), -share.ravel())):
            z, y, x = index.reshape(-1, 3)[flat]
            previous = int(owner[z, y, x])
            if previous == 0 or counts[previous] > 1:
                owner[z, y, x] = number
                counts[number] = 1
                if previous:
                    counts[previous] -= 1
                return
        if all(s.start == 0 and s.stop == n for s, n in zip(window, owner.shape, strict=True)):
            raise ValueError(f"{len(counts)} objects do not fit into the {owner.size} voxels of {owner.shape}")
        margin *= 2
