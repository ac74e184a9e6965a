"""Detection in a whole volume: tiles, mirrors, merging; memory does not grow with the number of tiles."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..interfaces import Detections, Detector, Mask, Volume
from .merging import MERGING, Candidates, Merging, best, join, merge, no_candidates
from .reading import read_batches, tiles_with
from .tiling import Triple, centre_weight, tile_grid

MIRRORINGS = tuple(
    tuple(axis for axis in range(3) if flipped[axis]) for flipped in itertools.product((False, True), repeat=3)
)
"""Axes (0 = z) along which a tile is flipped: none first, then z, y and x as the digits of a binary number count."""


def detect_volume(
    detector: Detector | Sequence[Detector],
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

    Only tiles are read from `image`, the next ones while the network works; memory does not grow with their number. The
    answer does not depend on `batch_size`. Precision is the caller's: wrap the call in torch.autocast.

    Args:
        detector: put into evaluation mode for the call. Several are an ensemble: every tile is read once for all, and
            their boxes are merged.
        image: (c, z, y, x) with `shape`, and `[4 in-bounds slices]` giving float32 arrays; read from several threads.
        patch_zyx: tile in voxels; smaller volumes are padded with 0 on both sides.
        overlap: share of the tile that neighbours have in common, at least.
        mirror: detect in all eight mirrorings of every tile and merge.
        batch_size: tiles at once.
        device: the detectors are moved there; None leaves them where they are.
        valid: bool (z, y, x), sliceable; tiles without a True voxel are skipped. It says nothing of boxes.
        merging: how boxes are merged.
        progress: called with (tiles done, all tiles) after each batch.

    Raises:
        ValueError: an image or mask of another shape, a bad overlap, detectors of different classes, a patch that a
            detector does not take; naming the tiles: a tile that cannot be read, output that is not finite.
    """
    candidates = collect(
        detector,
        image,
        patch_zyx=patch_zyx,
        overlap=overlap,
        mirror=mirror,
        batch_size=batch_size,
        device=device,
        valid=valid,
        pool=merging.pool,
        progress=progress,
    )
    z, y, x = image.shape[1:]
    return merge(candidates, (z, y, x), merging)


def collect(
    detectors: Detector | Sequence[Detector],
    image: Volume,
    *,
    patch_zyx: Triple,
    overlap: float = 0.5,
    mirror: bool = True,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    valid: Mask | None = None,
    pool: int = MERGING.pool,
    progress: Callable[[int, int], None] | None = None,
) -> list[Candidates]:
    """Return what `detect_volume` merges: the boxes of all tiles, for each model and each mirroring of it.

    Kept as they are, they can be merged again in other ways without a network.

    Args:
        detectors: one, or several that read every tile once together.
        image: (c, z, y, x), as in `detect_volume`.
        patch_zyx: tile in voxels.
        overlap: share of the tile that neighbours have in common, at least.
        mirror: detect in all eight mirrorings of every tile.
        batch_size: tiles at once.
        device: the detectors are moved there; None leaves them where they are.
        valid: bool (z, y, x); tiles without a True voxel are skipped.
        pool: best boxes kept for each model and mirroring.
        progress: called with (tiles done, all tiles) after each batch.

    Returns:
        For the first model all mirrorings in the order of `MIRRORINGS` (without `mirror` one), then the next model.

    Raises:
        ValueError: as `detect_volume`.
    """
    models = list(detectors) if isinstance(detectors, Sequence) else [detectors]
    shape = _check(models, image, patch_zyx, batch_size, pool)
    devices = [_device(model, device) for model in models]
    tiles = tile_grid(shape, patch_zyx, overlap)
    if valid is not None:
        if tuple(valid.shape) != shape:
            raise ValueError(f"valid has shape {tuple(valid.shape)}, the image {shape}")
        tiles = tiles_with(valid, tiles, patch_zyx)
    mirrorings = MIRRORINGS if mirror else MIRRORINGS[:1]
    pools = [no_candidates() for _ in models for _ in mirrorings]
    done = 0
    pin = any(where.type == "cuda" for where in devices)
    reading = read_batches(image, tiles, patch_zyx, batch_size, pin=pin)
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(_evaluating(model))
        stack.enter_context(torch.no_grad())
        for starts, voxels in stack.enter_context(closing(reading)):
            on = {where: voxels.to(where, non_blocking=True) for where in set(devices)}
            for n, (model, where) in enumerate(zip(models, devices, strict=True)):
                try:
                    found = _detect(model, on[where], mirrorings, starts)
                except ValueError as error:
                    who = f"model {n + 1} of {len(models)}, " if len(models) > 1 else ""
                    raise ValueError(f"{who}tiles starting at {list(starts)} (z, y, x): {error}") from error
                for i, new in enumerate(found, n * len(mirrorings)):
                    pools[i] = best(join([pools[i], new]), pool)
            done += len(starts)
            if progress is not None:
                progress(done, len(tiles))
    return pools


def _detect(
    model: Detector, images: Tensor, mirrorings: Sequence[Sequence[int]], starts: Sequence[Triple]
) -> list[Candidates]:
    """Detect in every mirroring of a batch of tiles and bring the boxes back to the volume, on the CPU."""
    found: list[Detections] = []
    for axes in mirrorings:
        of_batch = model.detect(images.flip([axis + 2 for axis in axes]) if axes else images)
        if len(of_batch) != len(images):
            raise ValueError(f"the detector returned {len(of_batch)} results for {len(images)} images")
        found += of_batch
    boxes, scores, labels = _joined(found, len(model.classes))
    of_tile = [len(one["scores"]) for one in found]
    of_mirroring = [sum(of_tile[i : i + len(starts)]) for i in range(0, len(of_tile), len(starts))]
    z, y, x = images.shape[2:]
    pairs = zip(torch.split(boxes, of_mirroring), mirrorings, strict=True)
    boxes = torch.cat([unmirror(some, axes, (z, y, x)) for some, axes in pairs])
    weights = centre_weight(boxes, (z, y, x))
    offsets = torch.tensor(starts, dtype=torch.float32).repeat(len(mirrorings), 2)
    boxes = boxes + offsets.repeat_interleave(torch.tensor(of_tile), dim=0)
    columns = (torch.split(column, of_mirroring) for column in (boxes, scores, labels, weights))
    return [Candidates(boxes=b, scores=s, labels=k, weights=w) for b, s, k, w in zip(*columns, strict=True)]


def _joined(found: Sequence[Detections], classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """All boxes, scores and labels, checked, on the CPU. Each transfer from a GPU has to be waited for: one for all."""
    boxes = torch.cat([torch.as_tensor(one["boxes"]) for one in found]).to("cpu", torch.float32)
    scores = torch.cat([torch.as_tensor(one["scores"]) for one in found]).to("cpu", torch.float32)
    labels = torch.cat([torch.as_tensor(one["labels"]) for one in found]).to("cpu", torch.int64)
    if not bool(torch.isfinite(boxes).all() & torch.isfinite(scores).all()):
        raise ValueError("the detector returned boxes or scores that are not finite")
    for name, column, most in (("score", scores, 1), ("label", labels, classes - 1)):
        wrong = (column < 0) | (column > most)
        if bool(wrong.any()):
            raise ValueError(f"the detector returned the {name} {column[wrong][0].item()}, wanted 0..{most}")
    return boxes, scores, labels


def unmirror(boxes: Float[Tensor, "n 6"], axes: Sequence[int], patch_zyx: Triple) -> Float[Tensor, "n 6"]:
    """Return the boxes of a tile that was flipped along these axes (0 = z) as boxes of the tile itself."""
    flipped = boxes.clone()
    for axis in axes:
        flipped[:, axis] = patch_zyx[axis] - boxes[:, axis + 3]
        flipped[:, axis + 3] = patch_zyx[axis] - boxes[:, axis]
    return flipped


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


def _device(model: Detector, device: torch.device | str | None) -> torch.device:
    """Where the model takes its images, after it was moved if that is asked for."""
    if device is not None and isinstance(model, nn.Module):
        model.to(device)
    return next((parameter.device for parameter in model.parameters()), torch.device(device or "cpu"))


def _check(models: Sequence[Detector], image: Volume, patch_zyx: Triple, batch_size: int, pool: int) -> Triple:
    if len(models) == 0:
        raise ValueError("no detector, wanted at least one")
    for n, model in enumerate(models):
        if tuple(model.classes) != tuple(models[0].classes):
            raise ValueError(f"model {n + 1} has the classes {model.classes}, the first one {models[0].classes}")
    if len(image.shape) != 4 or min(image.shape) < 1:
        raise ValueError(f"image has shape {tuple(image.shape)}, wanted (c, z, y, x) without an empty axis")
    if len(patch_zyx) != 3:
        raise ValueError(f"patch_zyx is {patch_zyx}, wanted three sides")
    for name, value in (("batch_size", batch_size), ("pool", pool)):
        if value < 1:
            raise ValueError(f"{name} is {value}, wanted at least 1")
    _, z, y, x = image.shape
    return z, y, x
