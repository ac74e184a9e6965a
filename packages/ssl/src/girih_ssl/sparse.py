"""Sparse execution of a dense encoder: its own modules and weights, blind to the hidden blocks of a volume."""

from functools import cache
from typing import cast

import torch
from torch import Tensor, nn

from girih_ssl.interfaces import Encoder
from girih_ssl.masked_norm import masked_instance_norm
from girih_ssl.visible_cells import VisibleCells


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
