"""The objects in one patch: their boxes, which of them count, and the voxels of those that do not."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int32
from scipy import ndimage

from girih_data3d.geometry import Triplet
from girih_data3d.objects import Objects
from girih_data3d.patch import Cut
from girih_data3d.resampling import Number

Layers = Sequence[Int32[np.ndarray, "z y x"]]
ReadLayers = Callable[[tuple[slice, slice, slice]], Layers]
"""Reads the instance layers of a part of the patch."""
ReadCaseLayers = Callable[[Triplet, Triplet], Layers]
"""Reads the instance layers of a window of the case: first voxel, size."""
ROUNDING = 1e-6
"""Voxels that a box may lose to the rounding of a turn."""


def moved_boxes(
    objects: Objects, matrix: Float64[np.ndarray, "3 3"], centre: Float64[np.ndarray, "3"], patch_zyx: Triplet
) -> Float64[np.ndarray, "n 6"]:
    """Return the objects' boxes in voxel edges of a patch, not clipped to it.

    A box becomes the hull of its eight moved corners. A sphere's is the hull of the moved ellipsoid, exactly: half of
    its extent along axis i is the norm of row i of inverse(matrix) @ diag(radii).
    """
    inverse, middle = np.linalg.inv(matrix), np.array(patch_zyx) / 2
    boxes = objects.boxes.astype(np.float64)
    at = ((boxes[:, :3] + boxes[:, 3:]) / 2 - centre) @ inverse.T + middle
    half = (boxes[:, 3:] - boxes[:, :3]) / 2 @ np.abs(inverse).T
    low, high = at - half, at + half
    at = (objects.centres_zyx - centre) @ inverse.T + middle
    half = np.sqrt(objects.radii_zyx**2 @ (inverse**2).T)
    # a sphere at the border of the scan is in both: fmax and fmin pass over the NaN of what is no sphere
    return np.concatenate([np.fmax(low, at - half), np.fmin(high, at + half)], axis=1)


def visible_shares(
    objects: Objects, moved: Float64[np.ndarray, "n 6"], cut: Cut, read: ReadCaseLayers
) -> Float64[np.ndarray, " n"]:
    """Return the share of each mask's voxels, those of the case, whose centres lie in a patch.

    A mask whose moved box lies inside is all there. Of those that the border of the patch cuts, voxels are read where
    the patch may hold some; the masks of objects to ignore are not looked at.
    """
    whole = ((moved[:, :3] >= 0) & (moved[:, 3:] <= cut.size)).all(axis=1)
    reach = np.abs(cut.matrix) @ (np.array(cut.size) / 2)
    low = np.floor(np.maximum(cut.centre - reach, objects.boxes[:, :3])).astype(int)
    high = np.ceil(np.minimum(cut.centre + reach, objects.boxes[:, 3:])).astype(int)
    shares = np.where(whole, 1.0, 0.0)
    near = (moved[:, 3:] > 0).all(axis=1) & (moved[:, :3] < cut.size).all(axis=1) & (low < high).all(axis=1)
    for row in np.flatnonzero(near & ~whole & ~objects.ignore & (objects.voxels > 0)).tolist():
        start, stop = low[row].tolist(), high[row].tolist()
        window = (start[0], start[1], start[2]), (stop[0] - start[0], stop[1] - start[1], stop[2] - start[2])
        mask = read(*window)[objects.layer[row]] == row + 1
        shares[row] = np.count_nonzero(mask & cut.holds(*window)) / objects.voxels[row]
    return shares


def add_boxes(sample: dict[str, Any], objects: Objects, moved: Float64[np.ndarray, "n 6"], min_visible: Number) -> None:
    """Add the boxes of objects without masks to a sample, and take the voxels of those left out from its `valid`.

    Left out are objects to ignore, those of which less than `min_visible` of the box's volume lies in the patch, and
    those that are there with less than one voxel along some axis (and are not as thin as that).
    """
    limits = np.tile(np.array(sample["valid"].shape, np.float64), 2)
    boxes = moved.clip(0, limits)
    whole, seen = moved[:, 3:] - moved[:, :3], boxes[:, 3:] - boxes[:, :3]
    share = (seen / whole).prod(axis=1)
    kept = (seen >= np.minimum(whole, 1) - ROUNDING).all(axis=1) & (share >= min_visible - ROUNDING) & ~objects.ignore
    for low, high in boxes[~kept & (seen > 0).all(axis=1)].reshape(-1, 2, 3):
        z, y, x = (slice(int(a), int(b)) for a, b in zip(np.floor(low), np.ceil(high), strict=True))
        sample["valid"][z, y, x] = False
    sample |= {"boxes": boxes[kept].astype(np.float32), "labels": objects.labels[kept]}


def add_instances(
    sample: dict[str, Any],
    objects: Objects,
    moved: Float64[np.ndarray, "n 6"],
    read: ReadLayers,
    enough: Bool[np.ndarray, " n"],
    *,
    turned: bool,
) -> None:
    """Add the masks of objects to a sample, and boxes tight around each; take the other objects from its `valid`.

    An object that lies wholly in a patch that is not `turned` keeps its moved box. The others are those to ignore and
    those that are not visible `enough`. Where objects overlap, `instances` shows the smaller; a box is that of the
    whole mask, and an object left out hides nothing.
    """
    shape = sample["valid"].shape
    sample |= {"instances": np.zeros(shape, np.int32), "boxes": np.zeros((0, 6), np.float32)}
    sample["labels"] = np.zeros(0, np.int64)
    low, high = np.floor(moved[:, :3] + ROUNDING).clip(0), np.ceil(moved[:, 3:] - ROUNDING).clip(max=shape)
    near = (low < high).all(axis=1)
    if not near.any():
        return
    start, stop = low[near].min(axis=0).astype(int), high[near].max(axis=0).astype(int)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    layers, count = read((z, y, x)), len(objects)
    boxes, voxels = np.zeros((count, 6)), np.zeros(count, np.int64)
    for layer in layers:
        voxels += np.bincount(layer.ravel(), minlength=count + 1)[1:]
        for row, found in enumerate(ndimage.find_objects(layer)):
            if found is not None:
                boxes[row] = [s.start for s in found] + [s.stop for s in found]
    if not turned:
        whole = ((moved[:, :3] >= 0) & (moved[:, 3:] <= shape)).all(axis=1)
        boxes[whole] = moved[whole] - np.tile(start, 2)
    kept = (voxels > 0) & enough & ~objects.ignore
    number = np.concatenate([[0], np.cumsum(kept) * kept]).astype(np.int32)
    shown, others = sample["instances"][z, y, x], np.zeros(layers[0].shape, bool)
    for layer in layers:
        renamed = number[layer]
        np.copyto(shown, renamed, where=renamed > 0)
        others |= (layer > 0) & (renamed == 0)
    sample["valid"][z, y, x] &= ~others | (shown > 0)
    sample |= {
        "boxes": (boxes[kept] + np.tile(start, 2)).astype(np.float32),
        "labels": objects.labels[kept],
    }
