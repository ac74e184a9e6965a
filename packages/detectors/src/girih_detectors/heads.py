"""The towers that read a feature pyramid: one classifies anchors, one shifts them, both shared by all levels.

conv 3^3 (no bias) - GroupNorm - activation, twice, then a 3^3 convolution with bias: nnDetection's heads, with ReLU in
v0.1 and LeakyReLU in v2. The flat order of the output is that of `AnchorGrid`: cell, then anchor.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

CHANNELS_PER_GROUP = 16  # 8 groups for nnDetection's 128 channels
INITIAL_STD = 0.01  # Lin et al. 2017, section 4.1, "Initialization"
PRIOR = 0.01  # idem: every anchor starts as background with this probability of being an object

Activation = Literal["leaky_relu", "relu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"leaky_relu": nn.LeakyReLU, "relu": nn.ReLU}


class ClassHead(nn.Module):
    """Logits of every class at every anchor, from maps of one width."""

    def __init__(
        self, in_channels: int, channels: int, anchors: int, classes: int, *, activation: Activation = "leaky_relu"
    ) -> None:
        super().__init__()
        self.classes = classes
        self.tower = _tower(in_channels, channels, activation)
        self.output = nn.Conv3d(channels, anchors * classes, 3, padding=1)
        _initialise(self)
        nn.init.constant_(self.output.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]  # it has one

    def forward(self, maps: Sequence[Tensor]) -> Float[Tensor, "b n classes"]:
        """Return the logits of all anchors of all levels."""
        return torch.cat([_flatten(self.output(self.tower(x)), self.classes) for x in maps], dim=1)


class BoxHead(nn.Module):
    """The six deltas of every anchor; each level scales them by a learnt number."""

    def __init__(
        self, in_channels: int, channels: int, anchors: int, levels: int, *, activation: Activation = "leaky_relu"
    ) -> None:
        super().__init__()
        self.tower = _tower(in_channels, channels, activation)
        self.output = nn.Conv3d(channels, anchors * 6, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(levels))
        _initialise(self)

    def forward(self, maps: Sequence[Tensor]) -> Float[Tensor, "b n 6"]:
        """Return the deltas (see `coder`) of all anchors of all levels."""
        scaled = [self.output(self.tower(x)) * scale for x, scale in zip(maps, self.scales, strict=True)]
        return torch.cat([_flatten(x, 6) for x in scaled], dim=1)


class SegmentationHead(nn.Module):
    """Background and foreground logits of every voxel, from the finest map."""

    def __init__(self, in_channels: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.stride = stride
        self.output = nn.Conv3d(in_channels, 2, 1)

    def forward(self, finest: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b 2 z y x"]:
        """Return the logits on the input grid (trilinear, if the map is coarser)."""
        logits: Tensor = self.output(finest)
        if self.stride == (1, 1, 1):
            return logits
        factor = tuple(float(s) for s in self.stride)
        return nn.functional.interpolate(logits, scale_factor=factor, mode="trilinear", align_corners=False)


def _tower(in_channels: int, channels: int, activation: Activation) -> nn.Sequential:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}, wanted one of {sorted(ACTIVATIONS)}")
    units: list[nn.Module] = []
    for width in (in_channels, channels):
        units += [
            nn.Conv3d(width, channels, 3, padding=1, bias=False),
            nn.GroupNorm(_groups(channels), channels),
            ACTIVATIONS[activation](inplace=True),
        ]
    return nn.Sequential(*units)


def _groups(channels: int) -> int:
    """Groups of 16 channels, or the next fewer groups that divide a width that 16 does not."""
    return next(g for g in range(max(1, channels // CHANNELS_PER_GROUP), 0, -1) if channels % g == 0)


def _flatten(x: Float[Tensor, "b ak d h w"], k: int) -> Float[Tensor, "b dhwa k"]:
    """(B, A*K, D, H, W) -> (B, D, H, W, A*K) -> (B, D*H*W*A, K)."""
    return x.permute(0, 2, 3, 4, 1).reshape(x.shape[0], -1, k)


def _initialise(head: nn.Module) -> None:
    for module in head.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.normal_(module.weight, std=INITIAL_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
