"""What a network costs for a patch, counted without memory and without a forward pass over numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from girih_backbones.encoder import Encoder
from girih_backbones.pyramid import FeaturePyramid
from girih_backbones.topology import positive_integers


@dataclass(frozen=True)
class Counts:
    """What one image costs.

    Attributes:
        parameters: elements of all parameters.
        activations: elements of the outputs of all convolutions, the unit of nnU-Net's memory planning.
        multiply_accumulates: of all convolutions in a forward pass, padding counted as if it were image. What else
            there is (normalisation, activation, pooling) grows with the activations and is left out.
    """

    parameters: int
    activations: int
    multiply_accumulates: int


def count(network: Encoder | FeaturePyramid, patch_zyx: Sequence[int]) -> Counts:
    """Count parameters, activations and multiply-accumulates of a network for one image of `patch_zyx` voxels.

    The network may lie on any device, also on "meta"; it is not changed, and nothing of the size of a map is
    allocated.

    Raises:
        ValueError: the network does not take such a patch.
    """
    encoder = network.encoder if isinstance(network, FeaturePyramid) else network
    patch = positive_integers("patch", patch_zyx)
    if len(patch) != 3:
        raise ValueError(f"patch: found {patch}, wanted three numbers (z, y, x)")
    shapes = {
        name: torch.empty_like(tensor, device="meta")
        for tensors in (network.named_parameters(), network.named_buffers())
        for name, tensor in tensors
    }
    dtype = next((tensor.dtype for tensor in shapes.values()), None)
    image = torch.empty(1, encoder.in_channels, *patch, device="meta", dtype=dtype)
    with torch.no_grad(), _Convolutions() as seen:
        functional_call(network, shapes, (image,))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Counts(parameters, seen.activations, seen.multiply_accumulates)


class _Convolutions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the convolutions that run inside it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.activations = 0
        self.multiply_accumulates = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run `func`, and count it if it is a convolution."""
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            image, weight, transposed = args[0], args[1], args[6]
            self.activations += out.numel()
            self.multiply_accumulates += _multiply_accumulates(image, weight, out, transposed=transposed)
        return out


def _multiply_accumulates(image: Tensor, weight: Tensor, out: Tensor, *, transposed: bool) -> int:
    """A convolution reads one window for each output, a transposed one writes one window for each input."""
    window = prod(weight.shape[1:])
    return (image if transposed else out).numel() * window
