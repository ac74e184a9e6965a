"""Boxes as offsets from anchors (Ren et al. 2015, section 3.1.2, in 3D, unit weights).

Invariant: decode(encode(boxes, anchors), anchors) == boxes, while no side of a box exceeds 62.5 times its anchor's.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

LOG_SIZE_LIMIT = math.log(1000 / 16)  # as in detectron2 and nnDetection: keeps exp finite early in training


def encode(boxes: Float[Tensor, "n 6"], anchors: Float[Tensor, "n 6"]) -> Float[Tensor, "n 6"]:
    """Return (dz, dy, dx, log sz, log sy, log sx): centre shift in anchor sides, log of box side over anchor side.

    Every side must be > 0. Computed in float32 or better.
    """
    centre, size = _centre_size(boxes)
    anchor_centre, anchor_size = _centre_size(anchors)
    return torch.cat([(centre - anchor_centre) / anchor_size, torch.log(size / anchor_size)], dim=-1)


def decode(deltas: Float[Tensor, "n 6"], anchors: Float[Tensor, "n 6"]) -> Float[Tensor, "n 6"]:
    """Return the boxes that `deltas` place around `anchors`, not clipped; the log sizes are cut at log(1000 / 16)."""
    anchor_centre, anchor_size = _centre_size(anchors)
    deltas = deltas.to(anchor_size.dtype)
    centre = anchor_centre + deltas[..., :3] * anchor_size
    half = 0.5 * anchor_size * torch.exp(deltas[..., 3:].clamp(max=LOG_SIZE_LIMIT))
    return torch.cat([centre - half, centre + half], dim=-1)


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    low, high = boxes[..., :3], boxes[..., 3:]
    return 0.5 * (low + high), high - low
