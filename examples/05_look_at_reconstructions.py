"""What three pre-training objectives hide and restore, as one picture. Half a minute; makes its own data."""

import tempfile

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

import girih_backbones as backbones
import girih_ssl as ssl

PATCH = (16, 48, 48)
NAMES = {"mae": "MAE", "s3d": "S3D", "models_genesis": "Models Genesis"}


def volumes(n: int) -> torch.Tensor:
    """Return z-scored volumes (n, 1, Z, Y, X) of smooth tissue, a bright tube and a dark ball, which differ."""
    g = torch.Generator().manual_seed(0)
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, side) for side in PATCH], indexing="ij"))
    tissue = F.interpolate(torch.randn(n, 1, 5, 5, 5, generator=g), size=PATCH, mode="trilinear")
    centre = 0.8 * torch.rand(2, n, 3, 1, 1, 1, generator=g) - 0.4
    tube = (grid[1:] - centre[0, :, 1:]).square().sum(1, keepdim=True) < 0.05
    ball = (grid - centre[1]).square().sum(1, keepdim=True) < 0.1
    image = (0.5 * tissue + 2.0 * tube).masked_fill(ball, -2.0) + 0.1 * torch.randn(tissue.shape, generator=g)
    return (image - image.mean((2, 3, 4), keepdim=True)) / image.std((2, 3, 4), keepdim=True)


def build(name: str) -> torch.nn.Module:
    """Return an objective on a small encoder and U-Net decoder, with its own settings but for smaller blocks."""
    encoder = backbones.ResidualEncoder(1, channels=(8, 16, 32), blocks=(1, 1, 1))
    settings = {} if name == "models_genesis" else {"block_zyx": (8, 8, 8)}
    parts = ssl.Parts(
        encoder=encoder,
        make_neck=lambda: backbones.UNetDecoder(encoder.channels, encoder.strides),
        make_stem=lambda channels: backbones.make_stem(encoder, channels),
        in_channels=1,
        patch_zyx=PATCH,
    )
    return ssl.objectives()[name](**settings).build(parts)


torch.manual_seed(0)
train, test = volumes(9).split(8)
figure, axes = plt.subplots(len(NAMES), 3, figsize=(6, 6.4), layout="constrained")
for row, (name, title) in zip(axes, NAMES.items(), strict=True):
    objective = build(name)
    optimiser = torch.optim.Adam(objective.parameters(), lr=3e-3)
    for step in range(50):
        loss = objective({"image": train[[step % 8]], "seed": torch.tensor([step])})["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print(f"{title}: loss {loss.item():.2f}")
    restored = objective.reconstruct({"image": test, "seed": torch.tensor([14])})
    slices = {k: v[0, 0, 8].numpy() for k, v in restored.items()}
    for axis, (what, picture) in zip(row, slices.items(), strict=True):
        axis.imshow(picture, "gray", vmin=slices["input"].min(), vmax=slices["input"].max(), interpolation="nearest")
        axis.set(xticks=[], yticks=[], title=what, ylabel=title if what == "input" else "")
figure.savefig(png := f"{tempfile.gettempdir()}/reconstructions.png", dpi=110)
print(png)
