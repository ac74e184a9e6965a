"""Detection in a whole volume: tiles, mirrors, merging; memory does not grow with the number of tiles."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from ..interfaces import Detections, Detector, Mask, Volume
from .merging import MERGING, NO_CANDIDATES, Candidates, Merging, best, join, merge
from .tiling import Triple, centre_weight, inside, read_tile, tile_grid


def detect_volume(
    detector: Detector,
    image: Volume,
    *,
    patch_zyx: Triple,
    overlap: float = 0.5,
    mirror: bool = True,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    valid: Mask | None = None,
    merging: Merging = MERGING,
    progress: Callable[[int, int], None] | None = None,
) -> Detections:
    """Return the detections in a volume of any size, as numpy, in voxel edges of the volume.

    Only tiles are read from `image`, the next batch while the network works on this one. The answer does not depend on
    `batch_size`. Precision is the caller's: wrap the call in torch.autocast.

    Args:
        detector: put into evaluation mode for the call.
        image: (c, z, y, x) with `shape`, and `[4 in-bounds slices]` giving float32 arrays.
        patch_zyx: tile in voxels; smaller volumes are padded with 0 on both sides.
        overlap: share of the tile that neighbours have in common, at least.
        mirror: detect in all eight mirrorings of every tile and merge.
        batch_size: tiles at once.
        device: the detector is moved there; None leaves it where it is.
        valid: bool (z, y, x), sliceable; tiles without a True voxel are skipped.
        merging: how boxes are merged.
        progress: called with (tiles done, all tiles) after each batch.

    Raises:
        ValueError: an image or mask of another shape, a bad overlap, a patch the detector does not take, or output that
            is not finite (naming the tiles).
    """
    shape = _check(image, valid, batch_size)
    if device is not None and isinstance(detector, nn.Module):
        detector.to(device)
    where = next(detector.parameters()).device
    tiles = tile_grid(shape, patch_zyx, overlap)
    if valid is not None:
        tiles = [start for start in tiles if np.asarray(valid[inside(start, patch_zyx, shape)]).any()]
    batches = [tiles[i : i + batch_size] for i in range(0, len(tiles), batch_size)]
    mirrors = list(itertools.product((False, True), repeat=3)) if mirror else [(False, False, False)]
    pools = [NO_CANDIDATES for _ in mirrors]
    done = 0
    with _evaluating(detector):
        for starts, read in _read_ahead(image, batches, patch_zyx):
            images = torch.from_numpy(read).to(where)
            for i, flipped in enumerate(mirrors):
                found = _detect(detector, images, flipped, starts, patch_zyx)
                pools[i] = best(join([pools[i], *found]), merging.pool)
            done += len(starts)
            if progress is not None:
                progress(done, len(tiles))
    return merge(pools, shape, merging)


def _detect(
    detector: Detector, images: Tensor, flipped: tuple[bool, ...], starts: Sequence[Triple], patch_zyx: Triple
) -> list[Candidates]:
    """Detect in a batch of mirrored tiles and bring the boxes back to the volume."""
    axes = [axis for axis in range(3) if flipped[axis]]
    try:
        found = detector.detect(images.flip([axis + 2 for axis in axes]))
    except ValueError as error:
        raise ValueError(f"tiles starting at {list(starts)} (z, y, x): {error}") from error
    pools = []
    for start, one in zip(starts, found, strict=True):
        boxes = unmirror(torch.as_tensor(one["boxes"]).cpu().float(), axes, patch_zyx)
        scores, labels = torch.as_tensor(one["scores"]).cpu().float(), torch.as_tensor(one["labels"]).cpu()
        offset = torch.tensor((*start, *start), dtype=torch.float32)
        pools.append(
            Candidates(boxes=boxes + offset, scores=scores, labels=labels, weights=centre_weight(boxes, patch_zyx))
        )
    return pools


def unmirror(boxes: Float[Tensor, "n 6"], axes: Sequence[int], patch_zyx: Triple) -> Float[Tensor, "n 6"]:
    """Return the boxes of a tile that was flipped along these axes (0 = z) as boxes of the tile itself."""
    boxes = boxes.clone()
    for axis in axes:
        boxes[:, [axis, axis + 3]] = patch_zyx[axis] - boxes[:, [axis + 3, axis]]
    return boxes


def _read_ahead(
    image: Volume, batches: Sequence[Sequence[Triple]], patch_zyx: Triple
) -> Iterator[tuple[Sequence[Triple], Float32[np.ndarray, "b c z y x"]]]:
    def read(starts: Sequence[Triple]) -> np.ndarray:
        return np.stack([read_tile(image, start, patch_zyx) for start in starts])

    with ThreadPoolExecutor(1, thread_name_prefix="tiles") as thread:
        upcoming = thread.submit(read, batches[0]) if batches else None
        for i, starts in enumerate(batches):
            if upcoming is None:
                return
            tiles = upcoming.result()
            upcoming = thread.submit(read, batches[i + 1]) if i + 1 < len(batches) else None
            yield starts, tiles


@contextmanager
def _evaluating(detector: Detector) -> Iterator[None]:
    """Evaluation mode, and the former mode afterwards."""
    if not isinstance(detector, nn.Module):
        yield
        return
    was_training = detector.training
    detector.eval()
    try:
        yield
    finally:
        detector.train(was_training)


def _check(image: Volume, valid: Mask | None, batch_size: int) -> Triple:
    if len(image.shape) != 4 or min(image.shape) < 1:
        raise ValueError(f"image has shape {tuple(image.shape)}, wanted (c, z, y, x) without an empty axis")
    shape = (image.shape[1], image.shape[2], image.shape[3])
    if valid is not None and tuple(valid.shape) != shape:
        raise ValueError(f"valid has shape {tuple(valid.shape)}, the image {shape}")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, wanted at least 1")
    return shape
