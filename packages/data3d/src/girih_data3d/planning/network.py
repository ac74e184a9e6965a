"""Encoder and neck of a plan as descriptions, for a topology; what girih_backbones builds from them."""

from dataclasses import dataclass
from typing import Any, Literal

from girih_data3d.planning.topology import PYRAMID_CHANNELS, Topology

Encoder = Literal["resenc_l", "retina_unet"]

BLOCKS = (1, 3, 4, 6, 6, 6)
"""Residual blocks per stage of ResEncL (Isensee et al. 2024, "nnU-Net Revisited"); stages beyond the sixth have 6."""
CONVS = 2
"""Convolutions per stage of Retina U-Net's plain encoder (Baumgartner et al. 2021)."""
SMALLEST_WIDTH = 8
"""Of the pyramid's finest maps."""
ANCHORS = 27


@dataclass(frozen=True)
class Network:
    """Retina U-Net on an encoder with U-FPN, with its segmentation head."""

    topology: Topology
    encoder: Encoder
    in_channels: int
    classes: int

    @property
    def depth(self) -> tuple[int, ...]:
        """Residual blocks or convolutions of each stage."""
        stages = len(self.topology.kernels)
        if self.encoder == "retina_unet":
            return (CONVS,) * stages
        return tuple(BLOCKS[min(stage, len(BLOCKS) - 1)] for stage in range(stages))

    @property
    def pyramid_channels(self) -> tuple[int, ...]:
        """Of each map: 128 from the first detection level on, half of the next before it, at least 8."""
        first = self.topology.levels[0]
        return tuple(
            max(SMALLEST_WIDTH, PYRAMID_CHANNELS >> max(0, first - stage))
            for stage in range(len(self.topology.kernels))
        )

    def describe_encoder(self) -> dict[str, Any]:
        """Return {"class", "kwargs"} of the encoder."""
        kwargs: dict[str, Any] = {
            "channels": list(self.topology.channels),
            "downsampling": [list(step) for step in self.topology.downsampling],
            "kernels": [list(kernel) for kernel in self.topology.kernels],
        }
        if self.encoder == "retina_unet":
            more = {"convs": list(self.depth), "activation": "leaky_relu", "bias": False, "init": "he_fan_out"}
            return {"class": "PlainEncoder", "kwargs": {**kwargs, **more}}
        return {"class": "ResidualEncoder", "kwargs": {**kwargs, "blocks": list(self.depth), "init": "torch"}}

    def describe_neck(self) -> dict[str, Any]:
        """Return {"class", "kwargs"} of the neck."""
        kwargs = {"out_channels": PYRAMID_CHANNELS, "first_level": self.topology.levels[0], "init": "he_fan_out"}
        return {"class": "UFPN", "kwargs": kwargs}
