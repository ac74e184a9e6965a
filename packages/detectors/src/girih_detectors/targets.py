"""Checks of a batch at the border of a detector: every message names the image and the row."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .interfaces import Target


def check_images(
    images: Tensor, strides: Sequence[tuple[int, int, int]], in_channels: int | None
) -> tuple[int, int, int]:
    """Return the spatial shape (z, y, x) of images (b, c, z, y, x).

    Args:
        images: the batch.
        strides: of every map of the pyramid.
        in_channels: channels wanted, None if the pyramid does not say.

    Raises:
        ValueError: not five axes, other channels, or an axis that a stride does not divide.
    """
    if images.ndim != 5:
        raise ValueError(f"images have shape {tuple(images.shape)}, wanted (batch, channel, z, y, x)")
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

    Args:
        targets: one per image.
        batch: number of images.
        image_zyx: their shape.
        classes: labels must lie in 0..classes - 1.
        instances: whether a mask is required.

    Raises:
        ValueError: a missing or misshapen entry; a box that is not finite, has a side <= 0 or reaches out of the image;
            a label out of range; an instance number without a box.
    """
    if len(targets) != batch:
        raise ValueError(f"{len(targets)} targets for {batch} images")
    for sample, target in enumerate(targets):
        _check_boxes(target, sample, image_zyx, classes)
        if instances and "instances" not in target:
            raise ValueError(
                f"target {sample} has no `instances`, which the segmentation head needs; "
                "build the detector with segmentation=False to train on boxes alone"
            )
        if instances:
            _check_instances(target, sample, image_zyx)
        if "valid" in target and tuple(target["valid"].shape) != image_zyx:
            raise ValueError(
                f"target {sample}: `valid` has shape {tuple(target['valid'].shape)}, the image {image_zyx}"
            )


def _check_boxes(target: Target, sample: int, image_zyx: tuple[int, int, int], classes: int) -> None:
    boxes, labels = target["boxes"], target["labels"]
    if boxes.ndim != 2 or boxes.shape[1] != 6 or labels.shape != boxes.shape[:1]:
        raise ValueError(
            f"target {sample}: boxes {tuple(boxes.shape)} and labels {tuple(labels.shape)}, wanted (n, 6) and (n,)"
        )
    limit = boxes.new_tensor(image_zyx)
    faults = torch.stack(
        [
            ~torch.isfinite(boxes).all(1),
            (boxes[:, 3:] <= boxes[:, :3]).any(1),
            (boxes[:, :3] < 0).any(1) | (boxes[:, 3:] > limit).any(1),
            (labels < 0) | (labels >= classes),
        ]
    )
    if not bool(faults.any()):  # the one synchronisation of a good image
        return
    row = int(faults.any(0).nonzero()[0])
    found = f"target {sample}, row {row}: box {boxes[row].tolist()}"
    not_finite, no_side, outside, _ = faults[:, row].tolist()
    if not_finite:
        raise ValueError(f"{found} is not finite")
    if no_side:
        raise ValueError(f"{found} has a side <= 0, wanted z0 < z1, y0 < y1, x0 < x1")
    if outside:
        raise ValueError(f"{found} reaches out of the image {image_zyx}")
    raise ValueError(f"target {sample}, row {row}: label {int(labels[row])}, wanted 0..{classes - 1}")


def _check_instances(target: Target, sample: int, image_zyx: tuple[int, int, int]) -> None:
    mask = target["instances"]
    if tuple(mask.shape) != image_zyx:
        raise ValueError(f"target {sample}: `instances` has shape {tuple(mask.shape)}, the image {image_zyx}")
    low, high = (int(v) for v in torch.aminmax(mask))
    if low < 0 or high > len(target["boxes"]):
        raise ValueError(
            f"target {sample}: `instances` holds {low}..{high}, wanted 0..{len(target['boxes'])} "
            "(row k of the boxes is number k + 1)"
        )
