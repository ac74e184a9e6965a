"""Which tiles cover a volume, what is read for each, and how much a box is trusted by its place in a tile."""

import itertools
import math

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from ..anchors import Triple
from ..interfaces import Volume


def tile_starts(length: int, patch: int, overlap: float) -> list[int]:
    """Return the first voxel of every tile along one axis: evenly spaced, the first and last flush with the borders.

    ceil((length - patch) / stride) + 1 tiles with stride = patch - int(overlap * patch): the fewest whose neighbours
    have at least int(overlap * patch) voxels in common. Tiles of a mirrored axis are the mirrored tiles, but for the
    middle one where it would start at half a voxel. An axis shorter than the patch has one tile, centred, with a
    negative start.

    Raises:
        ValueError: a length below 1 or an overlap outside [0, 1).
    """
    if length < 1 or patch < 1:
        raise ValueError(f"an axis of {length} voxels and a patch of {patch}, wanted at least 1 of each")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is {overlap}, wanted 0 <= overlap < 1")
    span = length - patch
    if span <= 0:
        return [-(-span // 2)]
    stride = max(1, patch - int(overlap * patch))
    steps = math.ceil(span / stride)
    first_half = [(2 * i * span + steps) // (2 * steps) for i in range(steps // 2 + 1)]  # i * span / steps, rounded
    return first_half + [span - start for start in reversed(first_half[: (steps + 1) // 2])]


def tile_grid(shape_zyx: Triple, patch_zyx: Triple, overlap: float) -> list[Triple]:
    """Return the starts of all tiles in C order over (z, y, x)."""
    z, y, x = (tile_starts(n, p, overlap) for n, p in zip(shape_zyx, patch_zyx, strict=True))
    return list(itertools.product(z, y, x))


def inside(start: Triple, patch_zyx: Triple, shape_zyx: Triple) -> tuple[slice, slice, slice]:
    """Return the part of the volume that a tile covers."""
    z, y, x = (slice(max(0, s), min(n, s + p)) for s, p, n in zip(start, patch_zyx, shape_zyx, strict=True))
    return z, y, x


def fill_tile(tile: Float32[np.ndarray, "c z y x"], image: Volume, start: Triple) -> None:
    """Write what the image has from `start` on into `tile`; what lies outside is 0, as the padding of training patches.

    Raises:
        ValueError: the image returns another shape than its slices ask for.
    """
    channels, *patch = tile.shape
    z, y, x = image.shape[1:]
    part = inside(start, (patch[0], patch[1], patch[2]), (z, y, x))
    wanted = (channels, *(p.stop - p.start for p in part))
    if wanted != tile.shape:
        tile[...] = 0
    voxels = image[(slice(0, channels), *part)]
    if tuple(voxels.shape) != wanted:  # numpy would stretch an axis of 1
        raise ValueError(f"the image returned {tuple(voxels.shape)} voxels, wanted {wanted}")
    tile[(slice(None), *(slice(p.start - s, p.stop - s) for p, s in zip(part, start, strict=True)))] = voxels


def centre_weight(boxes: Float[Tensor, "n 6"], patch_zyx: Triple) -> Float[Tensor, " n"]:
    """Return how much each box of a tile counts: 1 near the middle of the tile, down to 0.5 in its corners.

    1 - max(0, |c - t| / |t| - 0.5), c = centre of the box and t = middle of the tile, as nnDetection weighs them.
    """
    middle = 0.5 * torch.tensor(patch_zyx, dtype=boxes.dtype, device=boxes.device)
    centre = 0.5 * (boxes[:, :3] + boxes[:, 3:])
    distance: Tensor = torch.linalg.vector_norm(centre - middle, dim=1) / torch.linalg.vector_norm(middle)
    return 1 - (distance - 0.5).clamp(min=0)
