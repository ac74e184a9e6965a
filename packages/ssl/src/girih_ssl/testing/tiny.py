"""The smallest network and batch that meet the borders, so that an objective can be tested without another package."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from girih_ssl.interfaces import Batch, DatasetInfo, Parts, Triple

CHANNELS: tuple[int, ...] = (4, 8, 8)
STRIDES: tuple[Triple, ...] = ((1, 1, 1), (2, 2, 2), (4, 4, 4))
OTHER_STRIDES: tuple[Triple, ...] = ((1, 2, 2), (2, 4, 4), (2, 8, 8))
"""Anisotropic, and without a map as fine as the volume: what a method may wrongly take for granted."""
DATASETS = ("overlapping", "disjoint")


class TinyEncoder(nn.Module):
    """Three stages of one convolution, instance norm and leaky ReLU; about 3200 parameters.

    Convolutions have no bias, since the norm after them would cancel it: every parameter has a gradient.

    Args:
        in_channels: channels of the volumes.
        strides: voxels per cell of the three maps; the stem has the first.
    """

    def __init__(self, in_channels: int = 1, strides: tuple[Triple, ...] = STRIDES) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.channels = CHANNELS
        self.strides = strides
        self.stem = _unit(in_channels, CHANNELS[0], strides[0])
        widths, finer = (CHANNELS[0], *CHANNELS[:-1]), (strides[0], *strides[:-1])
        self.stages = _Stages(
            _unit(before, after, _ratio(stride, previous))
            for before, after, stride, previous in zip(widths, CHANNELS, strides, finer, strict=True)
        )

    def forward(self, x: Float[Tensor, "b c z y x"]) -> list[Tensor]:
        """Return three maps, finest first."""
        maps: list[Tensor] = self.stages(self.stem(x))
        return maps


class TinyNeck(nn.Module):
    """Top-down sums of 1 x 1 x 1 convolutions of the encoder's maps; every parameter leads to the finest map."""

    def __init__(self, channels: tuple[int, ...] = CHANNELS, strides: tuple[Triple, ...] = STRIDES) -> None:
        super().__init__()
        self.channels = (channels[0],) * len(channels)
        self.strides = strides
        self.lateral = nn.ModuleList(nn.Conv3d(width, channels[0], kernel_size=1) for width in channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return as many maps as there are, all with the channels of the finest."""
        laterals = [conv(x) for conv, x in zip(self.lateral, maps, strict=True)]
        summed = [laterals[-1]]
        for finer in reversed(laterals[:-1]):
            summed.append(finer + F.interpolate(summed[-1], size=finer.shape[2:], mode="nearest"))
        return summed[::-1]


def tiny_parts(
    in_channels: int | tuple[int, int] = 1, patch_zyx: Triple = (32, 32, 32), strides: tuple[Triple, ...] = STRIDES
) -> Parts:
    """Return parts around a TinyEncoder, with two annotated datasets.

    Args:
        in_channels: channels of the volumes and of both datasets; or a number for each dataset, the encoder's first.
        patch_zyx: voxels of the patch; more than the coarsest stride, or the coarsest map is a single cell.
        strides: those of the encoder and of the neck.
    """
    first, second = (in_channels, in_channels) if isinstance(in_channels, int) else in_channels
    regions: tuple[list[list[int]], ...] = ([[1, 2], [2]], [[1], [2], [3]])
    datasets: Mapping[str, DatasetInfo] = {
        "overlapping": {
            "channels": first,
            "classes": ["organ", "lesion"],
            "regions": regions[0],
            "activation": "sigmoid",
        },
        "disjoint": {
            "channels": second,
            "classes": ["liver", "spleen", "kidney"],
            "regions": regions[1],
            "activation": "softmax",
        },
    }
    return Parts(
        encoder=TinyEncoder(first, strides),
        make_neck=lambda: TinyNeck(strides=strides),
        make_stem=lambda channels: _unit(channels, CHANNELS[0], strides[0]),
        in_channels=first,
        patch_zyx=patch_zyx,
        datasets=datasets,
    )


def make_batch(
    size: int = 2, in_channels: int | tuple[int, int] = 1, patch_zyx: Triple = (32, 32, 32), seed: int = 0
) -> Batch:
    """Return a batch with every key an objective may require, all of it a function of the arguments.

    The images are smooth random fields with some noise, z-scored per sample; the labels follow the first channel, so
    all can be learnt. The last plane along x is not valid and has no label. The samples' datasets take turns.

    Args:
        size: samples.
        in_channels: channels of every sample; or a number for each dataset, and the images are a list.
        patch_zyx: voxels of the patch.
        seed: another seed, other samples.
    """
    generator = torch.Generator().manual_seed(seed)
    most = in_channels if isinstance(in_channels, int) else max(in_channels)
    coarse = torch.randn(size, most, 4, 4, 4, generator=generator)
    image = F.interpolate(coarse, size=patch_zyx, mode="trilinear", align_corners=False)
    image = image + 0.1 * torch.randn(image.shape, generator=generator)
    image = (image - image.mean((2, 3, 4), keepdim=True)) / image.std((2, 3, 4), keepdim=True)
    valid = torch.ones(size, *patch_zyx, dtype=torch.bool)
    valid[..., -1] = False
    semantic = torch.bucketize(image[:, 0].contiguous(), torch.tensor([-0.5, 0.5, 1.0])).to(torch.int16)
    semantic[~valid] = -1
    low, high = [side // 4 for side in patch_zyx], [side // 2 for side in patch_zyx]
    instances = torch.zeros(size, *patch_zyx, dtype=torch.int32)
    instances[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]] = 1
    return Batch(
        image=image if isinstance(in_channels, int) else [x[: in_channels[i % 2]] for i, x in enumerate(image)],
        seed=torch.randint(2**40, (size,), generator=generator),
        valid=valid,
        semantic=semantic,
        instances=instances,
        boxes=[torch.tensor([[*low, *high]], dtype=torch.float32) for _ in range(size)],
        labels=[torch.zeros(1, dtype=torch.int64) for _ in range(size)],
        dataset=[DATASETS[i % 2] for i in range(size)],
        case_id=[f"case_{i}" for i in range(size)],
        start=torch.zeros(size, 3, dtype=torch.int64),
        affine=torch.eye(4, dtype=torch.float64).repeat(size, 1, 1),
        index=torch.arange(size),
    )


class _Stages(nn.ModuleList):
    def forward(self, h: Tensor) -> list[Tensor]:
        maps = []
        for stage in self:
            h = stage(h)
            maps.append(h)
        return maps


def _ratio(coarse: Triple, fine: Triple) -> Triple:
    (z, y, x), (fz, fy, fx) = coarse, fine
    return (z // fz, y // fy, x // fx)


def _unit(in_channels: int, out_channels: int, stride: Triple) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.InstanceNorm3d(out_channels, affine=True),
        nn.LeakyReLU(0.01, inplace=True),  # as in nnU-Net's networks: what stands before it must bear that
    )
