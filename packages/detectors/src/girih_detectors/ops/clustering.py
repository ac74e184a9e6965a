"""Weighted box clustering: the boxes that several models or mirrorings give for one object become their mean.

Jaeger et al. 2020 (Retina U-Net), in nnDetection's form, which leaves the area of the boxes out of the weights.
"""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from .boxes import full_precision, iou
from .nms import class_nms, suppressor

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
Clustered = tuple[Float[Tensor, "k 6"], Float[Tensor, " k"], Integer[Tensor, " k"]]


@torch.no_grad()
def weighted_box_clustering(
    boxes: Float[Tensor, "n 6"],
    scores: Float[Tensor, " n"],
    labels: Integer[Tensor, " n"],
    weights: Float[Tensor, " n"],
    iou_threshold: float,
    *,
    expected: int,
    score_threshold: float = 0.0,
) -> Clustered:
    """Return the boxes, scores and labels of the clusters, by descending score; ties by the rank of the first box.

    The best box i that is in no cluster yet leads one, with all boxes j of its class that are in none and overlap it by
    IoU_ij > `iou_threshold`. With a_j = IoU_ij * w_j and m boxes in the cluster

        score = sum(a_j s_j) / (sum(a_j) + max(0, expected - m) * mean(a_j)),  box = sum(a_j s_j b_j) / sum(a_j s_j)

    so that an object which few have seen scores low. Both are computed relative to the box that leads: a cluster of one
    or of identical boxes has that box, bit for bit. The boxes that lead are those that `class_nms` keeps. On CUDA the
    last digit of a mean may change from run to run, as `index_add_` adds in any order.

    Args:
        boxes: of all models and mirrorings, in any unit.
        scores: finite, not negative; equal ones rank by index.
        labels: class of each box.
        weights: trust in each box, greater than 0.
        iou_threshold: in [0, 1].
        expected: boxes that an object gets if everybody sees it: models x mirrorings.
        score_threshold: in [0, 1); a cluster stays if its score is greater.

    Raises:
        ValueError: other shapes or kinds of numbers, a threshold outside its range, `expected` that is no integer of 1
            or more, a box, score or weight that is not as said (naming its row).
    """
    if not isinstance(expected, int) or expected < 1:
        raise ValueError(f"expected is {expected}, wanted an integer of 1 or more")
    if not 0 <= score_threshold < 1:
        raise ValueError(f"score_threshold is {score_threshold}, wanted at least 0 and less than 1")
    check_weighted(boxes, scores, labels, weights)
    leads = class_nms(boxes, scores, labels, iou_threshold)
    cluster = suppressor(boxes, labels, leads, iou_threshold)  # (n,) row of `leads`
    points, given = full_precision(boxes), full_precision(scores)
    first, best = points[leads], given[leads]
    overlap = iou(first[cluster], points).index_fill_(0, leads, 1.0)  # also for a leader without volume
    trust = overlap * weights
    pull = trust * given
    terms = torch.column_stack(
        [
            torch.ones_like(trust),
            trust,
            trust * (given - best[cluster]),
            pull,
            pull[:, None] * (points - first[cluster]),
        ]
    )
    members, trusted, below, pulled, *shift = terms.new_zeros(len(leads), 10).index_add_(0, cluster, terms).T
    tiny = torch.finfo(pulled.dtype).tiny
    mean = best + below / trusted
    final = (mean * (members / members.clamp(min=expected))).to(scores.dtype)
    centre = (first + torch.stack(shift, dim=1) / pulled[:, None].clamp(min=tiny)).to(boxes.dtype)
    order = final.argsort(descending=True, stable=True)
    order = order[final[order] > score_threshold]
    return centre[order], final[order], labels[leads[order]]


def check_weighted(boxes: Tensor, scores: Tensor, labels: Tensor, weights: Tensor) -> None:
    """Check what weighted boxes are.

    Raises:
        ValueError: boxes that are not (n, 6) or other columns that are not (n,), another kind of numbers, or a row with
            a number that is not finite, a negative side, a negative score or a weight that is not greater than 0.
    """
    for name, column in {"boxes": boxes, "scores": scores, "labels": labels, "weights": weights}.items():
        if not isinstance(column, Tensor):
            raise ValueError(f"{name} are {type(column).__name__}, wanted a tensor")
    n = len(boxes)
    columns = {"boxes": (boxes, (n, 6)), "scores": (scores, (n,)), "labels": (labels, (n,)), "weights": (weights, (n,))}
    for name, (column, shape) in columns.items():
        if column.shape != shape:
            raise ValueError(f"{name} are {tuple(column.shape)}, wanted {shape} for {n} boxes")
        if name != "labels" and not column.is_floating_point():
            raise ValueError(f"{name} are {column.dtype}, wanted floating-point numbers")
    if labels.dtype not in _INTEGERS:
        raise ValueError(f"labels are {labels.dtype}, wanted integers")
    sound = (scores >= 0) & (scores < torch.inf) & (weights > 0) & (weights < torch.inf)
    sound &= boxes.isfinite().all(1) & (boxes[:, 3:] >= boxes[:, :3]).all(1)
    if not bool(sound.all()):
        row = int(sound.logical_not().nonzero()[0])
        raise ValueError(
            f"row {row}: box {boxes[row].tolist()}, score {scores[row]}, weight {weights[row]}; wanted finite numbers, "
            "no negative side, a score of 0 or more and a weight greater than 0"
        )
