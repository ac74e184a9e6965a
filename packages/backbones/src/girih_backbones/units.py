"""The one convolution unit that every network here is made of, and how its weights start."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from girih_backbones.topology import Triple

Activation: TypeAlias = Literal["leaky_relu", "relu"]
Init: TypeAlias = Literal["torch", "he", "he_fan_out", "he_zero_last_norm"]

NEGATIVE_SLOPE = 0.01  # of every LeakyReLU, and of the gain of the He initialisation, as in nnU-Net


class ConvUnit(nn.Module):
    """Convolution, instance normalisation (affine, eps 1e-5, no running statistics) and, unless None, an activation.

    Made of modules only, so that hooks see every convolution and every normalisation. An odd `kernel` with half
    of it as padding: (n, c, z, y, x) becomes (n, out_channels, ceil(z / stride), ...).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: Triple = (3, 3, 3),
        stride: Triple = (1, 1, 1),
        bias: bool = True,
        activation: Activation | None = "leaky_relu",
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride, padding, bias=bias)
        self.norm = InstanceNorm(out_channels, eps=1e-5, affine=True)
        self.act = nn.Identity() if activation is None else make_activation(activation)

    def forward(self, x: Float[Tensor, "n c z y x"]) -> Float[Tensor, "n d z2 y2 x2"]:
        """Return act(norm(conv(x)))."""
        out: Tensor = self.act(self.norm(self.conv(x)))
        return out


class InstanceNorm(nn.InstanceNorm3d):
    """`nn.InstanceNorm3d` (affine, no running statistics), bit for bit, but its output is no view.

    Where an activation changes a view in place, autograd copies the gradient three times on its way back. PyTorch's
    own module returns a view, of a batch normalisation with a channel for every channel of every image.
    """

    def forward(self, x: Float[Tensor, "n c z y x"]) -> Float[Tensor, "n c z y x"]:
        """Return the normalised maps."""
        n, c, *grid = x.shape
        weight, bias = self.weight.repeat(n), self.bias.repeat(n)
        y = F.batch_norm(x.contiguous().view(1, n * c, *grid), None, None, weight, bias, training=True, eps=self.eps)
        out: Tensor = torch.ops.aten._unsafe_view(y, x.shape)  # a reshape that autograd does not take for a view
        return out


def make_activation(name: Activation) -> nn.Module:
    """Return the named activation, in place.

    Raises:
        ValueError: the name is not one of "leaky_relu", "relu".
    """
    if name == "leaky_relu":
        return nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)
    if name == "relu":
        return nn.ReLU(inplace=True)
    raise ValueError(f"activation: found {name!r}, wanted 'leaky_relu' or 'relu'")


def initialise(module: nn.Module, init: Init) -> None:
    """Set the starting values of every (transposed) convolution inside `module`.

    "torch" leaves PyTorch's default (kaiming uniform, a = sqrt 5), as nnssl does for pre-training. "he" and
    "he_zero_last_norm" draw kaiming normal with fan in and a = 0.01, bias 0, as nnU-Net does; "he_fan_out" with fan
    out, as nnDetection v2 does. The zero of "he_zero_last_norm" is the residual encoder's own affair.

    Raises:
        ValueError: an unknown name.
    """
    if init not in ("torch", "he", "he_fan_out", "he_zero_last_norm"):
        raise ValueError(f"init: found {init!r}, wanted 'torch', 'he', 'he_fan_out' or 'he_zero_last_norm'")
    if init == "torch":
        return
    mode: Literal["fan_in", "fan_out"] = "fan_out" if init == "he_fan_out" else "fan_in"
    for part in module.modules():
        if isinstance(part, nn.Conv3d | nn.ConvTranspose3d) and not part.weight.is_meta:
            nn.init.kaiming_normal_(part.weight, a=NEGATIVE_SLOPE, mode=mode)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
