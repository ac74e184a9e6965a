"""Tiles of a volume, read by threads while the caller works, and those that are worth reading."""

import zlib
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from ..anchors import Triple
from ..interfaces import Mask, Volume
from .tiling import fill_tile, inside

READERS = 4
"""Tiles that are read at once, beside those the caller has."""
MASK_VOXELS = 2**23
"""Of a mask, read at once: of an image in float32 from which it may be computed 34 MB a channel."""
UNREADABLE = (OSError, ValueError, RuntimeError, LookupError, EOFError, zlib.error)
"""What readers of files raise: the system, numpy, zarr's codecs, missing or short or damaged pieces."""

Batch = tuple[Sequence[Triple], Float32[Tensor, "b c z y x"]]


def read_batches(
    image: Volume, tiles: Sequence[Triple], patch_zyx: Triple, batch_size: int, *, pin: bool = False
) -> Generator[Batch, None, None]:
    """Yield the starts and the voxels of all tiles, batch by batch and in order, reading ahead of the caller.

    Memory holds the caller's batch, the next one or as many as make `READERS` tiles, and what the image gave to
    `READERS` threads, if the caller lets go of a batch before asking for the next one. Close the generator to stop the
    threads early.

    Args:
        image: read from `READERS` threads.
        tiles: first voxels; what lies outside the image is 0.
        patch_zyx: voxels of a tile.
        batch_size: tiles per batch; the last one may have fewer.
        pin: into page-locked memory, from which copies to a GPU need not be waited for.

    Raises:
        ValueError: a tile cannot be read (the image raises one of `UNREADABLE`), or comes in another shape; it is
            named.
    """
    threads = ThreadPoolExecutor(READERS, thread_name_prefix="tiles")

    def begin(starts: Sequence[Triple]) -> tuple[Sequence[Triple], Tensor, list[Future[None]]]:
        voxels = torch.empty((len(starts), image.shape[0], *patch_zyx), pin_memory=pin)
        into = voxels.numpy()
        return starts, voxels, [threads.submit(_read, into[k], image, start) for k, start in enumerate(starts)]

    batches = [tiles[i : i + batch_size] for i in range(0, len(tiles), batch_size)]
    ahead = -(-READERS // batch_size)
    try:
        upcoming = deque(begin(starts) for starts in batches[:ahead])
        for n in range(len(batches)):
            starts, voxels, reads = upcoming.popleft()
            for read in reads:
                read.result()
            upcoming.extend(begin(more) for more in batches[n + ahead : n + ahead + 1])
            yield starts, voxels
    finally:
        threads.shutdown(cancel_futures=True)


def _read(tile: np.ndarray, image: Volume, start: Triple) -> None:
    try:
        fill_tile(tile, image, start)
    except UNREADABLE as error:
        raise ValueError(f"the tile that starts at {start} (z, y, x) cannot be read: {_told(error)}") from error


def _told(error: Exception) -> str:
    """The message; with the kind of an error, like KeyError, whose message alone may say nothing."""
    return str(error) if isinstance(error, (OSError, ValueError)) else repr(error)


def tiles_with(valid: Mask, tiles: Sequence[Triple], patch_zyx: Triple) -> list[Triple]:
    """Return the tiles that have a True voxel in the mask.

    Every voxel of the mask is read once, by the caller's thread, in blocks of at most `MASK_VOXELS` (or of one row, no
    deeper than a tile). So the mask may be computed from an image as it is read, and neither is ever held as a whole.

    Args:
        valid: bool (z, y, x).
        tiles: first voxels of tiles that cover the mask.
        patch_zyx: voxels of a tile.

    Raises:
        ValueError: the mask cannot be read, or comes in another shape.
    """
    z, y, x = valid.shape
    parts = [inside(start, patch_zyx, (z, y, x)) for start in tiles]
    # between neighbouring cuts every voxel lies in the same tiles
    cuts = [sorted({edge for part in parts for edge in (part[axis].start, part[axis].stop)}) for axis in range(3)]
    cells = np.stack([_any_between(_any_along_z(valid, a, b), cuts[1], cuts[2]) for a, b in pairwise(cuts[0])])
    number = [{edge: i for i, edge in enumerate(edges)} for edges in cuts]
    return [
        start
        for start, part in zip(tiles, parts, strict=True)
        if cells[tuple(slice(number[axis][s.start], number[axis][s.stop]) for axis, s in enumerate(part))].any()
    ]


def _any_along_z(valid: Mask, low: int, high: int) -> Bool[np.ndarray, "y x"]:
    """Whether a mask has a True voxel between two heights, read in blocks of whole rows."""
    _, y, x = valid.shape
    rows = max(1, MASK_VOXELS // ((high - low) * x))
    return np.concatenate([_any_of(valid, low, high, a, min(a + rows, y)) for a in range(0, y, rows)])


def _any_of(valid: Mask, low: int, high: int, first: int, last: int) -> Bool[np.ndarray, "y x"]:
    x = valid.shape[2]
    where = f"the mask of valid voxels from {(low, first, 0)} to {(high, last, x)} (z, y, x)"
    try:
        block = np.asarray(valid[low:high, first:last, 0:x])
    except UNREADABLE as error:
        raise ValueError(f"{where} cannot be read: {_told(error)}") from error
    if block.shape != (high - low, last - first, x):
        raise ValueError(f"{where} has {block.shape} voxels, wanted {(high - low, last - first, x)}")
    anywhere: np.ndarray = np.logical_or.reduce(block, axis=0)
    return anywhere


def _any_between(plane: Bool[np.ndarray, "y x"], rows: list[int], columns: list[int]) -> Bool[np.ndarray, "cy cx"]:
    """Whether a plane has a True pixel between neighbouring rows and columns."""
    bands = np.logical_or.reduceat(plane, rows[:-1], axis=0)
    return np.logical_or.reduceat(bands, columns[:-1], axis=1)
