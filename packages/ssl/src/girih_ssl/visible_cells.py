"""Which cells of an encoder's maps are visible when blocks of the volume are hidden."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import gcd

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from girih_ssl.interfaces import Triple


@dataclass(frozen=True)
class Cells:
    """The visible cells of one grid, in the forms that masked arithmetic needs; all float32."""

    shown: Float32[Tensor, "b 1 z y x"]
    """1 where a cell is visible, else 0."""
    hidden: Float32[Tensor, "b 1 z y x"]
    """1 - shown."""
    count: Float32[Tensor, "b 1 1 1 1"]
    """n, the visible cells of a sample, but at least 1, so that it divides."""
    scale: Float32[Tensor, "b 1 1 1 1"]
    """sqrt(N / n), N the cells of the grid."""
    scaled: Float32[Tensor, "b 1 z y x"]
    """scale where a cell is visible, else 0."""

    @classmethod
    def of(cls, visible: Bool[Tensor, "b z y x"]) -> "Cells":
        """Return the forms of a mask."""
        shown = visible[:, None].float()
        count = shown.sum((1, 2, 3, 4), keepdim=True).clamp(min=1)
        scale = (shown[0].numel() / count).sqrt()
        return cls(shown, 1 - shown, count, scale, shown * scale)


class VisibleCells:
    """The visible cells of every grid on which an encoder has maps.

    A cell is visible if any of its voxels is. Where the stride divides the block that is the block's own value,
    repeated; along an axis on which the stride is coarser, it is the disjunction of the blocks in the cell. A grid
    that is coarser than the blocks along all axes is visible everywhere, as in the public code of S3D: hardly one of
    its cells has seen nothing.

    Args:
        visible: which blocks are visible.
        block_zyx: voxels of a block.
        strides: voxels per cell of the grids that will be asked for.
    """

    def __init__(self, visible: Bool[Tensor, "b gz gy gx"], block_zyx: Triple, strides: Iterable[Triple] = ()) -> None:
        self.visible = visible
        self.block_zyx = block_zyx
        gz, gy, gx = visible.shape[1:]
        self.patch_zyx = (gz * block_zyx[0], gy * block_zyx[1], gx * block_zyx[2])
        self._grids: dict[Triple, Cells | None] = {}
        for stride in strides:
            self.add(stride)

    def add(self, stride: Triple) -> None:
        """Work out the cells of the grid of this stride, which divides the patch."""
        z, y, x = (side // step for side, step in zip(self.patch_zyx, stride, strict=True))
        everywhere = is_all_visible(stride, self.block_zyx)
        self._grids[z, y, x] = None if everywhere else Cells.of(any_visible(self.visible, self.block_zyx, stride))

    def on(self, grid: Triple) -> Cells | None:
        """Return the cells of a map of (z, y, x) cells, None if all of them are visible by rule.

        Raises:
            ValueError: no stride that was given leads to this grid.
        """
        if grid not in self._grids:
            raise ValueError(
                f"encoder: found a map of {grid} cells for a patch of {self.patch_zyx} voxels, wanted one of "
                f"{sorted(self._grids, reverse=True)}: its strides are no longer those that the objective was built for"
            )
        return self._grids[grid]


def is_all_visible(stride_zyx: Triple, block_zyx: Triple) -> bool:
    """Whether a map is taken as visible everywhere: its cells are longer than the blocks along all axes."""
    return all(step > side for step, side in zip(stride_zyx, block_zyx, strict=True))


def any_visible(visible: Bool[Tensor, "b gz gy gx"], block_zyx: Triple, stride_zyx: Triple) -> Bool[Tensor, "b z y x"]:
    """Return for every cell of stride_zyx voxels whether any of its voxels lies in a visible block.

    Raises:
        RuntimeError: the cells do not divide the patch.
    """
    for axis, (side, step) in enumerate(zip(block_zyx, stride_zyx, strict=True), start=1):
        unit = gcd(side, step)  # the longest pieces of which both a block and a cell are made
        pieces = visible.repeat_interleave(side // unit, dim=axis)
        visible = torch.unflatten(pieces, axis, (-1, step // unit)).any(axis + 1)
    return visible
