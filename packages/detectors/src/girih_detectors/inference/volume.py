"""Detection in a whole volume: tiles, mirrors, merging; memory does not grow with the number of tiles."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from numbers import Integral

import torch
from torch import nn

from ..anchors import Triple
from ..interfaces import Detections, Detector, Mask, Volume
from .merging import MERGING, Candidates, Merging, best, join, merge, no_candidates
from .reading import read_batches, tiles_with
from .tile_boxes import MIRRORINGS, detect_tiles
from .tiling import tile_grid


def detect_volume(
    detector: Detector | Iterable[Detector],
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
    answer does not depend on `batch_size`, but for rounding in the network. Precision is the caller's: wrap the call in
    torch.autocast.

    Args:
        detector: put into evaluation mode for the call. Several, in any iterable, are an ensemble: every tile is read
            once for all, and their boxes are merged.
        image: (c, z, y, x) with `shape`, and `[4 in-bounds slices]` giving float32 arrays; read from several threads.
        patch_zyx: tile in voxels; smaller volumes are padded with 0 on both sides.
        overlap: neighbours have at least int(overlap * patch) voxels in common along each axis.
        mirror: detect in all eight mirrorings of every tile and merge.
        batch_size: tiles at once.
        device: the detectors are moved there; None leaves them where they are.
        valid: bool (z, y, x), read once and in parts, so that it may be computed from the image as it is read; tiles
            without a True voxel are skipped. It says nothing of boxes.
        merging: how boxes are merged.
        progress: called with (tiles done, all tiles) before the first and after each batch.

    Raises:
        ValueError: an image or mask of another shape, a bad overlap, detectors of different classes, a patch that a
            detector does not take, a device that is not there, a mask that cannot be read; naming the tiles: a tile
            that cannot be read, output that is not finite or not what `Detector.detect` promises.
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
    detectors: Detector | Iterable[Detector],
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
        overlap: neighbours have at least int(overlap * patch) voxels in common along each axis.
        mirror: detect in all eight mirrorings of every tile.
        batch_size: tiles at once.
        device: the detectors are moved there; None leaves them where they are.
        valid: bool (z, y, x); tiles without a True voxel are skipped.
        pool: best boxes kept for each model and mirroring.
        progress: called with (tiles done, all tiles) before the first and after each batch.

    Returns:
        For the first model all mirrorings in the order of `MIRRORINGS` (without `mirror` one), then the next model.

    Raises:
        ValueError: as `detect_volume`.
    """
    models = [detectors] if isinstance(detectors, Detector) else list(detectors)
    shape = _check(models, image, patch_zyx, batch_size, pool)
    _check_device(device)
    devices = [_device(model, device) for model in models]
    tiles = tile_grid(shape, patch_zyx, overlap)
    if valid is not None:
        if tuple(valid.shape) != shape:
            raise ValueError(f"valid has shape {tuple(valid.shape)}, the image {shape}")
        tiles = tiles_with(valid, tiles, patch_zyx)
    mirrorings = MIRRORINGS if mirror else MIRRORINGS[:1]
    pools = [no_candidates() for _ in models for _ in mirrorings]
    done = 0
    if progress is not None:
        progress(done, len(tiles))
    pin = any(where.type == "cuda" for where in devices)
    reading = read_batches(image, tiles, patch_zyx, batch_size, pin=pin)
    with _evaluating(models), torch.no_grad(), closing(reading):
        for starts, voxels in reading:
            on = {where: voxels.to(where, non_blocking=True) for where in set(devices)}
            for n, (model, where) in enumerate(zip(models, devices, strict=True)):
                try:
                    found = detect_tiles(model, on[where], mirrorings, starts)
                except ValueError as error:
                    who = f"model {n + 1} of {len(models)}, " if len(models) > 1 else ""
                    raise ValueError(f"{who}tiles starting at {list(starts)} (z, y, x): {error}") from error
                for i, new in enumerate(found, n * len(mirrorings)):
                    pools[i] = best(join([pools[i], new]), pool)
            del voxels, on  # before room is made for the next ones
            done += len(starts)
            if progress is not None:
                progress(done, len(tiles))
    return pools


@contextmanager
def _evaluating(models: Sequence[Detector]) -> Iterator[None]:
    """Evaluation mode, and afterwards the former mode of every module: what was frozen in a model that trains stays."""
    modules = [module for model in models if isinstance(model, nn.Module) for module in model.modules()]
    modes = [module.training for module in modules]
    try:
        for model in models:
            if isinstance(model, nn.Module):
                model.eval()
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


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
    if not isinstance(patch_zyx, Sequence) or len(patch_zyx) != 3 or not all(map(_is_count, patch_zyx)):
        raise ValueError(f"patch_zyx is {patch_zyx!r}, wanted a tuple of three integers of at least 1")
    for name, value in (("batch_size", batch_size), ("pool", pool)):
        if not _is_count(value):
            raise ValueError(f"{name} is {value!r}, wanted an integer of at least 1")
    _, z, y, x = image.shape
    return z, y, x


def _check_device(device: torch.device | str | None) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the second from a torch that was built without CUDA
        raise ValueError(f"device is {str(device)!r}, which torch cannot use here: {error}") from error


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and int(value) >= 1
