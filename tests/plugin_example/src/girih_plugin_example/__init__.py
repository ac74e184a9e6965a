"""Denoising pre-training: what a third party writes to add an objective."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from girih_ssl import Parts


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
        self.head = nn.Conv3d(self.neck.channels[0], parts.in_channels, 1)
        self.patch_multiple = self.encoder.strides[-1]

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return {"loss"} for batch["image"] (B, C, Z, Y, X)."""
        if missing := self.requires - set(batch):
            raise ValueError(f"the batch has no {sorted(missing)[0]!r}")
        image = batch["image"]
        restored = self.head(self.neck(self.encoder(image + self.sigma * self.noise(image, batch["seed"])))[0])
        return {"loss": F.mse_loss(F.interpolate(restored, image.shape[2:], mode="trilinear").float(), image)}

    def noise(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Return standard normal noise, one generator per sample."""
        draws = [torch.randn(image.shape[1:], generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
        return torch.stack(draws).to(image)


@dataclass(frozen=True)
class ForgetfulConfig(DenoiseConfig):
    """The same, broken on purpose: it ignores the seed of the batch."""

    def build(self, parts: Parts) -> "Denoise":
        """Return the broken objective."""
        return Forgetful(parts, self.sigma)


class Forgetful(Denoise):
    """Denoise, but with the same noise whatever the seed (Vincent et al. 2008, equation 3)."""

    def noise(self, image: Tensor, seeds: Tensor) -> Tensor:
        """Return the same noise for every seed."""
        return super().noise(image, torch.zeros_like(seeds))
