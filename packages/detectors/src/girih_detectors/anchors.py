"""Anchors in closed form: box i is computed from i, the million of a 128^3 patch never stands in memory.

Order of the flat index: level, then cell in C order over (z, y, x), then size. It is the order in which the heads
flatten their output.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

CENTRE_OFFSET = 0.5
"""Voxel edges from index * stride to the centre of the anchors of that cell.

A padded 3^3 convolution with stride s centres output cell i on voxel i * s, and the middle of that voxel is the edge
coordinate i * s + 0.5. nnDetection puts its anchors at i * s in coordinates that count voxel centres: the same place.
"""

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class AnchorGrid:
    """The anchors of one image shape: the same A sizes in every cell of a level."""

    shapes: tuple[Triple, ...]
    """Cells of every level along (z, y, x)."""
    strides: tuple[Triple, ...]
    """Voxels per cell of every level."""
    sizes: Float[Tensor, "levels a 3"]
    """Sides in voxels."""

    def __len__(self) -> int:
        return sum(self.level_lengths)

    @property
    def per_cell(self) -> int:
        """Anchors per cell, A."""
        return self.sizes.shape[1]

    @property
    def level_lengths(self) -> tuple[int, ...]:
        """Anchors of every level."""
        return tuple(math.prod(shape) * self.per_cell for shape in self.shapes)

    def boxes(self, index: Int64[Tensor, "*n"]) -> Float[Tensor, "*n 6"]:
        """Return the anchors of these flat indices as boxes in voxel edges; they may reach out of the image."""
        device = self.sizes.device
        ends = torch.tensor(self.level_lengths, device=device).cumsum(0)
        level = torch.bucketize(index, ends, right=True)
        local = index - torch.nn.functional.pad(ends, (1, 0))[level]
        cell, size = local // self.per_cell, local % self.per_cell
        shapes = torch.tensor(self.shapes, device=device)[level]
        y, x = cell // shapes[..., 2], cell % shapes[..., 2]
        z, y = y // shapes[..., 1], y % shapes[..., 1]
        strides = torch.tensor(self.strides, device=device)[level]
        centre = torch.stack([z, y, x], dim=-1) * strides + CENTRE_OFFSET
        half = 0.5 * self.sizes[level, size]
        return torch.cat([centre - half, centre + half], dim=-1)

    def all_boxes(self) -> Float[Tensor, "n 6"]:
        """Return every anchor; for looking and for tests, training and inference need only some."""
        return self.boxes(torch.arange(len(self), device=self.sizes.device))


def anchor_grid(image_zyx: Triple, strides: Sequence[Triple], sizes_zyx: Float[Tensor, "a 3"]) -> AnchorGrid:
    """Return the anchors of an image of this many voxels.

    Args:
        image_zyx: voxels, a multiple of every stride.
        strides: voxels per cell of every detection level, finest first.
        sizes_zyx: sides in voxels at the first level; level l has sizes * strides[l] / strides[0].
    """
    step = torch.tensor(strides, dtype=sizes_zyx.dtype, device=sizes_zyx.device)
    sizes = sizes_zyx[None] * (step / step[0])[:, None]
    shapes = [(image_zyx[0] // s[0], image_zyx[1] // s[1], image_zyx[2] // s[2]) for s in strides]
    return AnchorGrid(tuple(shapes), tuple(strides), sizes)
