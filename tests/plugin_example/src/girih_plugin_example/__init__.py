"""Denoising pre-training: what a third party writes to add an objective."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from girih_ssl import Batch, Parts, VoxelHead, check_batch, sample_generators


@dataclass(frozen=True)
class DenoiseConfig:
    """Restore a patch from a noisy copy (Vincent et al. 2008)."""

    sigma: float = 0.5
    """Deviation of the noise, in units of the normalised image."""

    def build(self, parts: Parts) -> "Denoise":
        """Return the objective on the encoder of `parts`."""
        return Denoise(parts, self.sigma)


class Denoise(nn.Module):
    """Mean squared error between the restored and the clean patch (Vincent et al. 2008, equation 3)."""

    requires = frozenset({"image", "seed"})

    def __init__(self, parts: Parts, sigma: float) -> None:
        super().__init__()
        self.encoder, self.neck, self.sigma = parts.encoder, parts.make_neck(), sigma
        self.head = VoxelHead(self.neck.channels[0], parts.in_channels)
        self.in_channels, self.patch_multiple = parts.in_channels, parts.encoder.strides[-1]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"loss"} for batch["image"] (B, C, Z, Y, X)."""
        image = check_batch(
            batch, requires=self.requires, in_channels=self.in_channels, patch_multiple=self.patch_multiple
        )
        noise = [torch.randn(image.shape[1:], generator=g) for g in sample_generators(batch["seed"])]
        maps = self.neck(self.encoder(image + self.sigma * torch.stack(noise).to(image)))
        return {"loss": F.mse_loss(self.head(maps, tuple(image.shape[2:])).float(), image.float())}


@dataclass(frozen=True)
class ForgetfulConfig(DenoiseConfig):
    """Restore a patch from a noisy copy (Vincent et al. 2008); broken on purpose."""

    def build(self, parts: Parts) -> "Denoise":
        """Return the broken objective."""
        return Forgetful(parts, self.sigma)


class Forgetful(Denoise):
    """Denoise, but with the same noise whatever the seeds are (Vincent et al. 2008, equation 3)."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"loss"}, always from the same noise."""
        return super().forward({**batch, "seed": torch.zeros_like(batch["seed"])} if "seed" in batch else batch)
