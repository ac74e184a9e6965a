"""Label maps of objects: compact ids, boxes, layers of overlapping masks, and resampling that loses no object."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, Integer
from scipy import ndimage

from girih_data3d.resampling import Triple, axis_operator, new_shape

Slices = tuple[slice, slice, slice]
Mask = tuple[Slices, Bool[np.ndarray, "_ _ _"]]
"""Where an object lies, and its voxels there."""


def compact(labels: Integer[np.ndarray, "z y x"]) -> tuple[Int64[np.ndarray, " n"], Int32[np.ndarray, "z y x"]]:
    """Return the sorted non-zero ids, and the map with ids[k] renamed to k + 1."""
    inside = labels != 0
    values = labels[inside]
    ids = np.unique(values)
    out = np.zeros(labels.shape, np.int32)
    out[inside] = np.searchsorted(ids, values) + 1
    return ids.astype(np.int64), out


def boxes_of(instances: Integer[np.ndarray, "z y x"], count: int) -> Float64[np.ndarray, "{count} 6"]:
    """Return the voxel-edge box (z0, y0, x0, z1, y1, x1) of each of the ids 1..count; NaN where an id is absent."""
    boxes = np.full((count, 6), np.nan)
    for row, found in enumerate(ndimage.find_objects(instances, max_label=count) if count else ()):
        if found is not None:
            boxes[row] = [s.start for s in found] + [s.stop for s in found]
    return boxes


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
    ids, packed = compact(labels)
    owner = np.zeros(shape, np.int32)
    best, total = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    sizes = zip(labels.shape, shape, strict=True)
    operators = [axis_operator(old, new, order=1, antialias=False) for old, new in sizes]
    found = ndimage.find_objects(packed)
    for number, box in enumerate(found, start=1):
        window, share = _share(packed, number, box, operators)
        total[window] += share
        wins = share > best[window]
        best[window][wins] = share[wins]
        owner[window][wins] = number
    owner[total < 0.5 - 1e-6] = 0  # the margin absorbs the rounding of an exact half
    counts = np.bincount(owner.ravel(), minlength=len(ids) + 1)
    for row in np.flatnonzero(counts[1:] == 0).tolist():
        _keep_one_voxel(owner, counts, packed, row + 1, found[row], operators)
    return np.concatenate([[0], ids]).astype(np.int32)[owner]


def _share(
    packed: Int32[np.ndarray, "z y x"], number: int, box: Slices, operators: list[np.ndarray], margin: int = 0
) -> tuple[Slices, Float64[np.ndarray, "a b c"]]:
    """Return the output window that an object can reach, widened by `margin`, and the object's share in it."""
    share = (packed[box] == number).astype(np.float64)
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
    counts: Int64[np.ndarray, " m"],
    packed: Int32[np.ndarray, "z y x"],
    number: int,
    box: Slices,
    operators: list[np.ndarray],
) -> None:
    """Give an object that lost all its voxels the best one that may be taken; changes `owner` and `counts`."""
    margin = 1
    scale = np.array(owner.shape) / packed.shape
    inside = np.argwhere(packed[box] == number).mean(axis=0) + [s.start for s in box]
    centre = (inside + 0.5) * scale - 0.5
    while True:
        window, share = _share(packed, number, box, operators, margin)
        index = np.stack(np.meshgrid(*(np.arange(s.start, s.stop) for s in window), indexing="ij"), axis=-1)
        distance = np.linalg.norm(index - centre, axis=-1)
        for flat in np.lexsort((distance.ravel(), -share.ravel())):
            z, y, x = index.reshape(-1, 3)[flat]
            previous = owner[z, y, x]
            if previous == 0 or counts[previous] > 1:
                owner[z, y, x] = number
                counts[previous] -= 1
                counts[number] = 1
                return
        if all(s.start == 0 and s.stop == n for s, n in zip(window, owner.shape, strict=True)):
            raise ValueError(f"{len(counts) - 1} objects do not fit into the {owner.size} voxels of {owner.shape}")
        margin *= 2
