"""What a model finds in a batch of tiles, in every mirroring: checked, and brought to its place in the volume."""

import itertools
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..anchors import Triple
from ..interfaces import Detections, Detector
from ..ops.boxes import clip
from .merging import Candidates
from .tiling import centre_weight

MIRRORINGS = tuple(
    tuple(axis for axis in range(3) if flipped[axis]) for flipped in itertools.product((False, True), repeat=3)
)
"""Axes (0 = z) along which a tile is flipped: none first, then z, y and x as the digits of a binary number count."""
ROUNDING = 1e-3
"""Voxels that a box may reach out of its tile; they are cut off."""


def detect_tiles(
    model: Detector,
    images: Float[Tensor, "b c z y x"],
    mirrorings: Sequence[Sequence[int]],
    starts: Sequence[Triple],
) -> list[Candidates]:
    """Return what a model finds in tiles, for each mirroring, in the order of the tiles, on the CPU.

    Args:
        model: in evaluation mode.
        images: the tiles.
        mirrorings: axes (0 = z) to flip before, and to flip the boxes back along.
        starts: first voxel of each tile in the volume, whose voxel edges the boxes are in.

    Raises:
        ValueError: what the model returned is not what `Detector.detect` promises.
    """
    found: list[Detections] = []
    for axes in mirrorings:
        of_batch = model.detect(images.flip([axis + 2 for axis in axes]) if axes else images)
        if len(of_batch) != len(images):
            raise ValueError(f"the detector returned {len(of_batch)} results for {len(images)} images")
        found += of_batch
    z, y, x = images.shape[2:]
    boxes, scores, labels = _joined(found, (z, y, x), len(model.classes))
    of_tile = [len(one["scores"]) for one in found]
    of_mirroring = [sum(of_tile[i : i + len(starts)]) for i in range(0, len(of_tile), len(starts))]
    pairs = zip(torch.split(boxes, of_mirroring), mirrorings, strict=True)
    boxes = torch.cat([unmirror(some, axes, (z, y, x)) for some, axes in pairs])
    weights = centre_weight(boxes, (z, y, x))
    offsets = torch.tensor(starts, dtype=torch.float32).repeat(len(mirrorings), 2)
    boxes = boxes + offsets.repeat_interleave(torch.tensor(of_tile), dim=0)
    columns = (torch.split(column, of_mirroring) for column in (boxes, scores, labels, weights))
    return [Candidates(boxes=b, scores=s, labels=k, weights=w) for b, s, k, w in zip(*columns, strict=True)]


def unmirror(boxes: Float[Tensor, "n 6"], axes: Sequence[int], patch_zyx: Triple) -> Float[Tensor, "n 6"]:
    """Return the boxes of a tile that was flipped along these axes (0 = z) as boxes of the tile itself."""
    flipped = boxes.clone()
    for axis in axes:
        flipped[:, axis] = patch_zyx[axis] - boxes[:, axis + 3]
        flipped[:, axis + 3] = patch_zyx[axis] - boxes[:, axis]
    return flipped


def _joined(found: Sequence[Detections], patch_zyx: Triple, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """All boxes, scores and labels, checked, on the CPU. Each transfer from a GPU has to be waited for: one for all."""
    boxes, scores, labels = (torch.cat(column).cpu() for column in zip(*map(_columns, found), strict=True))
    boxes, scores, labels = boxes.float(), scores.float(), labels.long()
    if not bool(torch.isfinite(boxes).all() & torch.isfinite(scores).all()):
        raise ValueError("the detector returned boxes or scores that are not finite")
    for name, column, most in (("score", scores, 1), ("label", labels, classes - 1)):
        wrong = (column < 0) | (column > most)
        if bool(wrong.any()):
            raise ValueError(f"the detector returned the {name} {column[wrong][0].item()}, wanted 0..{most}")
    clipped = clip(boxes, patch_zyx)
    wrong = (boxes[:, :3] > boxes[:, 3:]).any(1) | ((boxes - clipped).abs() > ROUNDING).any(1)
    if bool(wrong.any()):
        raise ValueError(
            f"the detector returned the box {boxes[wrong][0].tolist()}, "
            f"wanted z0 <= z1, y0 <= y1, x0 <= x1 within a tile of {tuple(patch_zyx)} voxels"
        )
    return clipped, scores, labels


def _columns(one: Detections) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and labels of one image, where it is, of the shapes and kinds that they should have."""
    if not isinstance(one, Mapping) or not {"boxes", "scores", "labels"} <= one.keys():
        found = list(one) if isinstance(one, Mapping) else repr(one)
        raise ValueError(f"the detector returned {found} for an image, wanted a dict of boxes, scores and labels")
    boxes, scores, labels = (torch.as_tensor(one[key]) for key in ("boxes", "scores", "labels"))
    n = scores.numel()
    integers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if boxes.shape != (n, 6) or scores.shape != (n,) or labels.shape != (n,) or not integers:
        columns = ", ".join(f"{tuple(column.shape)} {column.dtype}" for column in (boxes, scores, labels))
        raise ValueError(
            f"the detector returned boxes, scores and labels of {columns} for an image, wanted (n, 6), (n,), (n,) and "
            "labels of integers"
        )
    return boxes, scores, labels
