"""Boxes as transformers see them: (z, y, x, dz, dy, dx), centre and sides in units of the patch, 0 and 1 its faces."""

import torch
from jaxtyping import Float
from torch import Tensor

from .anchors import Triple
from .ops.boxes import full_precision

EPSILON = 1e-5  # Deformable DETR, `inverse_sigmoid`


def edges_to_centre(boxes: Float[Tensor, "*n 6"], image_zyx: Triple) -> Float[Tensor, "*n 6"]:
    """Return boxes by voxel edges (z0, y0, x0, z1, y1, x1) as centre and sides in units of a patch of this shape.

    `centre_to_edges` takes them back.
    """
    parts = full_precision(boxes) / _sides(boxes, image_zyx)
    low, high = parts[..., :3], parts[..., 3:]
    return torch.cat([0.5 * (low + high), high - low], -1)


def centre_to_edges(boxes: Float[Tensor, "*n 6"], image_zyx: Triple = (1, 1, 1)) -> Float[Tensor, "*n 6"]:
    """Return boxes by centre and sides as edges in voxels; of a patch of one voxel, that is in units of the patch."""
    centre, half = full_precision(boxes[..., :3]), 0.5 * full_precision(boxes[..., 3:])
    return torch.cat([centre - half, centre + half], -1) * _sides(boxes, image_zyx)


def logit(fractions: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return log(p / (1 - p)), p kept 1e-5 away from 0 and 1."""
    return torch.logit(full_precision(fractions), eps=EPSILON)


def _sides(boxes: Tensor, image_zyx: Triple) -> Tensor:
    # filled on the device: a copy of numbers from the host would wait for it
    return torch.cat([full_precision(boxes).new_full((1,), side) for side in image_zyx]).repeat(2)
