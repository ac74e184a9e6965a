"""Results by object size, from the same matches."""

from dataclasses import replace
from itertools import pairwise
from typing import Literal

import numpy as np

from girih_metrics.interfaces import Numbers
from girih_metrics.matches import Matches


def by_size(
    matches: Matches, edges: Numbers, *, false_positives: Literal["own_size", "all"] = "own_size"
) -> dict[str, Matches]:
    """Split matches into size bins; every score can be counted from each.

    The size of a box is the cube root of its volume, in the boxes' unit: match in millimetres to bin in millimetres.
    In a bin, objects of other sizes are ignored and so are the predictions that found them.

    Args:
        matches: from `match`.
        edges: ascending; bin k holds edges[k] <= size < edges[k + 1]. Use 0 and infinity for open ends.
        false_positives: "own_size": they belong to the bin of their own box, as COCO does; "all": to every bin.

    Returns:
        {"low to high": matches}, in the order of the bins.

    Raises:
        ValueError: fewer than two edges, edges that do not ascend, or "own_size" where no prediction has a volume
            (point marks), so that no bin would hold a false positive.
    """
    bounds = [float(edge) for edge in edges]
    if len(bounds) < 2 or any(not low < high for low, high in pairwise(bounds)):
        raise ValueError(f"edges are {bounds}; wanted at least two, ascending")
    if false_positives not in ("own_size", "all"):
        raise ValueError(f"false_positives is {false_positives!r}; wanted 'own_size' or 'all'")
    if false_positives == "own_size" and len(matches.pred_size) and not matches.pred_size.any():
        raise ValueError("false_positives is 'own_size', but no prediction has a volume; wanted 'all' for point marks")
    return {
        f"{low:g} to {high:g}": _within(matches, low, high, false_positives == "own_size")
        for low, high in pairwise(bounds)
    }


def _within(matches: Matches, low: float, high: float, own_size: bool) -> Matches:
    counted = matches.gt_counted & (matches.gt_size >= low) & (matches.gt_size < high)
    found_any, found_here = (np.zeros(matches.judged.shape, dtype=bool) for _ in range(2))
    for found, objects in ((found_any, matches.gt_counted), (found_here, counted)):
        t, j = np.nonzero((matches.found_by >= 0) & objects)
        found[t, matches.found_by[t, j]] = True
    belongs = (matches.pred_size >= low) & (matches.pred_size < high) if own_size else True
    judged = matches.judged & np.where(found_any, found_here, belongs)
    return replace(matches, gt_counted=counted, judged=judged)
