"""What the anchors of a batch should say."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from .anchors import AnchorGrid
from .atss import match_atss
from .interfaces import Target
from .valid_voxels import far_from_invalid


@dataclass(frozen=True)
class AnchorTruth:
    """The p anchors that answer for objects, counted through the b images of n anchors, and the background."""

    positives: Int64[Tensor, " p"]
    """Ascending, unique: image * n + anchor."""
    labels: Int64[Tensor, " p"]
    """Class of each positive's object."""
    boxes: Float[Tensor, "p 6"]
    """Box of each positive's object."""
    anchors: Float[Tensor, "p 6"]
    """Each positive anchor itself."""
    background: Bool[Tensor, "b n"]
    """Anchors that teach what is no object: no positives, nor those of cells next to a voxel that is not valid."""


@torch.no_grad()
def anchor_truth(targets: Sequence[Target], grid: AnchorGrid) -> AnchorTruth:
    """Match every image's objects with its anchors (see `match_atss`) and join the images.

    A cell is next to a voxel if its centre is less than a stride of its level away along every axis. Of each level
    these are the cells around it, as ATSS's candidates are: what is not valid may be an object that is not told of.
    """
    n, device = len(grid), grid.sizes.device
    background = torch.ones(len(targets), n, dtype=torch.bool, device=device)
    positives, labels, boxes, anchors = [], [], [], []
    for image, target in enumerate(targets):
        match = match_atss(target["boxes"].float(), grid)
        if "valid" in target:
            # the middle of cell i is voxel i * stride, see `anchors.CENTRE_OFFSET`
            cells = [far_from_invalid(target["valid"], stride, middle=False) for stride in grid.strides]
            background[image] = torch.cat(cells).repeat_interleave(grid.per_cell)
        background[image, match.anchors] = False
        positives.append(image * n + match.anchors)
        labels.append(target["labels"][match.objects])
        boxes.append(target["boxes"].float()[match.objects])
        anchors.append(grid.boxes(match.anchors))
    return AnchorTruth(torch.cat(positives), torch.cat(labels), torch.cat(boxes), torch.cat(anchors), background)
