"""Deep supervision: which maps of a neck have a loss, how much each counts, and the labels on their grids."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.func import functional_call

from girih_ssl.interfaces import Encoder, Neck, Triple


def supervised_levels(encoder: Encoder, neck: Neck, *, deep: bool) -> tuple[int, ...]:
    """Return the levels of the neck that have a loss, finest first.

    These are the maps that the neck makes, without the coarsest (if it makes more than one), as in nnU-Net; with
    `deep=False` the finest of them alone. What a neck passes on as it came from the encoder it does not make: a U-Net
    decoder the coarsest map, a pyramid with few outputs the fine ones. Which they are is found by running the neck
    on torch's meta device, without memory and without computation.

    Raises:
        ValueError: the neck makes no map, or has a parameter that leads to none of these levels and would get no
            gradient.
    """
    network: Any = neck
    given = [
        torch.empty(1, width, *(2 * c // s for c, s in zip(encoder.strides[-1], stride, strict=True)), device="meta")
        for width, stride in zip(encoder.channels, encoder.strides, strict=True)
    ]
    state = {
        name: tensor.detach().to("meta").requires_grad_(tensor.requires_grad)
        for name, tensor in (*network.named_parameters(), *network.named_buffers())
    }
    maps = functional_call(network, state, (list(given),))
    made = [level for level, m in enumerate(maps) if all(m is not g for g in given)]
    if not made:
        raise ValueError(f"neck: found {type(neck).__name__} that returns the encoder's maps, wanted maps of its own")
    levels = tuple(made[:-1] or made) if deep else (made[0],)
    trained = {name: tensor for name, tensor in state.items() if tensor.requires_grad}
    outputs = [maps[level].sum() for level in levels if maps[level].requires_grad]
    gradients = torch.autograd.grad(outputs, list(trained.values()), allow_unused=True) if outputs else ()
    unused = [name for name, gradient in zip(trained, gradients, strict=False) if gradient is None]
    if unused:
        raise ValueError(
            f"neck: found {', '.join(unused[:3])}{', ...' * (len(unused) > 3)} that no supervised map depends on, "
            f"wanted a {type(neck).__name__} without: the supervised maps are {levels} of {len(maps)}, finest first"
        )
    return levels


def level_weights(levels: int) -> tuple[float, ...]:
    """Return the weights of so many levels, finest first: 2^-l over their sum (nnU-Net, Isensee et al. 2021)."""
    total = sum(2.0**-level for level in range(levels))
    return tuple(2.0**-level / total for level in range(levels))


def at_strides(labels: Int[Tensor, "n z y x"], strides: Triple) -> Int[Tensor, "n z2 y2 x2"]:
    """Return the label of every cell of a map: that of the voxel in which the centre of the cell lies.

    Cell i of stride s covers the voxels i s to i s + s - 1 and takes voxel i s + s // 2, of an even number the upper of
    the two in the middle; it is torch's "nearest-exact". A view, nothing is copied.
    """
    z, y, x = strides
    return labels[:, z // 2 :: z, y // 2 :: y, x // 2 :: x]
