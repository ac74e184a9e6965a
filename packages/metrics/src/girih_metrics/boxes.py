"""Overlap of axis-aligned 3D boxes. A box is (z0, y0, x0, z1, y1, x1), half-open, any unit."""

import numpy as np
from jaxtyping import Float64


def volume(boxes: Float64[np.ndarray, "n 6"]) -> Float64[np.ndarray, " n"]:
    """Return the volume of every box, in the cube of the boxes' unit."""
    z, y, x = (boxes[:, 3:] - boxes[:, :3]).T
    product: np.ndarray = z * y * x
    return product


def centers(boxes: Float64[np.ndarray, "n 6"]) -> Float64[np.ndarray, "n 3"]:
    """Return the centre (z, y, x) of every box."""
    middle: np.ndarray = (boxes[:, :3] + boxes[:, 3:]) / 2
    return middle


def pairwise_iou(a: Float64[np.ndarray, "n 6"], b: Float64[np.ndarray, "m 6"]) -> Float64[np.ndarray, "n m"]:
    """Return the IoU of every box in `a` with every box in `b`, in [0, 1].

    A box without volume overlaps nothing, itself included. Integer coordinates give the correctly rounded quotient,
    so that an IoU of exactly 3/10 equals the threshold 0.3.
    """
    shared = np.ones((len(a), len(b)))
    for axis in range(3):
        low = np.maximum(a[:, None, axis], b[None, :, axis])
        high = np.minimum(a[:, None, axis + 3], b[None, :, axis + 3])
        shared *= np.maximum(high - low, 0.0)
    joint = volume(a)[:, None] + volume(b)[None, :] - shared
    iou: np.ndarray = np.divide(shared, joint, out=np.zeros_like(shared), where=shared > 0)
    return iou
