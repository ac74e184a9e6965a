"""Sparse execution of a dense encoder: its own modules and weights, blind to the hidden blocks of a volume."""

from collections.abc import Iterable
from functools import cache
from math import gcd
from typing import cast

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from girih_ssl.interfaces import Encoder, Triple
from girih_ssl.masked_norm import Cells, masked_instance_norm


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


@torch.compiler.disable  # type: ignore[untyped-decorator]
def bind(encoder: Encoder, visible: VisibleCells) -> Encoder:
    """Return the encoder as it runs with some blocks hidden (Tian et al. 2023, section 3.1); `encoder` is not changed.

    Every convolution and pooling is followed by a multiplication with its grid's mask, every instance normalisation is
    `masked_instance_norm`; what lies between is as it was.

    What is returned is for one forward pass. It is a copy of the tree of modules that shares all parameters, buffers
    and hooks, and knows its mask. So the mask is passed along by nothing but the modules that are called: not by a
    context, which another model or the recomputation of a checkpointed stage in the backward pass would find changed.
    What a forward assigns to an attribute is lost with the copy.

    Args:
        encoder: one that `check_sparse` accepts.
        visible: the visible cells of every grid it has maps on.
    """
    return cast(Encoder, copy_tree(cast(nn.Module, encoder), visible, {}))


def copy_tree(module: nn.Module, visible: VisibleCells | None, copies: dict[nn.Module, nn.Module]) -> nn.Module:
    """Return a copy that shares everything but the modules; with `visible`, the copies mind what is hidden.

    Args:
        module: root of the tree.
        visible: the visible cells, None for a copy that runs as the original does.
        copies: what has been copied already, by the original; a module that is used twice is copied once.
    """
    if module in copies:
        return copies[module]
    cls = type(module) if visible is None else _sparse_type(type(module))  # type: ignore[arg-type]
    twin = copies[module] = cls.__new__(cls)
    children = {
        name: None if child is None else copy_tree(child, visible, copies) for name, child in module._modules.items()
    }
    # A submodule that was compiled on its own holds a call of the original, which does not mind what is hidden.
    twin.__dict__ = {**module.__dict__, "_modules": children, "_compiled_call_impl": None, "visible_cells": visible}
    return twin


class _MaskedOutput:
    """A convolution or pooling whose output is 0 in hidden cells."""

    visible_cells: VisibleCells

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x)  # type: ignore[misc]  # of the class that this one is mixed into
        cells = self.visible_cells.on((out.shape[2], out.shape[3], out.shape[4]))
        return out if cells is None else out.mul_(cells.shown)


class _MaskedNorm:
    """An instance normalisation over the visible cells."""

    visible_cells: VisibleCells
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        cells = self.visible_cells.on((x.shape[2], x.shape[3], x.shape[4]))
        if cells is None:
            out: Tensor = super().forward(x)  # type: ignore[misc]
            return out
        return masked_instance_norm(x, cells, self.weight, self.bias, self.eps)


MINDFUL = (_MaskedOutput, _MaskedNorm)
"""Bases of the modules of a copied tree that look at what is hidden."""


@cache
def _sparse_type(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass that minds what is hidden, `cls` itself where there is nothing to mind."""
    if issubclass(cls, nn.InstanceNorm3d):
        return type(cls.__name__, (_MaskedNorm, cls), {})
    if issubclass(cls, nn.Conv3d | nn.AvgPool3d | nn.MaxPool3d):
        return type(cls.__name__, (_MaskedOutput, cls), {})
    return cls
