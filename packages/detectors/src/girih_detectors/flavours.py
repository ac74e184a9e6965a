"""How the anchors of Retina U-Net learn: two published losses, and what a third has to be."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from .anchor_truth import AnchorTruth
from .coder import decode, encode
from .hard_negatives import check_sampling, sample_anchors
from .interfaces import Target
from .losses import sigmoid_focal_loss, smooth_l1
from .ops import giou
from .over_ranks import mean_over_ranks, world_size
from .targets import name_of


@runtime_checkable
class Flavour(Protocol):
    """Settings of a loss that can apply themselves. Called in float32, outside autocast."""

    @property
    def segmentation(self) -> float:
        """Weight of the mean of cross-entropy and 1 - Dice."""
        ...

    @property
    def dice_numerator(self) -> float:
        """What Dice adds to its numerator."""
        ...

    def __call__(
        self,
        logits: Float[Tensor, "b n classes"],
        deltas: Float[Tensor, "b n 6"],
        truth: AnchorTruth,
        targets: Sequence[Target],
        /,
    ) -> tuple[Tensor, Tensor]:
        """Return (classification, regression), weighted and normalised over the batch of all ranks.

        `truth` is what each anchor should say, `targets` what it was made from.
        """
        ...


@dataclass(frozen=True)
class FocalL1:
    """Focal loss of all anchors, smooth L1 of the positives' deltas: nnDetection v2's `retinaunet_l1_focal_atss`.

    Both are divided by the positives of the batch, of all ranks; the focal loss is the mean over the classes.
    """

    gamma: float = 1.0
    """Focal exponent: 0 is plain cross-entropy."""
    alpha: float = 0.75
    """Focal weight of the positives; 1 - alpha of the negatives."""
    beta: float = 1.0
    """Where smooth L1 turns from square to linear, in units of the encoded deltas; 0 is plain L1."""
    classification: float = 0.3
    """Weight of the focal loss."""
    regression: float = 1.0
    """Weight of smooth L1."""
    segmentation: float = 1.0
    """Weight of the mean of cross-entropy and 1 - Dice."""
    dice_numerator: float = 0.0
    """What Dice adds to its numerator."""

    def __post_init__(self) -> None:
        _check_weights(self)
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"gamma is {self.gamma}, wanted 0 or more")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}, wanted 0 to 1")
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"beta is {self.beta}, wanted 0 or more")

    def __call__(
        self,
        logits: Float[Tensor, "b n classes"],
        deltas: Float[Tensor, "b n 6"],
        truth: AnchorTruth,
        targets: Sequence[Target],
    ) -> tuple[Tensor, Tensor]:
        """Return (classification, regression); the regression has a gradient of zero where there is no object."""
        positives = _at_least_one(len(truth.positives), logits)
        wanted = torch.zeros_like(logits, dtype=torch.float32).flatten(0, 1)
        wanted[truth.positives, truth.labels] = 1
        counted = truth.background.flatten()
        counted = counted.index_fill(0, truth.positives, True)
        focal = sigmoid_focal_loss(logits.flatten(0, 1), wanted, gamma=self.gamma, alpha=self.alpha)
        shifts = smooth_l1(deltas.flatten(0, 1)[truth.positives], encode(truth.boxes, truth.anchors), beta=self.beta)
        return (
            self.classification * (focal.mean(-1) * counted).sum() / positives,
            self.regression * shifts.sum() / positives,
        )


@dataclass(frozen=True)
class HnmGiou:
    """Cross-entropy of sampled anchors, GIoU of the sampled positives' boxes: nnDetection v0.1's RetinaUNetV001.

    Cross-entropy (one sigmoid per class) is the mean over sampled anchors and classes, the other term the mean of
    1 - GIoU over the sampled positives.

    Which anchors are sampled is a function of the network's output and of `seed` in every target, which is required:
    one seed always draws the same anchors, so each image of each step should have its own. Where the seeds are a
    function of the step, a resumed training draws as an uninterrupted one, and ranks as one process (`hard_negatives`).

    Deviations: nnDetection logs -GIoU, which has the same gradient but no floor at 0; and from a batch without objects
    it draws two negatives, here as many as from a full one.
    """

    per_image: int = 32
    """Anchors that are sampled per image of the batch, at most."""
    positive_fraction: float = 0.33
    """Share of positives among them."""
    pool: int = 20
    """Hardest background anchors that a negative is drawn from, for each negative."""
    classification: float = 1.0
    """Weight of cross-entropy."""
    regression: float = 1.0
    """Weight of 1 - GIoU."""
    segmentation: float = 1.0
    """Weight of the mean of cross-entropy and 1 - Dice."""
    dice_numerator: float = 1e-5
    """What Dice adds to its numerator."""

    def __post_init__(self) -> None:
        _check_weights(self)
        check_sampling(self.per_image, self.positive_fraction, self.pool)

    def __call__(
        self,
        logits: Float[Tensor, "b n classes"],
        deltas: Float[Tensor, "b n 6"],
        truth: AnchorTruth,
        targets: Sequence[Target],
    ) -> tuple[Tensor, Tensor]:
        """Return (classification, regression); the regression has a gradient of zero where there is no object.

        Raises:
            ValueError: a target has no `seed`.
        """
        kept, negatives = sample_anchors(
            logits.detach().amax(-1),
            truth.positives,
            truth.background,
            _seeds(targets, logits.device),
            per_image=self.per_image,
            positive_fraction=self.positive_fraction,
            pool=self.pool,
        )
        rows = torch.searchsorted(truth.positives, kept)  # of the truth
        found = logits.float().flatten(0, 1)[torch.cat([kept, negatives])]
        wanted = torch.zeros_like(found)
        wanted[torch.arange(len(kept), device=kept.device), truth.labels[rows]] = 1
        entropy = F.binary_cross_entropy_with_logits(found, wanted, reduction="none").mean(-1).sum()
        boxes = decode(deltas.float().flatten(0, 1)[kept], truth.anchors[rows])
        misfit = (1 - giou(boxes, truth.boxes[rows])).sum()
        return (
            self.classification * entropy / _at_least_one(len(found), logits),
            self.regression * misfit / _at_least_one(len(kept), logits),
        )


def _check_weights(loss: Flavour) -> None:
    for name in ("classification", "regression", "segmentation", "dice_numerator"):
        if not 0 <= getattr(loss, name) < math.inf:
            raise ValueError(f"{name} is {getattr(loss, name)}, wanted 0 or more")


def _seeds(targets: Sequence[Target], device: torch.device) -> Int64[Tensor, " b"]:
    for image, target in enumerate(targets):
        if "seed" not in target:
            raise ValueError(
                f"{name_of(image, target)} has no `seed`, from which HnmGiou draws the anchors of this image: "
                "wanted another number at every step"
            )
    return torch.stack([torch.as_tensor(target["seed"], dtype=torch.int64, device=device) for target in targets])


def _at_least_one(count: int, like: Tensor) -> Tensor:
    """The mean over ranks of a count, such that the sum over ranks is at least 1."""
    return mean_over_ranks(torch.full((), float(count), device=like.device)).clamp(min=1 / world_size())
