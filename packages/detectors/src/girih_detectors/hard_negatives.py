"""Which anchors of a batch a classification loss looks at: hard-negative sampling as nnDetection's v0.1 does it.

The draw is a function of the batch. Every anchor's ticket is a hash of its image's seed and its own number, and the
lowest tickets win. So nothing has to be stored: with the same seeds a resumed training draws as an uninterrupted one
would, and the ranks of a distributed training draw what one process would draw from the joined batch.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from .over_ranks import lowest_over_ranks, sum_over_ranks

# splitmix64 (Steele, Lea, Flood 2014, figure 16), as signed 64-bit integers
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_FINALISER = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


@torch.no_grad()
def sample_anchors(
    scores: Float[Tensor, "b n"],
    positives: Int64[Tensor, " p"],
    background: Bool[Tensor, "b n"],
    seeds: Int64[Tensor, " b"],
    *,
    per_image: int,
    positive_fraction: float,
    pool: int,
) -> tuple[Int64[Tensor, " kept"], Int64[Tensor, " negatives"]]:
    """Return the positives that are kept and the negatives that are drawn; rank by rank, of the batch of all ranks.

    With b images in all, at most int(per_image * b * positive_fraction) positives are kept. To each of them come
    1 / positive_fraction - 1 negatives, drawn from the `pool` times as many background anchors that score highest.
    A batch without objects draws as many negatives as one with all its positives. (nnDetection draws two.)

    Args:
        scores: the more, the more an anchor looks like an object; of equal ones the lower ticket is the harder.
        positives: anchors of objects, counted through the images: image * n + anchor.
        background: anchors that may be drawn as negatives.
        seeds: a number for each image, another one whenever it is seen again; images of one seed draw the same anchors.
        per_image: anchors that an image has a right to, enough for one positive.
        positive_fraction: share of positives, in (0, 1).
        pool: negatives that may be drawn for each that is, 1 or more.

    Raises:
        ValueError: settings that make no sense.
    """
    check_sampling(per_image, positive_fraction, pool)
    tickets = _tickets(seeds, scores.shape[1])
    batch, objects = _totals(len(seeds), len(positives), like=scores)
    most = int(per_image * batch * positive_fraction)
    kept = positives[lowest_over_ranks(most, tickets[positives])]
    count = max(1, int((min(objects, most) or most) * (1 / positive_fraction - 1)))
    candidates = background.flatten().nonzero()[:, 0]
    # what is not a number is the hardest of all, so that the loss shows it
    ease = -scores.flatten()[candidates].nan_to_num(torch.inf, torch.inf, -torch.inf)
    candidates = candidates[lowest_over_ranks(pool * count, ease, tickets[candidates])]
    return kept, candidates[lowest_over_ranks(count, tickets[candidates])]


def check_sampling(per_image: int, positive_fraction: float, pool: int) -> None:
    """Check the settings of `sample_anchors`.

    Raises:
        ValueError: a share of positives that is not in (0, 1), no positive for each image, or an empty pool.
    """
    if not 0 < positive_fraction < 1:
        raise ValueError(f"positive_fraction is {positive_fraction}, wanted between 0 and 1")
    if not per_image * positive_fraction >= 1:
        raise ValueError(f"per_image is {per_image}, wanted enough for one positive of each image")
    if not pool >= 1:
        raise ValueError(f"pool is {pool}, wanted 1 or more")


def _totals(*counts: int, like: Tensor) -> list[int]:
    """The sum over ranks of each."""
    return [int(total) for total in sum_over_ranks(torch.tensor(counts, device=like.device))]


def _tickets(seeds: Int64[Tensor, " b"], anchors: int) -> Int64[Tensor, " bn"]:
    """A number >= 0 for every anchor of every image, the same on every device and whatever else is in the batch."""
    x = _mixed(seeds)[:, None] + torch.arange(1, anchors + 1, device=seeds.device) * _GAMMA
    return _mixed(x).flatten() & (2**63 - 1)


def _mixed(x: Int64[Tensor, "*n"]) -> Int64[Tensor, "*n"]:
    for shift, factor in _FINALISER:
        x = (x ^ _shifted(x, shift)) * factor  # wraps around
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """The bits moved right, with zeros from the left; torch repeats the sign."""
    return torch.bitwise_right_shift(x, by) & ((1 << (64 - by)) - 1)
