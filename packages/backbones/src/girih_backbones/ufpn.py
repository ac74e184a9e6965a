"""The U-shaped feature pyramid of Retina U-Net (Jaeger et al. 2020): an FPN that goes down to the finest map."""

from __future__ import annotations

from collections.abc import Sequence

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

    Args:
        channels: channels of the encoder's maps, finest first.
        strides: voxels per cell of the encoder's maps, (z, y, x).
        out_channels: channels of the levels that detection heads share.
        first_level: finest of those levels; nnDetection: 2 with 6 maps, 1 with 5.
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
        init: Init = "torch",
    ) -> None:
        super().__init__()
        self._in_channels = positive_integers("channels", channels)
        (width,) = positive_integers("out_channels", (out_channels,))
        n = len(self._in_channels)
        if not 0 <= first_level < n:
            raise ValueError(f"first_level: found {first_level}, wanted 0 to {n - 1} for {n} maps")
        self.strides = triples("strides", strides, n)
        self.channels = tuple(
            width if level >= first_level else max(MIN_CHANNELS, width >> (first_level - level)) for level in range(n)
        )
        self.kwargs = {"out_channels": width, "first_level": first_level, "init": init}
        self.lateral = nn.ModuleList(
            nn.Conv3d(found, out, 1) for found, out in zip(self._in_channels, self.channels, strict=True)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(self.channels[level + 1], self.channels[level], step, step)
            for level, step in enumerate(steps_between(self.strides))
        )
        self.out = nn.ModuleList(nn.Conv3d(out, out, 3, padding=1) for out in self.channels)
        initialise(self, init)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the pyramid, finest first: (n, channels[i], z, y, x) on the grid of the encoder's map i.

        Raises:
            ValueError: the channels of `maps` are not those given at construction.
        """
        check_maps(maps, self._in_channels)
        x = self.lateral[-1](maps[-1])
        pyramid = [self.out[-1](x)]
        for level in reversed(range(len(self.up))):
            x = self.lateral[level](maps[level]) + self.up[level](x)
            pyramid.append(self.out[level](x))
        return pyramid[::-1]
