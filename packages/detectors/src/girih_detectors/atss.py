"""Which anchors answer for which object: adaptive training sample selection (Zhang et al. 2020, algorithm 1) in 3D.

The nearest cells of an object follow from its centre and the stride, so only the candidates' IoU is computed:
memory is O(objects x candidates), not O(objects x anchors). Ties and the rules the paper leaves open:

- Equal centre distances: the lower cell index is the nearer one.
- An anchor claimed by several objects goes to the highest IoU, then to the lower object.
- Numbers are float64, in which anchors and IoU are exact to 1e-15, and a candidate reaches the threshold from 1e-12
  below it: equal candidates are all positive, whatever the rounding of their mean.
- A candidate that does not touch the object (IoU 0) is never claimed by the threshold. (nnDetection takes all
  candidates when all IoUs are 0.)
- An object left without an anchor gets one free candidate: highest IoU, then nearest centre, then best shape, then
  lowest index. So a tiny object trains exactly one anchor instead of all or none.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from .anchors import CENTRE_OFFSET, AnchorGrid, Triple
from .ops import iou

ROUNDING = 1e-12
CELLS_PER_LEVEL = 4  # nnDetection, `num_candidates`; times the anchors per cell. The 2D paper uses 9 (section 4.1)


class AnchorMatch(NamedTuple):
    """Anchor `anchors[i]` learns object `objects[i]`; anchors ascend and are unique."""

    anchors: Int64[Tensor, " p"]
    objects: Int64[Tensor, " p"]


@torch.no_grad()
def match_atss(boxes: Float[Tensor, "n 6"], grid: AnchorGrid, *, cells_per_level: int = CELLS_PER_LEVEL) -> AnchorMatch:
    """Return the positive anchors of one image; every other anchor is background.

    Candidates of an object are all anchors of its `cells_per_level` nearest cells of each level. Positive are those
    whose IoU reaches the mean plus the unbiased standard deviation over its candidates of all levels.

    Args:
        boxes: objects in voxel edges, every side > 0.
        grid: the anchors of the image.
        cells_per_level: nearest cells taken of each level (all, if the level has fewer).

    Raises:
        ValueError: a box that is not finite or has a side <= 0.
    """
    if len(boxes) == 0:
        nothing = torch.zeros(0, dtype=torch.int64, device=boxes.device)
        return AnchorMatch(nothing, nothing)
    _check(boxes)
    grid = replace(grid, sizes=grid.sizes.double())
    index, distance = _candidates(boxes, grid, cells_per_level)
    overlap = iou(boxes[:, None].double(), grid.boxes(index))
    spread = overlap.std(1) if index.shape[1] > 1 else torch.zeros_like(overlap[:, 0])
    positive = (overlap >= (overlap.mean(1) + spread - ROUNDING)[:, None]) & (overlap > 0)
    rows, columns = positive.nonzero(as_tuple=True)
    match = _one_object_each(index[rows, columns], rows, overlap[rows, columns])
    return _serve_orphans(match, boxes, grid, index, distance, overlap)


def _check(boxes: Tensor) -> None:
    good = torch.isfinite(boxes).all(1) & (boxes[:, 3:] > boxes[:, :3]).all(1)
    if not bool(good.all()):
        row = int((~good).nonzero()[0])
        raise ValueError(f"box {row} is {boxes[row].tolist()}, wanted finite numbers, z0 < z1, y0 < y1, x0 < x1")


def _candidates(
    boxes: Tensor, grid: AnchorGrid, k: int
) -> tuple[Int64[Tensor, "n candidates"], Float64[Tensor, "n candidates"]]:
    """Flat anchor indices and squared centre distances of the candidates, level after level."""
    centre = 0.5 * (boxes[:, :3].double() + boxes[:, 3:].double())
    within = torch.arange(grid.per_cell, device=boxes.device)
    indices, distances, start = [], [], 0
    for shape, stride, length in zip(grid.shapes, grid.strides, grid.level_lengths, strict=True):
        cells, distance = _nearest_cells(centre, shape, stride, k)
        indices.append((start + cells[:, :, None] * grid.per_cell + within).flatten(1))
        distances.append(distance.repeat_interleave(grid.per_cell, dim=1))
        start += length
    return torch.cat(indices, dim=1), torch.cat(distances, dim=1)


def _nearest_cells(
    centre: Float64[Tensor, "n 3"], shape: Triple, stride: Triple, k: int
) -> tuple[Int64[Tensor, "n cells"], Float64[Tensor, "n cells"]]:
    """The k nearest cells lie in the product of the k nearest indices of each axis."""
    cells, squares = [], []
    for axis in range(3):
        width = min(k + 2, shape[axis])  # a spare cell on either side covers the rounding of the division
        first = torch.ceil((centre[:, axis] - CENTRE_OFFSET) / stride[axis] - k / 2).long() - 1
        first = first.clamp(0, shape[axis] - width)
        cell = first[:, None] + torch.arange(width, device=centre.device)
        cells.append(cell)
        squares.append((cell * stride[axis] + CENTRE_OFFSET - centre[:, axis, None]) ** 2)
    distance = squares[0][:, :, None, None] + squares[1][:, None, :, None] + squares[2][:, None, None, :]
    flat = (cells[0][:, :, None, None] * shape[1] + cells[1][:, None, :, None]) * shape[2] + cells[2][:, None, None, :]
    distance, order = distance.flatten(1).sort(dim=1, stable=True)  # the window is in C order: ties by cell index
    return flat.flatten(1).gather(1, order)[:, :k], distance[:, :k]


def _one_object_each(anchors: Tensor, objects: Tensor, overlap: Tensor) -> AnchorMatch:
    by_overlap = overlap.argsort(descending=True, stable=True)
    by_anchor = by_overlap[anchors[by_overlap].argsort(stable=True)]
    anchors, objects = anchors[by_anchor], objects[by_anchor]
    first = torch.ones_like(anchors, dtype=torch.bool)
    first[1:] = anchors[1:] != anchors[:-1]
    return AnchorMatch(anchors[first], objects[first])


def _serve_orphans(
    match: AnchorMatch, boxes: Tensor, grid: AnchorGrid, index: Tensor, distance: Tensor, overlap: Tensor
) -> AnchorMatch:
    """Give each object without an anchor, in order, the best of its candidates that nobody has."""
    waits = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    waits[match.objects] = False
    rows = waits.nonzero()[:, 0]
    if len(rows) == 0:
        return match
    index, distance, overlap = index[rows], distance[rows], overlap[rows]
    shape = _shape_iou(boxes[rows, None].double(), grid.boxes(index))
    best = shape.argsort(dim=1, descending=True, stable=True)
    best = best.gather(1, distance.gather(1, best).argsort(dim=1, stable=True))
    best = best.gather(1, overlap.gather(1, best).argsort(dim=1, descending=True, stable=True))
    taken = dict(zip(match.anchors.tolist(), match.objects.tolist(), strict=True))
    for row, wishes in zip(rows.tolist(), index.gather(1, best).tolist(), strict=True):
        free = next((anchor for anchor in wishes if anchor not in taken), None)
        if free is not None:  # None: more objects than anchors around them
            taken[free] = row
    anchors = sorted(taken)
    pairs = torch.tensor([anchors, [taken[anchor] for anchor in anchors]], device=boxes.device)
    return AnchorMatch(*pairs)


def _shape_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """IoU of the anchors with the boxes, all moved to one centre."""
    half = [0.5 * (b[..., 3:] - b[..., :3]) for b in (boxes, anchors)]
    return iou(*(torch.cat([-h, h], dim=-1) for h in half))
