"""An encoder and a neck as one network."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from girih_backbones.encoder import Encoder
from girih_backbones.interfaces import Neck
from girih_backbones.topology import Triples


class FeaturePyramid(nn.Module):
    """forward(x) = neck(encoder(x)): maps, finest first.

    Attributes:
        encoder: gives the neck its maps; its weights are what transfer moves.
        neck: a module that takes and returns a list of maps and has `channels` and `strides`.
        channels: channels of every map of the neck.
        strides: voxels of the image per cell of every map of the neck, (z, y, x).
    """

    channels: tuple[int, ...]
    strides: Triples

    def __init__(self, encoder: Encoder, neck: Neck) -> None:
        super().__init__()
        self.encoder = encoder
        self.neck = neck
        self.channels = neck.channels
        self.strides = neck.strides

    def forward(self, x: Float[Tensor, "n c z y x"]) -> list[Tensor]:
        """Return the maps of the neck, (n, channels[i], z / strides[i][0], y / strides[i][1], x / strides[i][2])."""
        return self.neck(self.encoder(x))
