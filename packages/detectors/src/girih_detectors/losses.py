"""The loss terms of Retina U-Net, each in float32 whatever autocast says."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from .over_ranks import mean_over_ranks, sum_over_ranks

DICE_DENOMINATOR = 1e-5  # nnDetection, `smooth_denom`


def sigmoid_focal_loss(
    logits: Float[Tensor, "*n"], targets: Float[Tensor, "*n"], *, gamma: float, alpha: float
) -> Float[Tensor, "*n"]:
    """Return the focal loss of every element (Lin et al. 2017, equation 5), float32.

    -alpha (1 - p)^gamma log(p) where the target is 1, -(1 - alpha) p^gamma log(1 - p) where it is 0.
    """
    with _float32(logits):
        logits, targets = logits.float(), targets.float()
        log_likelihood = F.logsigmoid(torch.where(targets > 0.5, logits, -logits))
        miss = torch.sigmoid(torch.where(targets > 0.5, -logits, logits))  # 1 - p of the right answer
        weight = torch.where(targets > 0.5, alpha, 1 - alpha)
        return -weight * miss**gamma * log_likelihood


def smooth_l1(deltas: Float[Tensor, "*n"], targets: Float[Tensor, "*n"], *, beta: float) -> Float[Tensor, "*n"]:
    """Return the smooth L1 loss of every element (Girshick 2015, equation 3, with the corner at `beta`), float32."""
    with _float32(deltas):
        return F.smooth_l1_loss(deltas.float(), targets.float(), beta=beta, reduction="none")


def cross_entropy_and_dice(
    logits: Float[Tensor, "b 2 *zyx"],
    foreground: Bool[Tensor, " b *zyx"],
    valid: Bool[Tensor, " b *zyx"] | None = None,
    *,
    dice_numerator: float = 0.0,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return (cross-entropy, 1 - soft Dice) of background against foreground, float32.

    Cross-entropy is the mean over valid voxels. Dice pools the voxels of the whole batch, over all ranks, and scores
    only the foreground: (2 |shared| + dice_numerator) / (|guess| + |truth| + 1e-5). Without any foreground and with
    nothing added to the numerator, as nnDetection v2 has it (`smooth_nom`), 1 - Dice is 1 and has no gradient.
    """
    with _float32(logits):
        logits = logits.float()
        weight = torch.ones_like(logits[:, 0]) if valid is None else valid.float()
        entropy = F.cross_entropy(logits, foreground.long(), reduction="none") * weight
        voxels = mean_over_ranks(weight.sum()).clamp(min=1)
        truth = foreground.float() * weight
        guess = torch.softmax(logits, dim=1)[:, 1] * weight
        sums = torch.stack([(guess * truth).sum(), guess.sum(), truth.sum()])
        shared, guessed, true = sum_over_ranks(sums).unbind()
        dice = (2 * shared + dice_numerator) / (guessed + true + DICE_DENOMINATOR)
        return entropy.sum() / voxels, 1 - dice


def _float32(like: Tensor) -> torch.autocast:
    return torch.autocast(like.device.type, enabled=False)
