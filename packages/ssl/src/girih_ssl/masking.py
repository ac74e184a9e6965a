"""Which blocks of a patch are hidden: an exact number, drawn per sample."""

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from girih_ssl.batch import sample_generators
from girih_ssl.interfaces import Triple


def hidden_count(grid: Triple, mask_ratio: float) -> int:
    """Return int(mask_ratio * blocks), the number of blocks hidden in every sample.

    Raises:
        ValueError: nothing would be hidden, or nothing shown.
    """
    blocks = grid[0] * grid[1] * grid[2]
    hidden = int(mask_ratio * blocks)
    if not 0 < hidden < blocks:
        raise ValueError(
            f"mask_ratio {mask_ratio} of the {blocks} blocks {grid}: found {hidden} hidden, "
            f"wanted at least one hidden and one shown; take a larger patch or smaller blocks"
        )
    return hidden


@torch.compiler.disable  # type: ignore[untyped-decorator]
def draw_hidden_blocks(seed: Int64[Tensor, " b"], grid: Triple, hidden: int) -> Bool[Tensor, "b gz gy gx"]:
    """Return which blocks are hidden: the first `hidden` of a random permutation, one per sample.

    On the CPU whatever the device of `seed`, so a sample has the same mask everywhere.
    """
    blocks = grid[0] * grid[1] * grid[2]
    mask = torch.zeros(len(seed), blocks, dtype=torch.bool)
    for row, generator in zip(mask, sample_generators(seed), strict=True):
        row[torch.randperm(blocks, generator=generator)[:hidden]] = True
    return mask.reshape(-1, *grid)


def to_voxels(blocks: Bool[Tensor, "b gz gy gx"], block_zyx: Triple) -> Bool[Tensor, "b 1 z y x"]:
    """Return the mask per voxel: every block's value, block_zyx times."""
    for axis, side in enumerate(block_zyx, start=1):
        blocks = blocks.repeat_interleave(side, dim=axis)
    return blocks[:, None]
