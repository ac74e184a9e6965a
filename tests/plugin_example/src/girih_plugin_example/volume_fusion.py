"""Volume Fusion: mix two volumes by a few steps of opacity, block by block, and tell the step of every voxel."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from girih_ssl import Batch, Parts, VoxelHead, check_batch, sample_generators


@dataclass(frozen=True)
class VolumeFusionConfig:
    """Segment fused volumes by their opacity (Wang et al., "MIS-FM", arXiv 2306.16925, 2023)."""

    steps: int = 5
    """Opacities, evenly spaced from 0 to 1: the classes."""
    boxes: tuple[int, int] = (10, 39)
    """Fewest and most boxes a sample."""
    smallest: int = 8
    """Shortest side of a box, voxels."""
    largest: float = 0.625
    """Longest side of a box, as a share of the patch's."""

    def __post_init__(self) -> None:
        fewest, most = self.boxes
        for name, good, wanted in (
            ("steps", self.steps >= 2, "2 or more"),
            ("boxes", 1 <= fewest <= most, "(fewest, most) with 1 <= fewest <= most"),
            ("smallest", self.smallest >= 1, "1 or more"),
            ("largest", 0 < self.largest <= 1, "a number in (0, 1]"),
        ):
            if not good:
                raise ValueError(f"{name}: found {getattr(self, name)}, wanted {wanted}")

    def build(self, parts: Parts) -> "VolumeFusion":
        """Return the objective on the encoder of `parts`."""
        return VolumeFusion(parts, self)


class VolumeFusion(nn.Module):
    """Voxel-wise classification of how much of a foreground is mixed into a background (Wang et al. 2023, section 3).

    With f a sample, g its neighbour in the batch and k(v) in 0 .. K-1 constant on random boxes (the last one drawn is
    on top, 0 outside all of them), the network sees a f + (1 - a) g with a = k / (K-1) and predicts k. The loss is
    softmax cross-entropy plus one minus the mean Dice of all K classes, background too.

    Deviations from the public code (nnssl), where one half of a batch is fused into the other: every sample is the
    foreground once and the background once, so a batch gives as many pairs as samples; alone, a sample has its mirror
    image as background. Voxels that are not valid in both are left out.
    """

    requires = frozenset({"image", "seed"})
    ddp_exact = False  # pairs are made within a process

    def __init__(self, parts: Parts, config: VolumeFusionConfig) -> None:
        super().__init__()
        self.encoder, self.neck, self.config = parts.encoder, parts.make_neck(), config
        self.head = VoxelHead(self.neck.channels[0], config.steps)
        self.in_channels, self.patch_multiple = parts.in_channels, parts.encoder.strides[-1]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss, its two parts, and `accuracy`: the share of voxels whose step was told."""
        image = check_batch(
            batch, requires=self.requires, in_channels=self.in_channels, patch_multiple=self.patch_multiple
        )
        valid = batch["valid"] if "valid" in batch else image.new_ones(image[:, 0].shape, dtype=torch.bool)
        step = draw_steps(batch["seed"], tuple(image.shape[2:]), self.config).to(image.device, non_blocking=True)
        opacity = step[:, None] / (self.config.steps - 1)
        fused = opacity * image + (1 - opacity) * _neighbour(image)
        logits = self.head(self.neck(self.encoder(fused)), tuple(image.shape[2:])).float()
        scored = valid & _neighbour(valid)
        entropy = F.cross_entropy(logits, step.where(scored, -100), reduction="sum") / scored.sum().clamp(min=1)
        overlap = dice(logits.softmax(1), F.one_hot(step, self.config.steps).movedim(-1, 1), scored[:, None])
        right = (logits.argmax(1) == step) & scored
        return {
            "loss": entropy + 1 - overlap,
            "cross_entropy": entropy.detach(),
            "dice": overlap.detach(),
            "accuracy": right.sum() / scored.sum().clamp(min=1),
        }


@torch.compiler.disable
def draw_steps(
    seed: Int64[Tensor, " b"], patch_zyx: tuple[int, ...], config: VolumeFusionConfig
) -> Int64[Tensor, "b z y x"]:
    """Return every voxel's step: boxes of steps 1 .. K-1 on a ground of 0, drawn on the CPU from each sample's seed."""
    patch = torch.tensor(patch_zyx)
    longest = (config.largest * patch).long().clamp(min=1)
    shortest = torch.full((3,), config.smallest).minimum(longest)
    step = torch.zeros(len(seed), *patch_zyx, dtype=torch.int64)
    for row, g in zip(step, sample_generators(seed), strict=True):
        n = int(torch.randint(config.boxes[0], config.boxes[1] + 1, (), generator=g))
        side = shortest + (torch.rand(n, 3, generator=g) * (longest - shortest + 1)).long()
        low = (torch.rand(n, 3, generator=g) * (patch - side + 1)).long()
        values = torch.randint(1, config.steps, (n,), generator=g)
        for (z, y, x), (dz, dy, dx), value in zip(low.tolist(), side.tolist(), values.tolist(), strict=True):
            row[z : z + dz, y : y + dy, x : x + dx] = value
    return step


def dice(
    share: Float[Tensor, "b k z y x"], truth: Int64[Tensor, "b k z y x"], scored: Tensor, smooth: float = 1e-5
) -> Tensor:
    """Return the mean of 2 |A B| / (|A| + |B|) over samples and classes, in [0, 1]."""
    axes = (2, 3, 4)
    both = (share * truth * scored).sum(axes)
    return ((2 * both + smooth) / (((share + truth) * scored).sum(axes) + smooth)).mean()


def _neighbour(x: Tensor) -> Tensor:
    return x.roll(1, 0) if len(x) > 1 else x.flip(-1)
