"""Class-wise greedy non-maximum suppression of 3D boxes, plain torch on any device."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .boxes import iou

BLOCK = 128  # boxes resolved at once; larger blocks waste comparisons, smaller ones wait for Python


@torch.no_grad()
def class_nms(
    boxes: Float[Tensor, "n 6"],
    scores: Float[Tensor, " n"],
    labels: Int64[Tensor, " n"],
    iou_threshold: float,
    max_keep: int | None = None,
) -> Int64[Tensor, " kept"]:
    """Return the indices of the boxes that stay, by descending score; ties by index.

    A box falls if a box of its class that stays and stands before it overlaps it by IoU > `iou_threshold`. Classes are
    compared by label (no shifting of coordinates, which costs digits), boxes without volume suppress nothing.

    Args:
        boxes: in any unit, no negative side.
        scores: what ranks the boxes; any real number.
        labels: class of each box.
        iou_threshold: in [0, 1].
        max_keep: stop after this many; they are the first of the full answer.

    Raises:
        ValueError: the threshold is outside [0, 1].
    """
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold is {iou_threshold}, wanted 0..1")
    rest = scores.argsort(descending=True, stable=True)
    wanted = len(rest) if max_keep is None else max_keep
    kept: list[Tensor] = []
    while len(rest) > 0 and wanted > 0:
        block, rest = rest[:BLOCK], rest[BLOCK:]
        stays = _resolve(_suppresses(boxes, labels, block, block, iou_threshold))
        block = block[stays][:wanted]
        kept.append(block)
        wanted -= len(block)
        if len(rest) > 0 and wanted > 0:
            rest = rest[~_suppresses(boxes, labels, block, rest, iou_threshold).any(0)]
    return torch.cat(kept) if kept else rest


def _suppresses(boxes: Tensor, labels: Tensor, rows: Tensor, columns: Tensor, threshold: float) -> Tensor:
    overlap = iou(boxes[rows][:, None], boxes[columns][None]) > threshold
    return overlap & (labels[rows][:, None] == labels[columns][None])


def _resolve(suppresses: Tensor) -> Tensor:
    """Greedy answer inside one sorted block, as the fixed point of "stays if nobody who stays suppresses it".

    Box i is right after i + 1 rounds at the latest, since it depends only on the boxes before it.
    """
    above = suppresses.triu(1)
    stays = ~above.any(0)
    while True:
        # a box that falls for sure frees those it would have suppressed
        updated = ~(above & stays[:, None]).any(0)
        if torch.equal(updated, stays):
            return stays
        stays = updated
