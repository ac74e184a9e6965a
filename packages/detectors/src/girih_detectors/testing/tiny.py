"""A pyramid that trains in seconds and scenes of bright cuboids for it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..interfaces import Target

CLASSES = ("dim", "bright")
STRIDES = ((1, 1, 1), (2, 2, 2), (4, 4, 4))
CUBE = (24, 24, 24)


class TinyPyramid(nn.Module):
    """A pyramid of three 16-channel maps: strided convolutions down, interpolation and addition up."""

    def __init__(self, in_channels: int = 1, strides: Sequence[tuple[int, int, int]] = STRIDES) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.strides = tuple(strides)
        self.channels = (16,) * len(self.strides)
        steps = [self.strides[0]] + [
            (b[0] // a[0], b[1] // a[1], b[2] // a[2]) for a, b in zip(self.strides, self.strides[1:], strict=False)
        ]
        widths = [in_channels, *self.channels]
        self.down = nn.ModuleList(_unit(i, o, s) for i, o, s in zip(widths, self.channels, steps, strict=False))
        self.lateral = nn.ModuleList(nn.Conv3d(c, c, 1) for c in self.channels)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> list[Tensor]:
        """Return the maps, finest first."""
        maps: list[Tensor] = []
        for down, lateral in zip(self.down, self.lateral, strict=True):
            x = down(x)
            maps.append(lateral(x))
        for fine in reversed(range(len(maps) - 1)):
            maps[fine] = maps[fine] + nn.functional.interpolate(maps[fine + 1], size=maps[fine].shape[2:])
        return maps


def toy_batch(
    objects: Sequence[int], shape: tuple[int, int, int] = CUBE, channels: int = 1
) -> tuple[Tensor, list[Target]]:
    """Return images of faint noise with this many cuboids each (at most 4), and their targets.

    Class 0 has intensity 1, class 1 has 2; cuboids have sides of 1/4 of the axis and do not touch. A margin at the end
    of x is not valid. The seed of an image is its number in the batch.
    """
    noise = torch.Generator().manual_seed(0)
    images = 0.1 * torch.randn((len(objects), channels, *shape), generator=noise)
    places = [(0.125, 0.125, 0.125), (0.5, 0.5625, 0.125), (0.125, 0.625, 0.5), (0.625, 0.125, 0.5625)]
    targets: list[Target] = []
    for place, (image, count) in enumerate(zip(images, objects, strict=True)):
        instances = torch.zeros(shape, dtype=torch.int32)
        boxes = torch.zeros(count, 6)
        for row in range(count):
            low = [int(p * n) for p, n in zip(places[row], shape, strict=True)]
            high = [start + max(1, n // 4) for start, n in zip(low, shape, strict=True)]
            where = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            instances[where] = row + 1
            image[(slice(None), *where)] += 1 + row % 2
            boxes[row] = torch.tensor([*low, *high])
        valid = torch.ones(shape, dtype=torch.bool)
        valid[:, :, -2 - place :] = False  # another number of voxels in each image
        labels = torch.arange(count) % 2
        targets.append({"boxes": boxes, "labels": labels, "instances": instances, "valid": valid, "seed": place})
    return images, targets


def _unit(in_channels: int, out_channels: int, step: tuple[int, int, int]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, 3, stride=step, padding=1),
        nn.GroupNorm(4, out_channels),
        nn.LeakyReLU(),
    )
