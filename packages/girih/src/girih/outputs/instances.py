"""Boxes as an instance volume on the grid of the scan."""

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from girih.outputs.case_boxes import CaseBoxes

EDGE_DECIMALS = 6
"""Boxes come through millimetres: an edge in the middle of a voxel is there but for the last digits of a double."""


def instance_volume(found: CaseBoxes, *, min_score: float = 0.0) -> Shaped[np.ndarray, "z y x"]:
    """Return a volume that is k + 1 in the box of row k, and 0 where no box with at least `min_score` is.

    A box fills the voxels whose centres lie in it, and at least one voxel of the grid: the nearest. Where boxes
    overlap, the one with the higher score is seen, of equal scores the earlier row; a box can be hidden altogether.
    The values are int16, or int32 if there are more than 32,767 boxes.
    """
    size, edges = np.array(found.shape_zyx), found.boxes.round(EDGE_DECIMALS)
    first, last = _range(edges[:, :3], edges[:, 3:], size)
    volume = np.zeros(found.shape_zyx, np.int16 if len(found.boxes) <= np.iinfo(np.int16).max else np.int32)
    for row in np.argsort(-found.scores, kind="stable")[::-1]:
        if found.scores[row] >= min_score:
            (z0, y0, x0), (z1, y1, x1) = first[row], last[row]
            volume[z0:z1, y0:y1, x0:x1] = row + 1
    return volume


def _range(
    low: Float64[np.ndarray, "n 3"], high: Float64[np.ndarray, "n 3"], size: Int64[np.ndarray, "3"]
) -> tuple[Int64[np.ndarray, "n 3"], Int64[np.ndarray, "n 3"]]:
    """Index range [first, last) of the voxels i with low <= i + 0.5 < high, inside the grid and never empty."""
    first = np.clip(np.ceil(low - 0.5), 0, size)
    last = np.clip(np.ceil(high - 0.5), 0, size)
    middle = np.clip(np.floor((low + high) / 2), 0, size - 1)
    thin = first >= last
    return np.where(thin, middle, first).astype(np.int64), np.where(thin, middle + 1, last).astype(np.int64)
