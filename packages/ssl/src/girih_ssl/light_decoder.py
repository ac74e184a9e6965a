"""The light decoder of SparK (Tian et al. 2023), in 3D: additive skips and a width that halves with every step."""

from collections.abc import Sequence

from torch import Tensor, nn

from girih_ssl.interfaces import Triple


class LightDecoder(nn.Module):
    """A neck with one block per map of the encoder, from the coarsest down to the grid of the volume.

    x starts at 0; at every map, coarsest first, x becomes block(x + project(map)). A block enlarges x to the grid of
    the next map, the last one to that of the volume: a transposed convolution of twice the step as kernel (4 for the
    usual step of 2), then two 3^3 convolutions with a normalisation each and ReLU6 between them; the second halves
    the width. Where there is nothing to enlarge, as in the last block of an encoder whose finest map has the grid of
    the volume, the width stays. The projections bring the maps to the widths of the blocks: none for the coarsest,
    whose channels are the decoder's width, 3^3 convolutions for the others.

    As Tian et al. 2023 (section 3.3 and public code), but: instance instead of batch normalisation, so that a sample
    does not depend on its batch; the width is that of the encoder's coarsest map, not always 768; a block also for
    the map on the grid of the volume, which the ConvNets there do not have.

    Args:
        channels: of the encoder's maps, finest first.
        strides: voxels per cell of these along (z, y, x).

    Raises:
        ValueError: a stride is not a multiple of the one before.

    Attributes:
        channels: of the one map that is returned.
        strides: of this map, ((1, 1, 1),).
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[Triple]) -> None:
        super().__init__()
        width = channels[-1]
        finer: Sequence[Triple] = ((1, 1, 1), *strides[:-1])
        projections: list[nn.Module] = []
        blocks: list[nn.Module] = []
        for level in reversed(range(len(channels))):
            is_coarsest = level == len(channels) - 1
            projections.append(nn.Identity() if is_coarsest else nn.Conv3d(channels[level], width, 3, padding=1))
            if any(coarse % fine for coarse, fine in zip(strides[level], finer[level], strict=True)):
                raise ValueError(f"strides[{level}]: found {strides[level]}, wanted multiples of {finer[level]}")
            sz, sy, sx = (coarse // fine for coarse, fine in zip(strides[level], finer[level], strict=True))
            enlarges = (sz, sy, sx) != (1, 1, 1)
            out = max(1, width // 2) if enlarges else width
            blocks.append(_block(width, out, (sz, sy, sx) if enlarges else None))
            width = out
        self.projections = nn.ModuleList(projections)
        self.blocks = nn.ModuleList(blocks)
        self.channels = (width,)
        self.strides: tuple[Triple, ...] = ((1, 1, 1),)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return one map on the grid of the volume, (B, channels[0], Z, Y, X), from the encoder's, finest first."""
        x: Tensor | None = None
        for project, block, skip in zip(self.projections, self.blocks, reversed(maps), strict=True):
            x = block(project(skip) if x is None else x + project(skip))
        return [] if x is None else [x]


def _block(width: int, out: int, step: Triple | None) -> nn.Sequential:
    layers: list[nn.Module] = []
    if step is not None:
        kz, ky, kx = (2 * s - s % 2 for s in step)
        padding = ((kz - step[0]) // 2, (ky - step[1]) // 2, (kx - step[2]) // 2)
        layers.append(nn.ConvTranspose3d(width, width, (kz, ky, kx), step, padding))
    return nn.Sequential(
        *layers,
        nn.Conv3d(width, width, 3, padding=1, bias=False),
        nn.InstanceNorm3d(width, affine=True),
        nn.ReLU6(),
        nn.Conv3d(width, out, 3, padding=1, bias=False),
        nn.InstanceNorm3d(out, affine=True),
    )
