"""A new pre-training objective: one config, one module; the kit says whether it keeps the contract."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from girih_ssl import Parts
from girih_ssl.testing import check_objective


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

    def __init__(self, parts, sigma):
        super().__init__()
        self.encoder, self.neck, self.sigma = parts.encoder, parts.make_neck(), sigma
        self.head = nn.Conv3d(self.neck.channels[0], parts.in_channels, 1)
        self.patch_multiple = self.encoder.strides[-1]

    def forward(self, batch):
        """Return {"loss"} for batch["image"] (B, C, Z, Y, X)."""
        if missing := self.requires - set(batch):
            raise ValueError(f"the batch has no {sorted(missing)[0]!r}")
        image = batch["image"]
        draws = [torch.randn(image.shape[1:], generator=torch.Generator().manual_seed(int(s))) for s in batch["seed"]]
        restored = self.head(self.neck(self.encoder(image + self.sigma * torch.stack(draws).to(image)))[0])
        return {"loss": F.mse_loss(F.interpolate(restored, image.shape[2:], mode="trilinear").float(), image)}


if __name__ == "__main__":
    for check in check_objective(DenoiseConfig()):
        check()
        print(f"passed: {check.__name__}")
