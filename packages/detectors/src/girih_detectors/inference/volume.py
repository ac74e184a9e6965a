"""Detection in a whole volume: tiles, mirrors, merging; memory does not grow with the number of tiles."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from ..interfaces import Detections, Detector, Mask, Volume
from ..ops.boxes import clip, wider_than
from ..ops.nms import class_nms
from .tiling import Triple, centre_weight, inside, read_tile, tile_grid


@dataclass(frozen=True)
class Merging:
    """How the boxes of tiles and mirrors become the boxes of the volume; nnDetection's state before its sweep."""

    pool: int = 1000
    """Best boxes kept per mirror while tiles come in."""
    score_threshold: float = 0.0
    """A box stays if its score is greater."""
    tile_iou: float = 0.1
    """Overlap above which boxes of different tiles are one; the box nearer to the middle of its tile is favoured."""
    mirror_iou: float = 0.5
    """Overlap above which boxes of different mirrors are one; the higher score stays."""
    min_side: float = 0.01
    """Smallest side in voxels, after clipping to the volume."""
    max_detections: int = 100
    """Boxes kept per volume."""


MERGING = Merging()


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
    pools = [_Pool.empty() for _ in mirrors]
    done = 0
    with _evaluating(detector):
        for starts, read in _read_ahead(image, batches, patch_zyx):
            images = torch.from_numpy(read).to(where)
            for i, flipped in enumerate(mirrors):
                found = _detect(detector, images, flipped, starts, patch_zyx)
                pools[i] = _Pool.join([pools[i], *found]).best(merging.pool)
            done += len(starts)
            if progress is not None:
                progress(done, len(tiles))
    return _merge(pools, shape, merging)


@dataclass(frozen=True)
class _Pool:
    """Boxes in volume coordinates, on the CPU, with the weight of their place in the tile."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    weights: Tensor

    @staticmethod
    def empty() -> "_Pool":
        return _Pool(torch.zeros(0, 6), torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0))

    @staticmethod
    def join(pools: "Sequence[_Pool]") -> "_Pool":
        return _Pool(
            *(torch.cat([getattr(p, name) for p in pools]) for name in ("boxes", "scores", "labels", "weights"))
        )

    def take(self, index: Tensor) -> "_Pool":
        return _Pool(self.boxes[index], self.scores[index], self.labels[index], self.weights[index])

    def best(self, n: int) -> "_Pool":
        """The n highest scores; ties keep the order of arrival, so cutting batch by batch equals cutting once."""
        return self.take(self.scores.argsort(descending=True, stable=True)[:n])


def _detect(
    detector: Detector, images: Tensor, flipped: tuple[bool, ...], starts: Sequence[Triple], patch_zyx: Triple
) -> list[_Pool]:
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
        pools.append(_Pool(boxes + offset, scores, labels, centre_weight(boxes, patch_zyx)))
    return pools


def unmirror(boxes: Float[Tensor, "n 6"], axes: Sequence[int], patch_zyx: Triple) -> Float[Tensor, "n 6"]:
    """Return the boxes of a tile that was flipped along these axes (0 = z) as boxes of the tile itself."""
    boxes = boxes.clone()
    for axis in axes:
        boxes[:, [axis, axis + 3]] = patch_zyx[axis] - boxes[:, [axis + 3, axis]]
    return boxes


def _merge(pools: Sequence[_Pool], shape: Triple, merging: Merging) -> Detections:
    merged = []
    for pool in pools:
        pool = _Pool(clip(pool.boxes, shape), pool.scores, pool.labels, pool.weights)
        pool = pool.take(wider_than(pool.boxes, merging.min_side) & (pool.scores > merging.score_threshold))
        rank = pool.scores * pool.weights
        kept = class_nms(pool.boxes, rank, pool.labels, merging.tile_iou, merging.max_detections)
        merged.append(pool.take(kept))
    final = _Pool.join(merged)
    final = final.take(class_nms(final.boxes, final.scores, final.labels, merging.mirror_iou, merging.max_detections))
    return {"boxes": final.boxes.numpy(), "scores": final.scores.numpy(), "labels": final.labels.numpy()}


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
