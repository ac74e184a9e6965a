"""Cross-entropy and soft Dice of annotated regions, as sums that add up over samples and processes."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

SMOOTH = 1e-5  # of the soft Dice, above and below the line, as in nnU-Net's trainer


class RegionSums(NamedTuple):
    """Sums over the scored voxels of some samples, float32."""

    entropy: Float[Tensor, "*l"]
    """Cross-entropy; for sigmoid the binary one, mean over regions."""
    voxels: Float[Tensor, "*l"]
    """Number of scored voxels."""
    overlap: Float[Tensor, "*l 3 r"]
    """For every region the sums of p t, of p and of t: p its probability, t whether it is there."""


def membership(regions: list[list[int]]) -> Bool[Tensor, "r v"]:
    """Return which label is in which region; column v + 1 is label v, column 0 any negative, the last any larger."""
    table = torch.zeros(len(regions), max(max(region) for region in regions) + 3, dtype=torch.bool)
    for row, region in zip(table, regions, strict=True):
        row[torch.tensor(region) + 1] = True
    return table


def region_sums(
    logits: Float[Tensor, "n k z y x"],
    labels: Int[Tensor, "n z y x"],
    members: Bool[Tensor, "r v"],
    *,
    exclusive: bool,
) -> RegionSums:
    """Return the sums over the voxels whose label is not negative, in float32 also for logits of fewer bits.

    Args:
        logits: one per region, and with `exclusive` one for the background before them.
        labels: label per voxel.
        members: from `membership`.
        exclusive: softmax over regions and background, else a sigmoid for every region.
    """
    logits = logits.float()
    columns = labels.long().clamp(-1, members.shape[1] - 2) + 1
    scored = (columns > 0).float()
    truth = members[:, columns].transpose(0, 1)  # (r, n, z, y, x) -> (n, r, z, y, x)
    if exclusive:
        numbers = torch.arange(1, len(members) + 1, device=members.device)
        target = (members * numbers[:, None]).sum(0)[columns]
        entropy = (F.cross_entropy(logits, target, reduction="none") * scored).sum()
        p = logits.softmax(1)[:, 1:]
    else:
        # softplus(-x) = -log sigmoid(x), softplus(x) = -log(1 - sigmoid(x)); no float copy of the truth, as BCE needs
        entropy = (F.softplus(torch.where(truth, -logits, logits)) * scored[:, None]).sum() / len(members)
        p = logits.sigmoid()
    p = p * scored[:, None]
    space = (0, 2, 3, 4)
    overlap = torch.stack([(p * truth).sum(space), p.sum(space), truth.sum(space).float()])
    return RegionSums(entropy, scored.sum(), overlap)


def dice(overlap: Float[Tensor, "*l 3 r"]) -> Float[Tensor, "*l r"]:
    """Return the soft Dice of every region: (2 sum p t + s) / (sum p + sum t + s) with s = 1e-5; 1 without a voxel."""
    shared, guessed, true = overlap.unbind(-2)
    return (2 * shared + SMOOTH) / (guessed + true + SMOOTH)
