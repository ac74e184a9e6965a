"""The maps that a transformer reads, brought to one width."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

GROUPS = 16  # nnDetection v2, `def_detr`; the 2D original has 32 for 256 channels


class ChannelMapper(nn.Module):
    """Per map a 1^3 convolution and a GroupNorm of 16 groups, without activation.

    It is the "point-wise convolution" between the encoder and the transformer.

    Args:
        channels: width of every map.
        dim: width of every map afterwards, a multiple of 16.

    Raises:
        ValueError: 16 does not divide `dim`, or no map at all.
    """

    def __init__(self, channels: Sequence[int], dim: int) -> None:
        super().__init__()
        if len(channels) == 0:
            raise ValueError("channels are empty, wanted the width of one map or more")
        if dim < 1 or dim % GROUPS != 0:
            raise ValueError(f"dim is {dim}, wanted a multiple of the {GROUPS} groups of the GroupNorm")
        self.maps = nn.ModuleList(
            nn.Sequential(nn.Conv3d(width, dim, 1), nn.GroupNorm(GROUPS, dim)) for width in channels
        )
        for convolution in self.modules():
            if isinstance(convolution, nn.Conv3d):  # as Deformable DETR's `input_proj`
                nn.init.xavier_uniform_(convolution.weight)
                nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, maps: Sequence[Tensor]) -> list[Float[Tensor, "b dim d h w"]]:
        """Return the maps, each `dim` wide."""
        return [mapper(x) for mapper, x in zip(self.maps, maps, strict=True)]
