"""Weighted box clustering: the boxes that several models or mirrorings give for one object become their mean.

Jaeger et al. 2020 (Retina U-Net), in nnDetection's form, which leaves the area of the boxes out of the weights.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .boxes import iou
from .nms import class_nms, suppressor

Clustered = tuple[Float[Tensor, "k 6"], Float[Tensor, " k"], Int64[Tensor, " k"]]


@torch.no_grad()
def weighted_box_clustering(
    boxes: Float[Tensor, "n 6"],
    scores: Float[Tensor, " n"],
    labels: Int64[Tensor, " n"],
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
        ValueError: lengths that differ, a threshold outside its range, `expected` below 1, a box, score or weight
            that is not as said (naming its row).
    """
    leads = class_nms(boxes, scores, labels, iou_threshold)  # refuses other shapes
    _check(boxes, scores, weights, expected, score_threshold)
    cluster = suppressor(boxes, labels, leads, iou_threshold)  # (n,) row of `leads`
    points, given = _full(boxes), _full(scores)
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


def _full(numbers: Tensor) -> Tensor:
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def _check(boxes: Tensor, scores: Tensor, weights: Tensor, expected: int, score_threshold: float) -> None:
    if expected < 1:
        raise ValueError(f"expected is {expected}, wanted 1 or more")
    if not 0 <= score_threshold < 1:
        raise ValueError(f"score_threshold is {score_threshold}, wanted at least 0 and less than 1")
    if len(weights) != len(boxes):
        raise ValueError(f"{len(boxes)} boxes and {len(weights)} weights, wanted as many of each")
    sound = (scores >= 0) & (scores < torch.inf) & (weights > 0) & (weights < torch.inf)
    sound &= boxes.isfinite().all(1) & (boxes[:, 3:] >= boxes[:, :3]).all(1)
    if not bool(sound.all()):
        row = int(sound.logical_not().nonzero()[0])
        raise ValueError(
            f"row {row}: box {boxes[row].tolist()}, score {scores[row]}, weight {weights[row]}; wanted finite numbers, "
            "no negative side, a score of 0 or more and a weight greater than 0"
        )
