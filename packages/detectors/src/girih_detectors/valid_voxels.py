"""What may be taught as background: `valid` is False where nobody knows what there is, or where it is to be ignored."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from .anchors import Triple
from .interfaces import Target


def far_from_invalid(valid: Bool[Tensor, "z y x"], stride: Triple, *, middle: bool) -> Bool[Tensor, " cells"]:
    """Return, row by row, which cells of a map have no invalid voxel less than a stride away along every axis.

    So of each map some cells around an invalid voxel stay out, however small the object is that it marks.

    Args:
        valid: of an image.
        stride: voxels per cell.
        middle: whether to measure from the middle of a cell, or from the middle of its first voxel.
    """
    invalid = (~valid).float()[None]
    for axis, step in enumerate(stride):  # one after the other: a window of 63^3 voxels is slow
        window, steps, margin = [1, 1, 1], [1, 1, 1], [0, 0, 0]
        margin[axis] = step // 2 if middle else step - 1
        window[axis] = step + 2 * margin[axis] if middle else step + margin[axis]
        steps[axis] = step
        invalid = F.max_pool3d(invalid, window, steps, margin)
    return invalid.flatten() == 0


def centre_is_valid(boxes: Float[Tensor, "b q 6"], targets: Sequence[Target], image_zyx: Triple) -> Bool[Tensor, "b q"]:
    """Return whether the centre of each box lies in a valid voxel; boxes by centre and sides in units of the image."""
    voxels = [(boxes[..., axis].detach() * n).long().clamp(0, n - 1) for axis, n in enumerate(image_zyx)]
    rows = [
        target["valid"][z, y, x] if "valid" in target else torch.ones_like(z, dtype=torch.bool)
        for target, z, y, x in zip(targets, *voxels, strict=True)
    ]
    return torch.stack(rows)
