"""Checks at the border of a detector: of its settings, and of a batch, whose image, case and row a message names."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .interfaces import Pyramid, Target
from .uncompiled import uncompiled

IMAGES = (torch.float32, torch.bfloat16, torch.float16)
MASKS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the classes.

    Raises:
        ValueError: there are none, or one twice.
    """
    if len(classes) == 0 or len(set(classes)) != len(classes):
        raise ValueError(f"classes are {list(classes)}, wanted at least one and each once")
    return tuple(classes)


def check_levels(pyramid: Pyramid, levels: Sequence[int]) -> tuple[int, ...]:
    """Return the levels.

    Raises:
        ValueError: there are none, the pyramid lacks one, or they do not ascend.
    """
    if len(levels) == 0 or any(not 0 <= level < len(pyramid.channels) for level in levels):
        raise ValueError(f"levels are {tuple(levels)}, the pyramid has maps 0..{len(pyramid.channels) - 1}")
    if list(levels) != sorted(set(levels)):
        raise ValueError(f"levels are {tuple(levels)}, wanted ascending, finest first")
    return tuple(levels)


def image_shape(pyramid: Pyramid, images: Tensor) -> tuple[int, int, int]:
    """Return the spatial shape of images that this pyramid takes; see `check_images`."""
    # a pyramid that knows its encoder can say how many channels
    encoder = getattr(pyramid, "encoder", pyramid)
    return check_images(images, pyramid.strides, getattr(encoder, "in_channels", None))


def check_images(
    images: Tensor, strides: Sequence[tuple[int, int, int]], in_channels: int | None
) -> tuple[int, int, int]:
    """Return the spatial shape (z, y, x) of images (b, c, z, y, x).

    Args:
        images: the batch.
        strides: of every map of the pyramid.
        in_channels: channels wanted, None if the pyramid does not say.

    Raises:
        ValueError: not five axes, an axis of no length, no float32 or half precision, other channels, or an axis that a
            stride does not divide.
    """
    if images.ndim != 5:
        raise ValueError(f"images have shape {tuple(images.shape)}, wanted (batch, channel, z, y, x)")
    if 0 in images.shape:
        raise ValueError(f"images have shape {tuple(images.shape)}, wanted 1 or more along each axis")
    if images.dtype not in IMAGES:
        raise ValueError(f"images are {images.dtype}, wanted torch.float32, torch.bfloat16 or torch.float16")
    if in_channels is not None and images.shape[1] != in_channels:
        raise ValueError(f"images have {images.shape[1]} channels, the encoder takes {in_channels}")
    shape = (images.shape[2], images.shape[3], images.shape[4])
    for axis, name in enumerate("zyx"):
        wanted = max(stride[axis] for stride in strides)
        if shape[axis] % wanted:
            raise ValueError(f"images have {shape[axis]} voxels along {name}, wanted a multiple of {wanted}")
    return shape


@uncompiled  # what it finds is for the host
def check_targets(
    targets: Sequence[Target], batch: int, image_zyx: tuple[int, int, int], classes: int, *, instances: bool
) -> None:
    """Check the truth of a batch.

    However many images there are, one copy goes to the host, and one more for the masks.

    A box may lack voxels in the mask: smaller objects may hide the object. Voxels without a box, or outside of it, are
    a mistake: the boxes and the mask would teach different things.

    Args:
        targets: one per image.
        batch: number of images.
        image_zyx: their shape.
        classes: labels must lie in 0..classes - 1.
        instances: whether a mask is required; if not, it is not looked at.

    Raises:
        ValueError: a missing or misshapen entry; a box that is not finite, has a side <= 0 or reaches out of the image;
            a label out of range; an instance number without a box, or with voxels outside its box (rounded outwards); a
            seed that is no int64.
            The message names the image, its case if the target does, and the row.
    """
    if len(targets) != batch:
        raise ValueError(f"{len(targets)} targets for {batch} images")
    names = [name_of(sample, target) for sample, target in enumerate(targets)]
    for where, target in zip(names, targets, strict=True):
        _check_layout(target, where, image_zyx, instances=instances)
    boxes = _check_boxes(targets, names, image_zyx, classes)
    if instances:
        _check_instances(targets, names, boxes)


def name_of(sample: int, target: Target) -> str:
    """Return what an error calls a target."""
    return f"target {sample} (case {target['case_id']!r})" if "case_id" in target else f"target {sample}"


def _check_layout(target: Target, where: str, image_zyx: tuple[int, int, int], *, instances: bool) -> None:
    """Check what can be seen without a look at a number on the device."""
    for key in ("boxes", "labels"):
        if key not in target:
            raise ValueError(f"{where} has no `{key}`; an image without objects has 0 rows")
    boxes, labels = target["boxes"], target["labels"]
    if boxes.ndim != 2 or boxes.shape[1] != 6 or labels.shape != boxes.shape[:1]:
        raise ValueError(
            f"{where}: boxes {tuple(boxes.shape)} and labels {tuple(labels.shape)}, wanted (n, 6) and (n,)"
        )
    if labels.dtype != torch.int64:
        raise ValueError(f"{where}: labels are {labels.dtype}, wanted torch.int64")
    if instances and "instances" not in target:
        raise ValueError(
            f"{where} has no `instances`, which the segmentation head needs; "
            "build the detector with segmentation=False to train on boxes alone"
        )
    if instances:
        _check_map(target["instances"], "instances", where, image_zyx, MASKS)
    if "valid" in target:
        _check_map(target["valid"], "valid", where, image_zyx, (torch.bool,))
    if "seed" in target:
        _check_seed(target["seed"], where)


def _check_boxes(
    targets: Sequence[Target], names: Sequence[str], image_zyx: tuple[int, int, int], classes: int
) -> list[np.ndarray]:
    """Return the boxes of each image on the host, where they and their labels are checked: one copy for the batch."""
    rows = [torch.cat([target["boxes"].float(), target["labels"].float()[:, None]], 1) for target in targets]
    counts = [len(each) for each in rows]
    found = np.split(torch.cat(rows).numpy(force=True), np.cumsum(counts)[:-1])
    for where, each in zip(names, found, strict=True):
        low, high, labels = each[:, :3], each[:, 3:6], each[:, 6]
        faults = np.stack(
            [
                ~np.isfinite(each).all(1),
                (high <= low).any(1),
                (low < 0).any(1) | (high > image_zyx).any(1),
                (labels < 0) | (labels >= classes),
            ]
        )
        if not faults.any():
            continue
        row = int(faults.any(0).argmax())
        box = f"{where}, row {row}: box {each[row, :6].tolist()}"
        not_finite, no_side, outside, _ = faults[:, row]
        if not_finite:
            raise ValueError(f"{box} is not finite")
        if no_side:
            raise ValueError(f"{box} has a side <= 0, wanted z0 < z1, y0 < y1, x0 < x1")
        if outside:
            raise ValueError(f"{box} reaches out of the image {image_zyx}")
        raise ValueError(f"{where}, row {row}: label {int(labels[row])}, wanted 0..{classes - 1}")
    return [each[:, :6] for each in found]


def _check_map(
    found: Tensor, name: str, where: str, image_zyx: tuple[int, int, int], dtypes: tuple[torch.dtype, ...]
) -> None:
    if tuple(found.shape) != image_zyx:
        raise ValueError(f"{where}: `{name}` has shape {tuple(found.shape)}, the image {image_zyx}")
    if found.dtype not in dtypes:
        raise ValueError(f"{where}: `{name}` is {found.dtype}, wanted {' or '.join(map(str, dtypes))}")


def _check_instances(targets: Sequence[Target], names: Sequence[str], boxes: Sequence[np.ndarray]) -> None:
    """Compare the voxels that are no background with those of each number in its box; one look for the batch."""
    astray = []
    for target, rows in zip(targets, boxes, strict=True):
        mask = target["instances"]
        astray.append((mask != 0).sum() - sum((mask[_voxels(box)] == row + 1).sum() for row, box in enumerate(rows)))
    for where, target, rows, count in zip(names, targets, boxes, torch.stack(astray).tolist(), strict=True):
        if count != 0:
            raise ValueError(f"{where}{_astray(target['instances'], rows)}")


def _astray(mask: Tensor, boxes: np.ndarray) -> str:
    """Say which number of a mask has no box, or which voxel lies outside of its."""
    low, high = (int(number) for number in mask.aminmax())
    if low < 0 or high > len(boxes):
        return f": `instances` holds {low}..{high}, wanted 0..{len(boxes)} (row k of the boxes is number k + 1)"
    outside = mask != 0
    for row, box in enumerate(boxes):
        outside[_voxels(box)] &= mask[_voxels(box)] != row + 1
    row = int(mask[outside].min()) - 1
    return (
        f", row {row}: `instances` has number {row + 1} at voxel "
        f"{(outside & (mask == row + 1)).nonzero()[0].tolist()}, outside the box {boxes[row].tolist()}"
    )


def _voxels(box: np.ndarray) -> tuple[slice, ...]:
    """The voxels that a box touches."""
    return tuple(slice(math.floor(a), math.ceil(b)) for a, b in zip(box[:3], box[3:], strict=True))


def _check_seed(seed: object, where: str) -> None:
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.ndim != 0:
            raise ValueError(f"{where}: `seed` is {seed.dtype} {tuple(seed.shape)}, wanted a torch.int64 without axes")
    elif not isinstance(seed, int) or isinstance(seed, bool) or not -(2**63) <= seed < 2**63:
        raise ValueError(f"{where}: `seed` is {seed!r}, wanted an int64")
