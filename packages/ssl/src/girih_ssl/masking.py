"""Which blocks of a patch are hidden: an exact number, drawn per sample."""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from girih_ssl.batch import check_cells, check_patch, sample_generators
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


def common_multiple(block_zyx: Triple, coarsest_stride: Triple) -> Triple:
    """Return the smallest patch, in voxels along (z, y, x), of whole blocks and whole cells of the coarsest map."""
    (bz, by, bx), (sz, sy, sx) = block_zyx, coarsest_stride
    return (math.lcm(bz, sz), math.lcm(by, sy), math.lcm(bx, sx))


def blocks_of(
    patch_zyx: Triple, *, block_zyx: Triple, coarsest_stride: Triple, mask_ratio: float
) -> tuple[Triple, int]:
    """Return the number of blocks of a patch along (z, y, x) and how many of them are hidden.

    Raises:
        ValueError: the patch is no multiple of the block or of the encoder's coarsest stride, has too few blocks for
            `mask_ratio`, or is a single cell of the coarsest map.
    """
    check_patch(patch_zyx, common_multiple(block_zyx, coarsest_stride))
    check_cells(patch_zyx, coarsest_stride)
    (z, y, x), (bz, by, bx) = patch_zyx, block_zyx
    grid = (z // bz, y // by, x // bx)
    return grid, hidden_count(grid, mask_ratio)


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


def check_blocks(mask_ratio: float, block_zyx: Triple) -> None:
    """Raise ValueError unless the ratio is between 0 and 1 and the block three positive numbers."""
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio: found {mask_ratio}, wanted a number between 0 and 1")
    if len(block_zyx) != 3 or min(block_zyx) < 1:
        raise ValueError(f"block_zyx: found {block_zyx}, wanted three positive numbers (z, y, x)")


def hidden_error(
    output: Float[Tensor, "b c z y x"],
    image: Float[Tensor, "b c z y x"],
    hidden: Bool[Tensor, "b 1 z y x"],
    valid: Bool[Tensor, "b z y x"] | None,
) -> dict[str, Tensor]:
    """Return `loss`, the mean squared error of the hidden valid elements in float32, and `scored`, their share.

    Without such an element the loss is 0, with gradient 0.
    """
    scored = hidden if valid is None else hidden & valid[:, None]
    n_scored = scored.sum()
    error = (output.float() - image.float()) * scored
    loss = error.square().sum() / (n_scored * image.shape[1]).clamp(min=1)
    return {"loss": loss, "scored": n_scored / scored.numel()}
