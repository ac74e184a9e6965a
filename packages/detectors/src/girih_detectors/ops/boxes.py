"""Geometry of axis-aligned 3D boxes. A box is (z0, y0, x0, z1, y1, x1), half-open, any unit.

Half-precision input is computed in float32: a bfloat16 coordinate of 200 is exact to one voxel only.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny  # two empty boxes: 0 / TINY = 0 instead of 0 / 0


def volume(boxes: Float[Tensor, "*n 6"]) -> Float[Tensor, "*n"]:
    """Return the volume of every box, in the cube of the boxes' unit."""
    z, y, x = (boxes[..., 3:] - boxes[..., :3]).unbind(-1)
    return z * y * x


def iou(a: Float[Tensor, "*#n 6"], b: Float[Tensor, "*#n 6"]) -> Float[Tensor, "..."]:
    """Return the IoU of `a` and `b` box by box, in [0, 1]; leading axes broadcast. Sides must not be negative."""
    return _iou_and_union(full_precision(a), full_precision(b))[0]


def giou(a: Float[Tensor, "*#n 6"], b: Float[Tensor, "*#n 6"]) -> Float[Tensor, "..."]:
    """Return the generalised IoU box by box, in [-1, 1]; leading axes broadcast. Sides must not be negative.

    IoU - (hull - union) / hull, hull = the smallest box around both (Rezatofighi et al. 2019, algorithm 1).
    """
    a, b = full_precision(a), full_precision(b)
    overlap, union = _iou_and_union(a, b)
    hull = torch.ones_like(overlap)
    for axis in range(3):
        hull = hull * (torch.maximum(a[..., axis + 3], b[..., axis + 3]) - torch.minimum(a[..., axis], b[..., axis]))
    return overlap - (hull - union) / hull.clamp(min=TINY)


def pairwise_iou(a: Float[Tensor, "n 6"], b: Float[Tensor, "m 6"]) -> Float[Tensor, "n m"]:
    """Return the IoU of every box in `a` with every box in `b`, in [0, 1].

    Disjoint boxes and boxes without volume score 0; an empty input gives an empty matrix.

    Raises:
        ValueError: a box has a negative side.
    """
    _check_sides(a, "a")
    _check_sides(b, "b")
    return iou(a[:, None], b[None])


def pairwise_giou(a: Float[Tensor, "n 6"], b: Float[Tensor, "m 6"]) -> Float[Tensor, "n m"]:
    """Return the generalised IoU of every box in `a` with every box in `b`, in [-1, 1].

    It is -1 only where both have no volume.

    Raises:
        ValueError: a box has a negative side.
    """
    _check_sides(a, "a")
    _check_sides(b, "b")
    return giou(a[:, None], b[None])


def clip(boxes: Float[Tensor, "*n 6"], shape_zyx: tuple[int, int, int]) -> Float[Tensor, "*n 6"]:
    """Return the boxes cut to the image [0, shape_zyx]; a box outside becomes flat on the border."""
    limit = torch.tensor((*shape_zyx, *shape_zyx), dtype=boxes.dtype, device=boxes.device)
    return torch.minimum(boxes.clamp(min=0), limit)


def wider_than(boxes: Float[Tensor, "*n 6"], side: float) -> Bool[Tensor, "*n"]:
    """Return which boxes have every side >= `side`."""
    return (boxes[..., 3:] - boxes[..., :3] >= side).all(-1)


def full_precision(numbers: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return half precision as float32, and wider types as they are."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def _iou_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    # axis by axis: a (n, m, 3) intermediate is three times the memory and half the speed
    shared = a.new_ones(())
    for axis in range(3):
        side = torch.minimum(a[..., axis + 3], b[..., axis + 3]) - torch.maximum(a[..., axis], b[..., axis])
        shared = shared * side.clamp(min=0)
    union = volume(a) + volume(b) - shared
    return shared / union.clamp(min=TINY), union


def _check_sides(boxes: Tensor, name: str) -> None:
    inverted = (boxes[:, 3:] < boxes[:, :3]).any(-1)
    if bool(inverted.any()):
        row = int(inverted.nonzero()[0])
        raise ValueError(
            f"`{name}` row {row} has a negative side: {boxes[row].tolist()}; wanted z0 <= z1, y0 <= y1, x0 <= x1"
        )
