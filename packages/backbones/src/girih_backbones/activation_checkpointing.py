"""Less memory for more time: parts of a network that keep only their input and run again for the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Checkpointable(nn.Module):
    """A module whose parts can be recomputed (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost")."""

    checkpointing: bool = False
    """Whether every part keeps only its input for the backward pass."""

    def run_part(self, part: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Return part(*inputs), remembering only the inputs if `checkpointing` and a gradient will be taken."""
        if self.checkpointing and torch.is_grad_enabled():
            out: Tensor = checkpoint(part, *inputs, use_reentrant=False)
            return out
        return part(*inputs)


def set_checkpointing(module: nn.Module, on: bool = True) -> None:
    """Recompute the activations of every encoder and U-Net decoder inside `module` in the backward pass, or keep them.

    The stem, every stage and every level of a decoder then keep only their input, and run a second time when the
    backward pass reaches them: about a third more time. Values, gradients and the names of tensors stay the same.
    A forward hook that changes values must do the same in both runs.

    Raises:
        ValueError: there is neither an encoder nor a U-Net decoder in `module`.
    """
    parts = [part for part in module.modules() if isinstance(part, Checkpointable)]
    if not parts:
        raise ValueError(f"module: found {type(module).__name__} without an encoder or U-Net decoder of this package")
    for part in parts:
        part.checkpointing = on
