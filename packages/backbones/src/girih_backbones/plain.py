"""The plain convolutional encoder of Retina U-Net (Jaeger et al. 2020; nnDetection, Baumgartner et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from girih_backbones.encoder import Encoder, Stages
from girih_backbones.topology import make_topology, positive_integers
from girih_backbones.units import Activation, ConvUnit, Init, initialise


class PlainEncoder(Encoder):
    """Stages of convolution units; the first unit of a stage takes the step. The stem is the first unit of stage 0.

    Args:
        in_channels: channels of the image.
        channels: channels of every stage, finest first.
        downsampling: step of every stage against the one before, (z, y, x); None is 1, then 2. The cumulative
            voxels per cell are the attribute `strides`.
        kernels: odd kernel size of every stage, (z, y, x); None is 3 everywhere.
        convs: convolution units of every stage, the stem counted in the first.
        activation: "leaky_relu" (slope 0.01) or "relu".
        bias: whether the convolutions have a bias.
        init: starting values, see `initialise`; "he_zero_last_norm" does not apply, there is no residual block.

    Raises:
        ValueError: lengths differ, an entry is not a positive whole number, a kernel is even, an unknown name.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        channels: Sequence[int] = (32, 64, 128, 256, 320, 320),
        downsampling: Sequence[Sequence[int]] | None = None,
        kernels: Sequence[Sequence[int]] | None = None,
        convs: Sequence[int] = (2, 2, 2, 2, 2, 2),
        activation: Activation = "leaky_relu",
        bias: bool = False,
        init: Init = "torch",
    ) -> None:
        super().__init__()
        if init == "he_zero_last_norm":
            raise ValueError("init: found 'he_zero_last_norm', wanted 'torch', 'he' or 'he_fan_out'")
        topology = make_topology(channels, downsampling, kernels, convs, depth_name="convs")
        (self.in_channels,) = positive_integers("in_channels", (in_channels,))
        self.channels = topology.channels
        self.strides = topology.strides
        self.kwargs = {
            "channels": list(topology.channels),
            "downsampling": [list(step) for step in topology.downsampling],
            "kernels": [list(kernel) for kernel in topology.kernels],
            "convs": list(topology.depth),
            "activation": activation,
            "bias": bias,
            "init": init,
        }
        self._stem_kernel, self._stem_stride = topology.kernels[0], topology.downsampling[0]
        self._activation, self._bias, self._init = activation, bias, init
        self.stem = self.new_stem(self.in_channels)
        stages: list[nn.Module] = []
        width = topology.channels[0]
        for stage, (out, step, kernel, depth) in enumerate(
            zip(topology.channels, topology.downsampling, topology.kernels, topology.depth, strict=True)
        ):
            units: list[nn.Module] = []
            for unit in range(depth):
                if stage == 0 and unit == 0:
                    continue  # the stem
                stride = step if unit == 0 else (1, 1, 1)
                units.append(ConvUnit(width, out, kernel=kernel, stride=stride, bias=bias, activation=activation))
                width = out
            stages.append(nn.Sequential(*units))
        stem_z, stem_y, stem_x = self._stem_stride
        self.stages = Stages(stages, tuple((z // stem_z, y // stem_y, x // stem_x) for z, y, x in self.strides))
        initialise(self.stages, init)

    def new_stem(self, in_channels: int) -> nn.Module:
        """Return a freshly initialised stem for images of `in_channels` channels; the encoder is not changed."""
        (in_channels,) = positive_integers("in_channels", (in_channels,))
        stem = ConvUnit(
            in_channels,
            self.channels[0],
            kernel=self._stem_kernel,
            stride=self._stem_stride,
            bias=self._bias,
            activation=self._activation,
        )
        initialise(stem, self._init)
        return stem
