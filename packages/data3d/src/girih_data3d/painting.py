"""Masks for objects that were labelled without: an ellipsoid or a box in place of the unknown shape."""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64

from girih_data3d.instances import Mask

Paint = Literal["ellipsoid", "box"]
"""What fills the box of an object."""
ROUNDING = 1e-6
"""Of the ellipsoid's equation: a voxel centre on the surface counts, wherever the object lies in the patient."""


def paint_mask(box: Float64[np.ndarray, "6"], shape: tuple[int, int, int], paint: Paint) -> Mask:
    """Return the voxels of a grid whose centres lie in an object that fills a box in voxel edges of the grid.

    The box may reach out of the grid, but has to overlap it. Centres on the surface of an ellipsoid and on the low
    edges of a box are inside. Along an axis on which a box holds no centre, it holds the one of the voxel around its
    own centre. An ellipsoid has the voxels along its three axes too, so that it reaches all sides of its box, which a
    long and thin one would not: each side of a mask is less than a voxel from the box's. An object without any voxel in
    the grid gets the nearest one. The mask may be in a window that is wider than itself.
    """
    low, high = box[:3], box[3:]
    start = np.floor(low).clip(0, np.array(shape) - 1).astype(int)
    stop = np.ceil(high).clip(start + 1, shape).astype(int)
    centre, half = (low + high) / 2, (high - low) / 2
    spans, middles, squares = [], [], []
    for axis in range(3):
        along = np.where(np.arange(3) == axis, -1, 1)
        at = np.arange(start[axis], stop[axis]).reshape(along) + 0.5
        middle, span = np.floor(at) == np.floor(centre[axis]), (low[axis] <= at) & (at < high[axis])
        thin = not span.any()
        middles.append(middle)
        spans.append(middle if thin else span)
        squares.append(np.where(middle, 0, np.inf) if thin else ((at - centre[axis]) / half[axis]) ** 2)
    inside: Bool[np.ndarray, "z y x"] = spans[0] & spans[1] & spans[2]
    if paint == "ellipsoid":
        inside = squares[0] + squares[1] + squares[2] <= 1 + ROUNDING
        for axis in range(3):
            z, y, x = (spans[k] if k == axis else middles[k] for k in range(3))
            inside |= z & y & x
    if not inside.any():
        z, y, x = (np.floor(centre).clip(start, stop - 1).astype(int) - start).tolist()
        inside[z, y, x] = True
    window = tuple(slice(a, b) for a, b in zip(start.tolist(), stop.tolist(), strict=True))
    return (window[0], window[1], window[2]), inside
