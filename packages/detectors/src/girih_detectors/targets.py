"""Checks of a batch at the border of a detector: every message names the image, its case if known, and the row."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .interfaces import Target

IMAGES = (torch.float32, torch.bfloat16, torch.float16)
MASKS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


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


def check_targets(
    targets: Sequence[Target], batch: int, image_zyx: tuple[int, int, int], classes: int, *, instances: bool
) -> None:
    """Check the truth of a batch.

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
    for sample, target in enumerate(targets):
        where = name_of(sample, target)
        for key in ("boxes", "labels"):
            if key not in target:
                raise ValueError(f"{where} has no `{key}`; an image without objects has 0 rows")
        _check_boxes(target, where, image_zyx, classes)
        if instances and "instances" not in target:
            raise ValueError(
                f"{where} has no `instances`, which the segmentation head needs; "
                "build the detector with segmentation=False to train on boxes alone"
            )
        if instances:
            _check_map(target["instances"], "instances", where, image_zyx, MASKS)
            _check_instances(target["instances"], target["boxes"], where)
        if "valid" in target:
            _check_map(target["valid"], "valid", where, image_zyx, (torch.bool,))
        if "seed" in target:
            _check_seed(target["seed"], where)


def name_of(sample: int, target: Target) -> str:
    """Return what an error calls a target."""
    return f"target {sample} (case {target['case_id']!r})" if "case_id" in target else f"target {sample}"


def _check_boxes(target: Target, where: str, image_zyx: tuple[int, int, int], classes: int) -> None:
    boxes, labels = target["boxes"], target["labels"]
    if boxes.ndim != 2 or boxes.shape[1] != 6 or labels.shape != boxes.shape[:1]:
        raise ValueError(
            f"{where}: boxes {tuple(boxes.shape)} and labels {tuple(labels.shape)}, wanted (n, 6) and (n,)"
        )
    if labels.dtype != torch.int64:
        raise ValueError(f"{where}: labels are {labels.dtype}, wanted torch.int64")
    limit = boxes.new_tensor(image_zyx)
    faults = torch.stack(
        [
            ~torch.isfinite(boxes).all(1),
            (boxes[:, 3:] <= boxes[:, :3]).any(1),
            (boxes[:, :3] < 0).any(1) | (boxes[:, 3:] > limit).any(1),
            (labels < 0) | (labels >= classes),
        ]
    )
    if not bool(faults.any()):  # all rows and faults in one synchronisation
        return
    row = int(faults.any(0).nonzero()[0])
    found = f"{where}, row {row}: box {boxes[row].tolist()}"
    not_finite, no_side, outside, _ = faults[:, row].tolist()
    if not_finite:
        raise ValueError(f"{found} is not finite")
    if no_side:
        raise ValueError(f"{found} has a side <= 0, wanted z0 < z1, y0 < y1, x0 < x1")
    if outside:
        raise ValueError(f"{found} reaches out of the image {image_zyx}")
    raise ValueError(f"{where}, row {row}: label {int(labels[row])}, wanted 0..{classes - 1}")


def _check_map(
    found: Tensor, name: str, where: str, image_zyx: tuple[int, int, int], dtypes: tuple[torch.dtype, ...]
) -> None:
    if tuple(found.shape) != image_zyx:
        raise ValueError(f"{where}: `{name}` has shape {tuple(found.shape)}, the image {image_zyx}")
    if found.dtype not in dtypes:
        raise ValueError(f"{where}: `{name}` is {found.dtype}, wanted {' or '.join(map(str, dtypes))}")


def _check_instances(mask: Tensor, boxes: Tensor, where: str) -> None:
    """Count the voxels of each number, in all and in its box."""
    low, high = (int(number) for number in mask.aminmax())
    if low < 0 or high > len(boxes):
        raise ValueError(
            f"{where}: `instances` holds {low}..{high}, wanted 0..{len(boxes)} (row k of the boxes is number k + 1)"
        )
    if high == 0:
        return
    boxed = [_voxels(box) for box in boxes.tolist()]
    inside = torch.stack([(mask[crop] == row + 1).sum() for row, crop in enumerate(boxed)])
    astray = mask.flatten().bincount(minlength=1 + len(boxes))[1:] != inside
    if not bool(astray.any()):
        return
    row = int(astray.nonzero()[0])
    outside = mask == row + 1
    outside[boxed[row]] = False
    raise ValueError(
        f"{where}, row {row}: `instances` has number {row + 1} at voxel {outside.nonzero()[0].tolist()}, "
        f"outside the box {boxes[row].tolist()}"
    )


def _voxels(box: Sequence[float]) -> tuple[slice, ...]:
    """The voxels that a box touches."""
    return tuple(slice(math.floor(a), math.ceil(b)) for a, b in zip(box[:3], box[3:], strict=True))


def _check_seed(seed: object, where: str) -> None:
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.ndim != 0:
            raise ValueError(f"{where}: `seed` is {seed.dtype} {tuple(seed.shape)}, wanted a torch.int64 without axes")
    elif not isinstance(seed, int) or isinstance(seed, bool) or not -(2**63) <= seed < 2**63:
        raise ValueError(f"{where}: `seed` is {seed!r}, wanted an int64")
