"""Where a voxel or a box lies, as sines and cosines (Vaswani et al. 2017, section 3.5; Carion et al. 2020, in 3D)."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .anchors import Triple

TEMPERATURE = 1e4
TURN = 2 * math.pi  # the patch is one turn of the slowest wave


def sine_features(angles: Float[Tensor, "*n"], features: int) -> Float[Tensor, "*n features"]:
    """Return sin and cos, in turn, of angle / 1e4^(2k / features) for k = 0, 1, ... features / 2 - 1.

    Raises:
        ValueError: `features` is odd or negative.
    """
    if features < 0 or features % 2:
        raise ValueError(f"features are {features}, wanted an even number")
    exponents = torch.arange(0, features, 2, device=angles.device, dtype=angles.dtype) / max(1, features)
    waves = angles[..., None] / TEMPERATURE**exponents
    return torch.stack([waves.sin(), waves.cos()], -1).flatten(-2)


def box_encoding(boxes: Float[Tensor, "*n 6"], features: int) -> Float[Tensor, "*n six_times_features"]:
    """Return the sine features of all six entries of boxes by centre and sides, one entry after the other."""
    return sine_features(boxes * TURN, features).flatten(-2)


def features_per_axis(dim: int) -> int:
    """Return how many of `dim` channels tell of each axis: 2 floor(dim / 6), 42 for 128. What is left over stays zero.

    nnDetection's split of a width that 6 does not divide is not published: this is ours.
    """
    return 2 * (dim // 6)


def voxel_encoding(
    shape: Triple, dim: int, offset: float = 0.0, device: torch.device | None = None
) -> Float[Tensor, "s dim"]:
    """Return the code of every voxel of a map, row by row: that of z, of y, of x, then zeros (`features_per_axis`).

    Index i of n along an axis is at the angle 2 pi (i + 1 + offset) / n; with an offset of -0.5, as the original has
    it, that is the voxel's centre.
    """
    codes = []
    for axis, extent in enumerate(shape):
        index = torch.arange(extent, device=device, dtype=torch.float32)
        waves = sine_features((index + 1 + offset) / extent * TURN, features_per_axis(dim))
        row = [extent if other == axis else 1 for other in range(3)]
        codes.append(waves.view(*row, -1).expand(*shape, -1))
    rest = torch.zeros(*shape, dim - 3 * features_per_axis(dim), device=device)
    return torch.cat([*codes, rest], -1).flatten(0, 2)


class PositionalEncoding3D(nn.Module):
    """The code of every voxel of several maps: where it lies in its map (sines), and which map that is (learnt).

    State: `level_embedding` (levels, dim).

    Args:
        dim: width of the code, 6 or more.
        levels: number of maps.
        offset: see `voxel_encoding`.

    Raises:
        ValueError: too narrow, no level, or an offset that is not finite.
    """

    def __init__(self, dim: int, levels: int, offset: float = 0.0) -> None:
        super().__init__()
        if dim < 6 or levels < 1:
            raise ValueError(f"dim is {dim} and levels {levels}, wanted 6 or more and 1 or more")
        if not math.isfinite(offset):
            raise ValueError(f"offset is {offset}, wanted a finite number")
        self.dim, self.offset = dim, offset
        self.level_embedding = nn.Parameter(torch.randn(levels, dim))  # N(0, 1) as in Deformable DETR

    def forward(self, spatial_shapes: Sequence[Triple]) -> Float[Tensor, "s dim"]:
        """Return the codes of the maps' voxels behind each other, float32."""
        device = self.level_embedding.device
        codes = [
            voxel_encoding(shape, self.dim, self.offset, device) + level
            for shape, level in zip(spatial_shapes, self.level_embedding, strict=True)
        ]
        return torch.cat(codes)
