"""Crops of a volume that are compared by their overlap: where they lie, how each is turned, cutting them out."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from girih_ssl.batch import sample_generators
from girih_ssl.interfaces import Triple


class Augmentation(NamedTuple):
    """What may happen to a crop, each independently of the other crops."""

    p_flip: float
    """Probability of a mirror image along an axis, for each of the three."""
    p_turn: float
    """Probability of one, two or three quarter turns in the plane (y, x)."""
    p_shift: float
    """Probability that a number is added to all voxels."""
    shift: float
    """That number is uniform in [-shift, shift)."""


class Crops(NamedTuple):
    """The m crops of each of b volumes: the k base crops in row-major order, then the random ones."""

    start: Int64[Tensor, "b m 3"]
    """First voxel (z, y, x)."""
    mirrored: Bool[Tensor, "b m 3"]
    """Whether an axis of the volume is read backwards."""
    transposed: Bool[Tensor, "b m"]
    """Whether the volume's y runs along the crop's x and the volume's x along the crop's y."""
    shift: Float[Tensor, "b m"]
    """Added to all voxels."""
    overlap: Float[Tensor, "b n k"]
    """Share of random crop n that lies in base crop k; they sum to 1 over k."""

    def to(self, device: torch.device) -> "Crops":
        """Return the same on a device."""
        return Crops(*(tensor.to(device, non_blocking=True) for tensor in self))


def base_grid(patch_zyx: Triple, crop_zyx: Triple) -> Triple:
    """Return how many base crops tile the patch along (z, y, x).

    Raises:
        ValueError: the patch is no multiple of the crop, or only one crop.
    """
    if any(side < 1 or side % crop for side, crop in zip(patch_zyx, crop_zyx, strict=True)):
        raise ValueError(f"patch: found {patch_zyx} voxels (z, y, x), wanted multiples of {crop_zyx} (crop_zyx)")
    (z, y, x), (cz, cy, cx) = patch_zyx, crop_zyx
    grid = (z // cz, y // cy, x // cx)
    if math.prod(grid) == 1:
        raise ValueError(
            f"patch: found {patch_zyx} voxels (z, y, x), a single base crop of {crop_zyx}; "
            f"wanted at least two to compare with: take a larger patch or smaller crops"
        )
    return grid


def base_starts(grid: Triple, crop_zyx: Triple) -> Int64[Tensor, "k 3"]:
    """Return the first voxel of every base crop, row-major: the last axis runs fastest."""
    return torch.cartesian_prod(*(torch.arange(n) * side for n, side in zip(grid, crop_zyx, strict=True)))


def overlap_shares(
    start: Int64[Tensor, "*b n 3"], base: Int64[Tensor, "k 3"], crop_zyx: Triple
) -> Float[Tensor, "*b n k"]:
    """Return which share of the volume of each crop lies in each base crop, all of the same size.

    Voxels are counted in whole numbers and divided once in float64, so aligned crops give exact zeros and ones.
    """
    apart = (start[..., :, None, :] - base).abs()
    shared = (torch.tensor(crop_zyx, device=start.device) - apart).clamp(min=0).prod(-1)
    return (shared.double() / math.prod(crop_zyx)).float()


@torch.compiler.disable  # type: ignore[untyped-decorator]
def draw_crops(
    seed: Int64[Tensor, " b"], patch_zyx: Triple, crop_zyx: Triple, n_crops: int, augmentation: Augmentation
) -> Crops:
    """Return the base crops of every volume and `n_crops` random ones at any whole-voxel offset inside the patch.

    On the CPU whatever the device of `seed`, so a sample has the same crops everywhere. A crop whose y and x sides
    differ is not turned.

    Raises:
        ValueError: see `base_grid`.
    """
    base = base_starts(base_grid(patch_zyx, crop_zyx), crop_zyx)
    m = len(base) + n_crops
    start, chance, quarters, amount = [], [], [], []
    for generator in sample_generators(seed):
        free = [
            torch.randint(side - crop + 1, (n_crops,), generator=generator)
            for side, crop in zip(patch_zyx, crop_zyx, strict=True)
        ]
        start.append(torch.stack(free, dim=-1))
        chance.append(torch.rand(m, 5, generator=generator))
        quarters.append(torch.randint(1, 4, (m,), generator=generator))
        amount.append(2 * torch.rand(m, generator=generator) - 1)
    offsets, uniform = torch.stack(start), torch.stack(chance)
    p_turn = augmentation.p_turn if crop_zyx[1] == crop_zyx[2] else 0.0
    turns = torch.stack(quarters) * (uniform[..., 3] < p_turn)
    # A flipped crop turned by q quarters is read with y backwards for q = 2, 3 and x backwards for q = 1, 2.
    half = torch.stack([torch.zeros_like(turns, dtype=torch.bool), turns >= 2, (turns == 1) | (turns == 2)], dim=-1)
    return Crops(
        start=torch.cat([base.expand(len(offsets), -1, -1), offsets], dim=1),
        mirrored=(uniform[..., :3] < augmentation.p_flip) ^ half,
        transposed=turns % 2 == 1,
        shift=augmentation.shift * torch.stack(amount) * (uniform[..., 4] < augmentation.p_shift),
        overlap=overlap_shares(offsets, base, crop_zyx),
    )


def cut_crops(
    image: Float[Tensor, "b c z y x"], crops: Crops, crop_zyx: Triple
) -> Float[Tensor, "b m c {crop_zyx[0]} {crop_zyx[1]} {crop_zyx[2]}"]:
    """Return the crops, flipped, turned and shifted, all at once: one gather whatever their number."""
    cz, cy, cx = crop_zyx
    row, column = torch.meshgrid(
        torch.arange(cy, device=image.device), torch.arange(cx, device=image.device), indexing="ij"
    )
    transposed = crops.transposed[..., None, None]
    z = _source(torch.arange(cz, device=image.device)[:, None, None], crops, 0, cz)
    y = _source(torch.where(transposed, column, row)[..., None, :, :], crops, 1, cy)
    x = _source(torch.where(transposed, row, column)[..., None, :, :], crops, 2, cx)
    volume = torch.arange(len(image), device=image.device)[:, None, None, None, None]
    # (C, B, Z, Y, X) -> (C, B, m, cz, cy, cx) -> (B, m, C, cz, cy, cx)
    cut = image.movedim(1, 0)[:, volume, z, y, x].movedim(0, 2)
    return cut + crops.shift.to(image.dtype)[..., None, None, None, None]


def _source(position: Tensor, crops: Crops, axis: int, side: int) -> Int64[Tensor, "b m _ _ _"]:
    """Return the voxel of the volume along an axis from the position in a crop that is neither flipped nor moved."""
    mirrored, start = (tensor[..., axis, None, None, None] for tensor in (crops.mirrored, crops.start))
    return torch.where(mirrored, side - 1 - position, position) + start
