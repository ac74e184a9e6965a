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
    edges of a box are inside. An object too small or too thin to hold any gets the voxel around its centre, or the
    nearest one of the grid. The mask may be in a window that is wider than itself.
    """
    low, high = box[:3], box[3:]
    start = np.floor(low).clip(0, np.array(shape) - 1).astype(int)
    stop = np.ceil(high).clip(start + 1, shape).astype(int)
    z, y, x = (
        np.arange(a, b, dtype=np.float64).reshape(np.where(np.arange(3) == axis, -1, 1)) + 0.5
        for axis, (a, b) in enumerate(zip(start.tolist(), stop.tolist(), strict=True))
    )
    centre, half = (low + high) / 2, (high - low) / 2
    inside: Bool[np.ndarray, "z y x"]
    if paint == "box":
        planes = [(low[axis] <= at) & (at < high[axis]) for axis, at in enumerate((z, y, x))]
        inside = planes[0] & planes[1] & planes[2]
    else:
        squares = [((at - centre[axis]) / half[axis]) ** 2 for axis, at in enumerate((z, y, x))]
        inside = squares[0] + squares[1] + squares[2] <= 1 + ROUNDING
    if not inside.any():
        z, y, x = (np.floor(centre).clip(start, stop - 1).astype(int) - start).tolist()
        inside[z, y, x] = True
    window = tuple(slice(a, b) for a, b in zip(start.tolist(), stop.tolist(), strict=True))
    return (window[0], window[1], window[2]), inside
