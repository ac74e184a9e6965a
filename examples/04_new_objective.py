"""A new pre-training objective in fifty lines, SimMIM with a CNN; the kit says whether it keeps the contract."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from girih_ssl import Batch, Parts, check_batch, draw_hidden_blocks, hidden_count, to_voxels
from girih_ssl.testing import check_objective


@dataclass(frozen=True)
class SimMIMConfig:
    """Predict hidden voxels from the coarsest map by one linear layer (Xie et al., "SimMIM", CVPR 2022)."""

    mask_ratio: float = 0.6
    """Share of the blocks that is hidden; a block is a cell of the coarsest map."""

    def build(self, parts: Parts) -> "SimMIM":
        """Return the objective on the encoder of `parts`."""
        return SimMIM(parts, self.mask_ratio)


class SimMIM(nn.Module):
    """Mean absolute error of the hidden voxels (Xie et al. 2022, sections 3.2 to 3.5); a token takes their place."""

    requires = frozenset({"image", "seed"})

    def __init__(self, parts: Parts, mask_ratio: float) -> None:
        super().__init__()
        self.encoder, self.mask_ratio, self.in_channels = parts.encoder, mask_ratio, parts.in_channels
        self.cell = self.patch_multiple = parts.encoder.strides[-1]
        self.token = nn.Parameter(torch.zeros(parts.in_channels, 1, 1, 1))
        z, y, x = self.cell
        self.head = nn.Linear(parts.encoder.channels[-1], parts.in_channels * z * y * x)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"loss"} for batch["image"] (B, C, Z, Y, X)."""
        image = check_batch(
            batch, requires=self.requires, in_channels=self.in_channels, patch_multiple=self.patch_multiple
        )
        z, y, x = (side // cell for side, cell in zip(image.shape[2:], self.cell, strict=True))
        blocks = draw_hidden_blocks(batch["seed"], (z, y, x), hidden_count((z, y, x), self.mask_ratio))
        hidden = to_voxels(blocks, self.cell).to(image.device)
        coarsest = self.encoder(torch.where(hidden, self.token, image))[-1]
        voxels = self.head(coarsest.movedim(1, -1)).unflatten(-1, (-1, *self.cell))  # (B, z, y, x, C, dz, dy, dx)
        output = voxels.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(image.shape)  # (B, C, z dz, y dy, x dx)
        error = (output.float() - image.float()).abs() * hidden
        return {"loss": error.sum() / (hidden.sum() * self.in_channels)}


if __name__ == "__main__":
    for check in check_objective(SimMIMConfig()):
        check()
        print(f"passed: {check.name}")
