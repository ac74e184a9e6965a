"""Volume contrast: predict how much a random crop overlaps each crop of a regular grid."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from girih_ssl.batch import check_batch, check_cells
from girih_ssl.interfaces import Batch, Encoder, Parts
from girih_ssl.overlap_crops import Augmentation, base_grid, cut_crops, draw_crops

EPS = 1e-6
"""Keeps the logarithm and both quotients of the prediction loss finite; the authors' value."""


@dataclass(frozen=True)
class VoCoConfig:
    """Predict the overlap of random crops with a grid of base crops (Wu et al., CVPR 2024)."""

    crop_zyx: tuple[int, int, int] = (64, 64, 64)
    """Voxels of a crop along (z, y, x); the patch is tiled by such base crops."""
    n_crops: int = 4
    """Random crops of every patch."""
    projector_width: int = 2048
    """Units of each of the projector's three layers."""
    momentum: float = 0.9
    """Share of itself that the teacher keeps at every step; unused without a teacher."""
    p_flip: float = 0.2
    """Probability that a crop is flipped along an axis, for each of the three."""
    p_turn: float = 0.2
    """Probability that a crop is turned by one to three quarters in the plane (y, x), if its sides there are equal."""
    p_shift: float = 0.1
    """Probability that a crop's intensities are shifted."""
    shift: float = 0.1
    """Largest shift either way, in units of the volume as it comes."""
    compat: str = "none"
    """"nnssl": as that program has it, without teacher and batch normalisation; "none": as the authors have it."""

    def __post_init__(self) -> None:
        if len(self.crop_zyx) != 3 or min(self.crop_zyx) < 1:
            raise ValueError(f"crop_zyx: found {self.crop_zyx}, wanted three positive numbers (z, y, x)")
        for name in ("n_crops", "projector_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, wanted a positive number")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: found {self.momentum}, wanted a number from 0 to below 1")
        for name in ("p_flip", "p_turn", "p_shift"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, wanted a number from 0 to 1")
        if not 0 <= self.shift < math.inf:
            raise ValueError(f"shift: found {self.shift}, wanted a finite number >= 0")
        if self.compat not in ("none", "nnssl"):
            raise ValueError(f"compat: found {self.compat!r}, wanted 'none' or 'nnssl'")

    def build(self, parts: Parts) -> "VoCo":
        """Return the objective.

        Raises:
            ValueError: `crop_zyx` is no multiple of the encoder's coarsest stride, or a single cell of that; or
                `parts.patch_zyx` is no multiple of `crop_zyx` or a single crop.
        """
        base_grid(parts.patch_zyx, self.crop_zyx)
        return VoCo(parts.encoder, parts.in_channels, self)


class VoCo(nn.Module):
    r"""Volume contrast (Wu et al. 2024, "VoCo: A Simple-yet-Effective Volume Contrastive Learning Framework").

    A patch is tiled by base crops j = 1..k; random crops i = 1..n of the same size lie anywhere in it. The label l_ij
    is the share of random crop i inside base crop j, from 0 to 1 with sum_j l_ij = 1. An embedding is a projector over
    the means of all maps of the encoder: r_i of a random crop, b_j of a base crop, and r'_i, b'_j those of a teacher,
    whose weights are a moving average of the student's. With relu cos(a, b) = max(0, a . b / |a| |b|) the overlap is
    predicted as

        s_ij = (relu cos(r_i, b'_j) + relu cos(r'_i, b_j)) / 2

    and the loss is the mean over the volumes of pos + neg + reg, where

        pos = sum_ij -l_ij log(1 - |l_ij - s_ij| + 1e-6) / (sum_ij l_ij + 1e-6)
        neg = sum_{l_ij = 0} s_ij^2 / (number of l_ij = 0, + 1e-6)
        reg = mean_{i < j} relu cos(b_i, stop_gradient(b_j))^2

    as the authors' public code has it (Luffy03/VoCo); its teacher is that of Wu et al. 2024 (arXiv 2410.09890). Only
    crops of the same volume are compared. The projector is three linear layers, the first two followed by batch
    normalisation over all crops of the batch (no affine parameters, no running statistics: the teacher, in eval mode,
    uses those of its batch too) and ReLU. It and the losses run in float32 under autocast as well: what tells crops
    apart is a small part of the means of normalised maps.

    Every crop, base or random, is flipped, turned and shifted on its own, alike for student and teacher, with the
    authors' probabilities: each axis 0.2, one to three quarter turns in the axial plane 0.2, intensities 0.1 by up to
    0.1. They scale intensities to [0, 1]; on z-scored volumes 0.1 is a tenth of a standard deviation, which is less.

    Published setting: Wu et al. resize a volume to 96 x 384 x 384 voxels, cut 1 x 4 x 4 base crops of 96^3 and 2
    random ones, resize these to 64^3, and train 250000 steps of AdamW (AMSGrad) with learning rate 1e-4, a warm-up of
    5000 steps and cosine decay. Eckstein et al. 2025 ("The Missing Piece: A Case for Pre-Training in 3D Medical Object
    Detection") use patches of 64 x 192 x 192 voxels at 1 mm, so 1 x 3 x 3 base crops of 64^3, and SGD with Nesterov
    momentum 0.99, learning rate 1e-2 and polynomial decay, without clipping gradients, by nnssl.

    Deviations from the authors' code:
        - Crops lie anywhere along z as well, and labels are shares of volume, not of area, as in nnssl. With one base
          crop along z both are the same. Nothing is resized.
        - 4 random crops, nnssl's number, instead of 2.
        - The teacher starts as a copy of the student and moves after the optimiser step. There it starts from other
          random numbers and moves between the two forward passes; from the same start both are the same sequence.
        - Batch statistics are those of one process; `torch.nn.SyncBatchNorm.convert_sync_batchnorm`, as they do, gives
          the student those of all.

    Deviations from the public code of Eckstein et al. (nnssl), which `compat="nnssl"` takes back:
        - It has no teacher: s_ij = relu cos(r_i, stop_gradient(b_j)).
        - Its projector normalises each crop over its features (an InstanceNorm1d that is given a matrix does that).
        - pos and neg are quotients of sums over the whole batch; reg is not squared and stops no gradient.
        - Its users report that "the VoCo pre-training loss in nnssl does not decrease" (issue 22, 2026), which may be
          why VoCo fell behind training from scratch there. They name the teacher. On the toy volumes of our tests, at
          its learning rate, it is the normalisation: all crops get one embedding and stay there, with a teacher too,
          while batch normalisation learns even without one.
    Its noise, blur, contrast, gamma and resolution changes of crops are here under neither setting.

    `valid` is not used, since a crop is compared as a whole: padding is content like any other, and two base crops of
    nothing else are pushed apart in vain. On a constant patch all crops are equal and the loss is a finite constant. A
    volume whose labels are all positive has neg 0. NaN or infinity in a patch makes the loss NaN: it is not searched
    for, because the answer would have to be waited for on a GPU.

    The k + n crops of all volumes pass the encoder as one batch, and the teacher's without keeping activations.

    Args:
        encoder: becomes the objective's own.
        in_channels: channels of the volumes.
        config: crops, projector, teacher and augmentation.

    Attributes:
        requires: image and seed.
        patch_multiple: the crop.
        teacher: the moving average of encoder and projector, or None for "nnssl".
        ddp_exact: False: batch normalisation and nnssl's quotients take each process's share of a batch by itself.

    Raises:
        ValueError: the crop is no multiple of the encoder's coarsest stride, or a single cell of that.
    """

    requires = frozenset({"image", "seed"})
    ddp_exact = False
    own_augmentation = True

    def __init__(self, encoder: Encoder, in_channels: int, config: VoCoConfig | None = None) -> None:
        super().__init__()
        config = config or VoCoConfig()
        if any(side % stride for side, stride in zip(config.crop_zyx, encoder.strides[-1], strict=True)):
            raise ValueError(
                f"crop_zyx: found {config.crop_zyx}, wanted multiples of the encoder's coarsest stride "
                f"{encoder.strides[-1]}"
            )
        check_cells(config.crop_zyx, encoder.strides[-1])
        self.encoder = encoder
        self.projector = _projector(sum(encoder.channels), config.projector_width, config.compat)
        self.teacher = None if config.compat == "nnssl" else _Teacher(self.encoder, self.projector)
        self.in_channels = in_channels
        self.crop_zyx = self.patch_multiple = config.crop_zyx
        self.n_crops = config.n_crops
        self.momentum = config.momentum
        self.augmentation = Augmentation(config.p_flip, config.p_turn, config.p_shift, config.shift)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, the sum of `pos`, `neg` and `reg`.

        Raises:
            ValueError: see `check_batch`; or the patch is a single crop.
        """
        overlap, predicted, bases = self._compare(batch)
        whole = self.teacher is None
        pos, neg = prediction_losses(overlap, predicted, over_batch=whole)
        reg = regularisation_loss(bases, squared=not whole)
        return {"loss": pos + neg + reg, "pos": pos.detach(), "neg": neg.detach(), "reg": reg.detach()}

    @torch.no_grad()
    def overlaps(self, batch: Batch) -> dict[str, Float[Tensor, "b n k"]]:
        """Return the `true` and the `predicted` overlap of n random with k base crops, to see what has been learnt.

        Raises:
            ValueError: as `forward`.
        """
        overlap, predicted, _ = self._compare(batch)
        return {"true": overlap, "predicted": predicted}

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the teacher towards the student by 1 - momentum; buffers, if there are any, are copied."""
        if self.teacher is None:
            return
        for name, old in self.teacher.named_parameters():  # their names are those of the student
            old.lerp_(self.get_parameter(name), 1 - self.momentum)
        for name, buffer in self.teacher.named_buffers():
            buffer.copy_(self.get_buffer(name))

    def train(self, mode: bool = True) -> "VoCo":
        """Set the mode of all but the teacher, which stays in eval mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def _compare(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return true and predicted overlap (b, n, k) and the student's embeddings of the base crops (b, k, d)."""
        image = check_batch(
            batch, requires=self.requires, in_channels=self.in_channels, patch_multiple=self.patch_multiple
        )
        patch = (image.shape[2], image.shape[3], image.shape[4])
        crops = draw_crops(batch["seed"], patch, self.crop_zyx, self.n_crops, self.augmentation).to(image.device)
        voxels = cut_crops(image, crops, self.crop_zyx)
        random, bases = _split(embed(self.encoder, self.projector, voxels), self.n_crops)
        if self.teacher is None:
            return crops.overlap, relu_cosine(random, bases.detach()), bases
        with torch.no_grad():
            teacher_random, teacher_bases = _split(self.teacher(voxels), self.n_crops)
        predicted = (relu_cosine(random, teacher_bases) + relu_cosine(teacher_random, bases)) / 2
        return crops.overlap, predicted, bases


def embed(
    encoder: Callable[[Tensor], list[Tensor]], projector: nn.Module, voxels: Float[Tensor, "b m c z y x"]
) -> Float[Tensor, "b m d"]:
    """Return the projection of the means of all maps, float32; all b * m crops pass the encoder at once."""
    means = [scale.mean((2, 3, 4), dtype=torch.float32) for scale in encoder(voxels.flatten(0, 1))]
    with torch.autocast(voxels.device.type, enabled=False):
        embeddings: Tensor = projector(torch.cat(means, dim=1))
    return embeddings.reshape(*voxels.shape[:2], -1)


def relu_cosine(a: Float[Tensor, "b n d"], b: Float[Tensor, "b k d"]) -> Float[Tensor, "b n k"]:
    """Return max(0, cosine) of every a with every b of the same volume, in [0, 1]; 0 if either is zero."""
    with torch.autocast(a.device.type, enabled=False):
        cosine = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).mT
    return cosine.relu().clamp(max=1)  # 1 may be exceeded by rounding; unlike clamp(0, 1), relu has gradient 0 at 0


def prediction_losses(
    overlap: Float[Tensor, "b n k"], predicted: Float[Tensor, "b n k"], *, over_batch: bool = False
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return pos and neg, see VoCo: how far the prediction is off where crops overlap, and where they do not.

    Args:
        overlap: the true share, in [0, 1].
        predicted: the predicted one, in [0, 1].
        over_batch: divide sums over the whole batch; else sums per volume, and take the mean of the quotients.
    """
    axes = (0, 1, 2) if over_batch else (1, 2)
    surprise = -(1 - (overlap - predicted).abs() + EPS).log()
    pos = (overlap * surprise).sum(axes) / (overlap.sum(axes) + EPS)
    apart = overlap == 0
    neg = (predicted.square() * apart).sum(axes) / (apart.sum(axes) + EPS)
    return pos.mean(), neg.mean()


def regularisation_loss(bases: Float[Tensor, "b k d"], *, squared: bool = True) -> Float[Tensor, ""]:
    """Return reg, see VoCo: how similar the base crops of a volume are, 0 if no pair has a positive cosine.

    Args:
        bases: embeddings of k >= 2 base crops.
        squared: the authors' form, squared and without gradient to the later crop of a pair; else nnssl's.
    """
    similar = relu_cosine(bases, bases.detach()).square() if squared else relu_cosine(bases, bases)
    k = bases.shape[1]
    pairs = similar.triu(diagonal=1).sum((1, 2)) / (k * (k - 1) / 2)
    return pairs.mean()


def _projector(in_features: int, width: int, compat: str) -> nn.Sequential:
    def norm() -> nn.Module:
        if compat == "nnssl":
            return nn.LayerNorm(width, elementwise_affine=False)
        return nn.BatchNorm1d(width, affine=False, track_running_stats=False)

    return nn.Sequential(
        nn.Linear(in_features, width),
        norm(),
        nn.ReLU(),
        nn.Linear(width, width),
        norm(),
        nn.ReLU(),
        nn.Linear(width, width),
    )


def _split(embeddings: Tensor, n_crops: int) -> tuple[Tensor, Tensor]:
    """Return those of the random crops, which come last, and those of the base crops."""
    return embeddings[:, -n_crops:], embeddings[:, :-n_crops]


class _Teacher(nn.Module):
    """A copy of encoder and projector without gradient, in eval mode."""

    def __init__(self, encoder: Encoder, projector: nn.Module) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.projector = copy.deepcopy(projector)
        self.requires_grad_(False).eval()

    def forward(self, voxels: Tensor) -> Tensor:
        return embed(self.encoder, self.projector, voxels)
