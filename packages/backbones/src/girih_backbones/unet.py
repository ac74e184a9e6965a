"""The U-Net decoder of nnU-Net as a neck: from the encoder's maps to decoded maps of the same shapes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from girih_backbones.activation_checkpointing import Checkpointable
from girih_backbones.topology import Triple, Triples, positive_integers, triples
from girih_backbones.units import ConvUnit, Init, initialise


class UNetDecoder(Checkpointable):
    """Transposed convolution (kernel = step, bias), concatenation (up, skip), one convolution unit, per level.

    Map i of the output has the channels and the grid of map i of the input, finest first. The coarsest map is passed
    on as it is, so that the levels of the encoder and of the neck have the same numbers; a reconstruction reads map 0.
    There are no output heads.

    Args:
        channels: channels of the encoder's maps, finest first.
        strides: voxels per cell of the encoder's maps, (z, y, x).
        kernels: odd kernel size of the convolution unit of every level but the coarsest; None is 3 everywhere.
        init: starting values, "torch", "he" or "he_fan_out", see `initialise`.

    Raises:
        ValueError: lengths differ, or a stride is not a multiple of the one before.
    """

    channels: tuple[int, ...]
    strides: Triples

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        *,
        kernels: Sequence[Sequence[int]] | None = None,
        init: Init = "torch",
    ) -> None:
        super().__init__()
        self.channels = positive_integers("channels", channels)
        self.strides = triples("strides", strides, len(self.channels))
        steps = steps_between(self.strides)
        sizes = ((3, 3, 3),) * len(steps) if kernels is None else triples("kernels", kernels, len(steps))
        self.kwargs = {"kernels": [list(size) for size in sizes], "init": init}
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(self.channels[level + 1], self.channels[level], step, step)
            for level, step in enumerate(steps)
        )
        self.fuse = nn.ModuleList(
            ConvUnit(2 * width, width, kernel=size) for width, size in zip(self.channels[:-1], sizes, strict=True)
        )
        initialise(self, init)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the decoded maps, finest first, each of the shape of the encoder's map (n, channels[i], z, y, x).

        Raises:
            ValueError: the channels of `maps` are not `channels`.
        """
        check_maps(maps, self.channels)
        x = maps[-1]
        decoded = [x]
        for level in reversed(range(len(self.up))):
            x = self.run_part(partial(self._decode, level), x, maps[level])
            decoded.append(x)
        return decoded[::-1]

    def _decode(self, level: int, below: Tensor, skip: Tensor) -> Tensor:
        out: Tensor = self.fuse[level](torch.cat((self.up[level](below), skip), dim=1))
        return out


def steps_between(strides: Triples) -> Triples:
    """Return strides[i + 1] / strides[i], or raise ValueError where that is not whole."""
    steps: list[Triple] = []
    for level, (fine, coarse) in enumerate(pairwise(strides)):
        if any(c % f for f, c in zip(fine, coarse, strict=True)):
            raise ValueError(f"strides[{level + 1}]: found {coarse}, wanted multiples of strides[{level}] = {fine}")
        steps.append((coarse[0] // fine[0], coarse[1] // fine[1], coarse[2] // fine[2]))
    return tuple(steps)


def check_maps(maps: Sequence[Tensor], channels: tuple[int, ...]) -> None:
    """Refuse maps whose channels are not the wanted ones."""
    found = tuple(m.shape[1] for m in maps)
    if found != channels:
        raise ValueError(f"maps: found channels {found}, wanted {channels}")
