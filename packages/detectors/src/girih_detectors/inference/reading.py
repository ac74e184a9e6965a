"""Tiles of a volume, read by threads while the caller works, and those that are worth reading."""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from ..interfaces import Mask, Volume
from .tiling import Triple, fill_tile, inside

READERS = 4
"""Tiles that are read at once, beside those the caller has."""


def read_batches(
    image: Volume, tiles: Sequence[Triple], patch_zyx: Triple, batch_size: int, *, pin: bool = False
) -> Generator[tuple[Sequence[Triple], Float32[Tensor, "b c z y x"]], None, None]:
    """Yield the starts and the voxels of all tiles, batch by batch and in order, reading ahead of the caller.

    Memory holds the caller's batch and the next ones, with `READERS` tiles or a batch, whichever is more. Close the
    generator to stop the threads early.

    Args:
        image: read from `READERS` threads.
        tiles: first voxels; what lies outside the image is 0.
        patch_zyx: voxels of a tile.
        batch_size: tiles per batch; the last one may have fewer.
        pin: into page-locked memory, from which copies to a GPU need not be waited for.

    Raises:
        ValueError: a tile cannot be read (OSError or ValueError of the image), or comes in another shape; it is named.
    """
    batches = [tiles[i : i + batch_size] for i in range(0, len(tiles), batch_size)]
    upcoming: deque[tuple[Sequence[Triple], Tensor, list[Future[None]]]] = deque()
    ahead = -(-READERS // batch_size)
    threads = ThreadPoolExecutor(READERS, thread_name_prefix="tiles")
    try:
        for i in range(len(batches) + ahead):
            if i < len(batches):
                starts = batches[i]
                voxels = torch.empty((len(starts), image.shape[0], *patch_zyx), pin_memory=pin)
                into = voxels.numpy()
                reads = [threads.submit(_read, into[k], image, start) for k, start in enumerate(starts)]
                upcoming.append((starts, voxels, reads))
            if i >= ahead:
                starts, voxels, reads = upcoming.popleft()
                for read in reads:
                    read.result()
                yield starts, voxels
    finally:
        threads.shutdown(cancel_futures=True)


def _read(tile: np.ndarray, image: Volume, start: Triple) -> None:
    try:
        fill_tile(tile, image, start)
    except (OSError, ValueError) as error:
        raise ValueError(f"the tile that starts at {start} (z, y, x) cannot be read: {error}") from error


def tiles_with(valid: Mask, tiles: Sequence[Triple], patch_zyx: Triple) -> list[Triple]:
    """Return the tiles that have a True voxel in the mask; every voxel of the mask is read once, in slabs along z.

    Args:
        valid: bool (z, y, x).
        tiles: first voxels of tiles that cover the mask.
        patch_zyx: voxels of a tile.
    """
    z, y, x = valid.shape
    parts = [inside(start, patch_zyx, (z, y, x)) for start in tiles]
    # between neighbouring cuts every voxel lies in the same tiles
    cuts = [sorted({edge for part in parts for edge in (part[axis].start, part[axis].stop)}) for axis in range(3)]
    slabs = [np.logical_or.reduce(valid[a:b, 0:y, 0:x], axis=0) for a, b in pairwise(cuts[0])]
    cells = np.stack([_any_between(slab, cuts[1], cuts[2]) for slab in slabs])
    number = [{edge: i for i, edge in enumerate(edges)} for edges in cuts]
    return [
        start
        for start, part in zip(tiles, parts, strict=True)
        if cells[tuple(slice(number[axis][s.start], number[axis][s.stop]) for axis, s in enumerate(part))].any()
    ]


def _any_between(plane: Bool[np.ndarray, "y x"], rows: list[int], columns: list[int]) -> Bool[np.ndarray, "cy cx"]:
    """Whether a plane has a True pixel between neighbouring rows and columns."""
    bands = np.logical_or.reduceat(plane, rows[:-1], axis=0)
    return np.logical_or.reduceat(bands, columns[:-1], axis=1)
