"""The U-shaped feature pyramid of Retina U-Net (Jaeger et al. 2020): an FPN that goes down to the finest map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from girih_backbones.topology import Triples, positive_integers, triples
from girih_backbones.unet import check_maps, steps_between
from girih_backbones.units import Init, initialise

MIN_CHANNELS = 8  # nnDetection's floor for the halved fine levels


class UFPN(nn.Module):
    """Lateral convolution of size 1, added to the coarser map sent up; one output convolution of size 3 per level.

    Levels from `first_level` on have `out_channels`; each finer level has half of the next, at least 8. The way up is
    a transposed convolution (kernel = step). All convolutions have a bias; there is no norm and no activation, as in
    nnDetection. Map i of the output has the grid of map i of the input, finest first.

    Nobody may read all of these maps, and what nobody reads gets no gradient and wastes time: name those that are read
    in `outputs`. Another map has no output convolution; finer than the finest of `outputs`, it is the encoder's own.

    Args:
        channels: channels of the encoder's maps, finest first.
        strides: voxels per cell of the encoder's maps, (z, y, x).
        out_channels: channels of the levels that detection heads share.
        first_level: finest of those levels; nnDetection: 2 with 6 maps, 1 with 5.
        outputs: the maps that are read; None: all, as nnDetection.
        init: starting values, "torch", "he" or "he_fan_out", see `initialise`.

    Raises:
        ValueError: lengths differ, a stride is not a multiple of the one before, or there is no such level.
    """

    channels: tuple[int, ...]
    strides: Triples

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        *,
        out_channels: int = 128,
        first_level: int = 2,
        outputs: Sequence[int] | None = None,
        init: Init = "torch",
    ) -> None:
        super().__init__()
        self._in_channels = positive_integers("channels", channels)
        (width,) = positive_integers("out_channels", (out_channels,))
        n = len(self._in_channels)
        if not 0 <= first_level < n:
            raise ValueError(f"first_level: found {first_level}, wanted 0 to {n - 1} for {n} maps")
        read = range(n) if outputs is None else sorted(set(outputs))
        if len(read) == 0 or not all(0 <= level < n for level in read):
            raise ValueError(f"outputs: found {outputs}, wanted at least one of 0 to {n - 1}")
        self.strides = triples("strides", strides, n)
        self.kwargs: dict[str, Any] = {"out_channels": width, "first_level": first_level, "init": init}
        if outputs is not None:
            self.kwargs["outputs"] = list(read)
        self._fused = fused = range(read[0], n)
        widths = [
            width if level >= first_level else max(MIN_CHANNELS, width >> (first_level - level)) for level in range(n)
        ]
        self.channels = (*self._in_channels[: fused.start], *widths[fused.start :])
        steps = steps_between(self.strides)
        # Named by level, so that a pyramid with fewer outputs has the names of one with all.
        self.lateral = nn.ModuleDict({str(i): nn.Conv3d(self._in_channels[i], widths[i], 1) for i in fused})
        self.up = nn.ModuleDict(
            {str(i): nn.ConvTranspose3d(widths[i + 1], widths[i], steps[i], steps[i]) for i in fused[:-1]}
        )
        self.out = nn.ModuleDict({str(i): nn.Conv3d(widths[i], widths[i], 3, padding=1) for i in read})
        initialise(self, init)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the pyramid, finest first: (n, channels[i], z, y, x) on the grid of the encoder's map i.

        Raises:
            ValueError: the channels of `maps` are not those given at construction.
        """
        check_maps(maps, self._in_channels)
        pyramid = list(maps)
        x: Tensor | None = None
        for i in reversed(self._fused):
            level = str(i)
            here = self.lateral[level](maps[i])
            x = here if x is None else here + self.up[level](x)
            pyramid[i] = self.out[level](x) if level in self.out else x
        return pyramid
