"""What the anchors of a batch should say."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from .anchors import AnchorGrid
from .atss import match_atss
from .interfaces import Target


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
    """Anchors that teach what is no object: no positives, nor those centred on voxels that are not valid."""


@torch.no_grad()
def anchor_truth(targets: Sequence[Target], grid: AnchorGrid) -> AnchorTruth:
    """Match every image's objects with its anchors (see `match_atss`) and join the images."""
    n, device = len(grid), grid.sizes.device
    background = torch.ones(len(targets), n, dtype=torch.bool, device=device)
    positives, labels, boxes, anchors = [], [], [], []
    for image, target in enumerate(targets):
        match = match_atss(target["boxes"].float(), grid)
        if "valid" in target:
            background[image] = _centred_on(target["valid"], grid)
        background[image, match.anchors] = False
        positives.append(image * n + match.anchors)
        labels.append(target["labels"][match.objects])
        boxes.append(target["boxes"].float()[match.objects])
        anchors.append(grid.boxes(match.anchors))
    return AnchorTruth(torch.cat(positives), torch.cat(labels), torch.cat(boxes), torch.cat(anchors), background)


def _centred_on(valid: Bool[Tensor, "z y x"], grid: AnchorGrid) -> Bool[Tensor, " n"]:
    """Whether the voxel in the middle of each anchor is valid: voxel index * stride, see `anchors.CENTRE_OFFSET`."""
    cells = [valid[::z, ::y, ::x].flatten() for z, y, x in grid.strides]
    return torch.cat(cells).repeat_interleave(grid.per_cell)
