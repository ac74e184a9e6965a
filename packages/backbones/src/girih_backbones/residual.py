"""The residual encoder of nnU-Net (Isensee et al. 2024, "nnU-Net Revisited"); its defaults are the ResEncL preset."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from girih_backbones.encoder import Encoder, Stages
from girih_backbones.topology import Triple, make_topology, positive_integers
from girih_backbones.units import NEGATIVE_SLOPE, ConvUnit, Init, initialise


class ResidualEncoder(Encoder):
    """A stem of one convolution unit and stages of residual blocks; the first block of a stage takes the step.

    Args:
        in_channels: channels of the image.
        channels: channels of every stage, finest first; the stem has as many as the first stage.
        downsampling: step of every stage against the one before, (z, y, x); None is 1, then 2. The cumulative
            voxels per cell are the attribute `strides`.
        kernels: odd kernel size of every stage, (z, y, x), the first also the stem's; None is 3 everywhere.
        blocks: residual blocks of every stage.
        init: starting values, see `initialise`; "he_zero_last_norm" also sets the weight and bias of the last
            normalisation of every block to zero, so that a block starts as its skip.

    Raises:
        ValueError: lengths differ, an entry is not a positive whole number, a kernel is even, an unknown init.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        channels: Sequence[int] = (32, 64, 128, 256, 320, 320),
        downsampling: Sequence[Sequence[int]] | None = None,
        kernels: Sequence[Sequence[int]] | None = None,
        blocks: Sequence[int] = (1, 3, 4, 6, 6, 6),
        init: Init = "torch",
    ) -> None:
        super().__init__()
        topology = make_topology(channels, downsampling, kernels, blocks, depth_name="blocks")
        (self.in_channels,) = positive_integers("in_channels", (in_channels,))
        self.channels = topology.channels
        self.strides = topology.strides
        self.kwargs = {
            "channels": list(topology.channels),
            "downsampling": [list(step) for step in topology.downsampling],
            "kernels": [list(kernel) for kernel in topology.kernels],
            "blocks": list(topology.depth),
            "init": init,
        }
        self._stem_kernel, self._init = topology.kernels[0], init
        self.stem = self.new_stem(self.in_channels)
        stages: list[nn.Module] = []
        width = topology.channels[0]
        for out, step, kernel, depth in zip(
            topology.channels, topology.downsampling, topology.kernels, topology.depth, strict=True
        ):
            first = ResidualBlock(width, out, kernel=kernel, stride=step)
            stages.append(nn.Sequential(first, *(ResidualBlock(out, out, kernel=kernel) for _ in range(depth - 1))))
            width = out
        self.stages = Stages(stages, topology.strides)  # the stem keeps the grid
        initialise(self.stages, init)
        if init == "he_zero_last_norm":
            for block in self.stages.modules():
                if isinstance(block, ResidualBlock):
                    nn.init.zeros_(block.conv2.norm.weight)
                    nn.init.zeros_(block.conv2.norm.bias)

    def new_stem(self, in_channels: int) -> nn.Module:
        """Return a freshly initialised stem for images of `in_channels` channels; the encoder is not changed."""
        (in_channels,) = positive_integers("in_channels", (in_channels,))
        stem = ConvUnit(in_channels, self.channels[0], kernel=self._stem_kernel)
        initialise(stem, self._init)
        return stem


class ResidualBlock(nn.Module):
    """Two convolution units around a skip: act(norm(conv(unit(x))) + skip(x)).

    The skip is the identity where it can be. A step is average pooling over its cells; a change of width is a
    convolution of size 1 without bias, normalised. Pooling comes first.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel: Triple = (3, 3, 3), stride: Triple = (1, 1, 1)
    ) -> None:
        super().__init__()
        self.conv1 = ConvUnit(in_channels, out_channels, kernel=kernel, stride=stride)
        self.conv2 = ConvUnit(out_channels, out_channels, kernel=kernel, activation=None)
        skip: OrderedDict[str, nn.Module] = OrderedDict()
        if stride != (1, 1, 1):
            skip["pool"] = nn.AvgPool3d(stride, stride)
        if in_channels != out_channels:
            skip["proj"] = ConvUnit(in_channels, out_channels, kernel=(1, 1, 1), bias=False, activation=None)
        self.skip = nn.Sequential(skip)
        self.act = nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)

    def forward(self, x: Float[Tensor, "n c z y x"]) -> Float[Tensor, "n d z2 y2 x2"]:
        """Return (n, out_channels, z / stride, y / stride, x / stride)."""
        skip = self.skip(x)
        total = self.conv2(self.conv1(x)).add_(skip)  # in place: nothing else reads what conv2 returned
        out: Tensor = self.act(total)
        return out
