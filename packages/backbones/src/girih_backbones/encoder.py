"""What every encoder here has in common: a stem, stages, and what it says about itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from girih_backbones.activation_checkpointing import Checkpointable
from girih_backbones.topology import Triples, check_patch


class Encoder(Checkpointable, ABC):
    """forward(x) = stages(stem(x)): one map per stage, finest first.

    Attributes:
        in_channels: channels of the image.
        channels: channels of every map.
        strides: voxels of the image per cell of every map, (z, y, x).
        kwargs: the constructor's keyword arguments as JSON holds them, complete: no default is left out.
        stem: first convolution unit; replace it or keep several for images with other numbers of channels.
        stages: the rest; `stages(h)` takes the stem's output.
        checkpointing: whether the stem is recomputed in the backward pass, see `set_checkpointing`.
    """

    in_channels: int
    channels: tuple[int, ...]
    strides: Triples
    kwargs: dict[str, Any]
    stem: nn.Module
    stages: Stages

    @abstractmethod
    def new_stem(self, in_channels: int) -> nn.Module:
        """Return a freshly initialised stem for images of `in_channels` channels; the encoder is not changed.

        Raises:
            ValueError: `in_channels` is not a positive whole number.
        """

    def forward(self, x: Float[Tensor, "n c z y x"]) -> list[Tensor]:
        """Return the map of every stage, (n, channels[i], z / strides[i][0], y / strides[i][1], x / strides[i][2]).

        Raises:
            ValueError: not five axes, the number of channels is not `in_channels`, or `strides[-1]` does not divide the
                patch, or leaves a single cell of it.
        """
        if x.ndim != 5:
            raise ValueError(f"image: found shape {tuple(x.shape)}, wanted (n, c, z, y, x)")
        if x.shape[1] != self.in_channels:
            raise ValueError(f"image: found {x.shape[1]} channels, wanted {self.in_channels}")
        check_patch(x.shape[2:], self.strides)
        return self.stages(self.run_part(self.stem, x))  # type: ignore[no-any-return]


class Stages(nn.ModuleList, Checkpointable):
    """Stages run one after the other; every output is kept."""

    def __init__(self, stages: Iterable[nn.Module], strides: Triples) -> None:
        """Take the modules and, for each, the cells of the stages' input per cell of its output."""
        super().__init__(stages)
        self._strides = strides

    def forward(self, h: Float[Tensor, "n c z y x"]) -> list[Tensor]:
        """Return the output of every stage, finest first, for the output `h` of a stem.

        Raises:
            ValueError: the last stride does not divide the grid of `h`, or leaves a single cell of it.
        """
        check_patch(h.shape[2:], self._strides)
        maps: list[Tensor] = []
        for stage in self:
            h = self.run_part(stage, h)
            maps.append(h)
        return maps
