"""How many objects a training patch holds, from which the number of queries of Deformable DETR follows."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64, Real
from scipy.spatial import KDTree

from girih_data3d.index import CaseIndex
from girih_data3d.resampling import Number

PERCENTILE = 95
FEWEST_QUERIES = 12
QUERIES_PER_OBJECT = 3
"""nnDetection v2's Deformable DETR: max(12, 3 x P95 of the objects per patch)."""


def objects_per_patch(index: CaseIndex, patch_zyx: Sequence[int]) -> float:
    """Return the 95th percentile, over all objects, of how many objects a patch centred on one of them holds.

    An object counts if its centre is in the patch; the one in the middle does. Without any object: 0. (nnDetection
    takes the fullest patch of each scan and the percentile over scans.)

    Args:
        index: of a prepared dataset, `Store.index`.
        patch_zyx: voxels of the prepared grid.

    Raises:
        ValueError: the patch is not three positive numbers.
    """
    boxes = index.boxes.astype(np.float64)
    return percentile_around(count_around((boxes[:, :3] + boxes[:, 3:]) / 2, index.box_case, patch_zyx))


def queries_for(p95: Number) -> int:
    """Return how many queries suit a dataset with `p95` objects per patch."""
    return max(FEWEST_QUERIES, math.ceil(QUERIES_PER_OBJECT * p95))


def percentile_around(counts: Int64[np.ndarray, " n"]) -> float:
    """Return the 95th percentile of what `count_around` gave, to three decimals; 0 for no object."""
    return round(float(np.percentile(counts, PERCENTILE)), 3) if len(counts) else 0.0


def count_around(
    centres_zyx: Real[np.ndarray, "n 3"], case: Int64[np.ndarray, " n"], patch_zyx: Sequence[Number]
) -> Int64[np.ndarray, " n"]:
    """Return for every object how many objects of its case, with itself, have their centre within half a patch of it.

    Args:
        centres_zyx: in any unit.
        case: of each object; any order.
        patch_zyx: sides, in the same unit.
    """
    patch = np.asarray(patch_zyx, np.float64)
    if patch.shape != (3,) or not (np.isfinite(patch) & (patch > 0)).all():
        raise ValueError(f"patch_zyx is {tuple(patch_zyx)}, wanted three positive sizes")
    scaled: Float64[np.ndarray, "n 3"] = np.asarray(centres_zyx, np.float64) / (patch / 2)
    counts = np.zeros(len(scaled), np.int64)
    order = np.argsort(case, kind="stable")
    starts = np.flatnonzero(np.diff(case[order]))
    for rows in np.split(order, starts + 1):
        if len(rows):
            tree = KDTree(scaled[rows])
            counts[rows] = tree.query_ball_point(
                scaled[rows],
                1 + 1e-9,  # half a patch exactly is inside, whatever the division rounds
                p=np.inf,
                return_length=True,
            )
    return counts
