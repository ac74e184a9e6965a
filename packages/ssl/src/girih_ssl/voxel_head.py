"""From a neck's finest map to one value per voxel and channel."""

from torch import Tensor, nn
from torch.nn import functional as F

from girih_ssl.interfaces import Triple


class VoxelHead(nn.Module):
    """A 1 x 1 x 1 convolution of the finest map, then, if that map is coarser than the volume, trilinear upsampling.

    Args:
        in_channels: channels of the finest map.
        out_channels: channels of the volume.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size=1)

    def forward(self, maps: list[Tensor], patch_zyx: Triple) -> Tensor:
        """Return (B, out_channels, Z, Y, X) from maps that are listed finest first."""
        output: Tensor = self.conv(maps[0])
        if tuple(output.shape[2:]) == patch_zyx:
            return output
        return F.interpolate(output, size=patch_zyx, mode="trilinear", align_corners=False)
