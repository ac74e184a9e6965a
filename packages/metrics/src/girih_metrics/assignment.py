"""Who found whom: pair the predictions of one case and class with its objects, at every threshold at once.

The functions share one contract. `value[i, j]` is the closeness of prediction i (best score first) to object j,
`hit[t, i, j]` whether that is a hit at threshold t. They return `found_by[t, j]`, the prediction that is credited
with object j, or -1.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.optimize import linear_sum_assignment

AssignmentName = Literal["greedy", "hungarian", "max_overlap", "each_object"]
Assigner = Callable[[Float64[np.ndarray, "n m"], Bool[np.ndarray, "t n m"]], Int64[np.ndarray, "t m"]]


def assigner(name: AssignmentName) -> Assigner:
    """Return the assignment called `name`.

    Raises:
        ValueError: an unknown name.
    """
    table: dict[str, Assigner] = {
        "greedy": greedy,
        "hungarian": hungarian,
        "max_overlap": max_overlap,
        "each_object": each_object,
    }
    if name not in table:
        raise ValueError(f"assignment is {name!r}; wanted one of {list(table)}")
    return table[name]


def greedy(value: Float64[np.ndarray, "n m"], hit: Bool[np.ndarray, "t n m"]) -> Int64[np.ndarray, "t m"]:
    """Let each prediction, best score first, take the closest object that is still free (COCO, nnDetection)."""
    found_by = np.full((hit.shape[0], hit.shape[2]), -1, dtype=np.int64)
    for i in np.flatnonzero(hit.any(axis=(0, 2))):
        free = hit[:, i] & (found_by < 0)
        takes = np.flatnonzero(free.any(axis=1))
        best = np.where(free[takes], value[i], -np.inf).argmax(axis=1)
        found_by[takes, best] = i
    return found_by


def hungarian(value: Float64[np.ndarray, "n m"], hit: Bool[np.ndarray, "t n m"]) -> Int64[np.ndarray, "t m"]:
    """Find as many objects as possible, and among those pairings the one of largest total closeness (picai_eval)."""
    found_by = np.full((hit.shape[0], hit.shape[2]), -1, dtype=np.int64)
    for t, pairs in enumerate(hit):
        if not pairs.any():
            continue
        within = value[pairs]
        span = float(within.max() - within.min())
        # A pair is worth more than all differences of closeness together, so that their number is maximised first.
        worth = np.where(pairs, (value - within.min()) + (span + 1.0) * (1 + min(pairs.shape)), 0.0)
        rows, columns = linear_sum_assignment(worth, maximize=True)
        kept = pairs[rows, columns]
        found_by[t, columns[kept]] = rows[kept]
    return found_by


def max_overlap(value: Float64[np.ndarray, "n m"], hit: Bool[np.ndarray, "t n m"]) -> Int64[np.ndarray, "t m"]:
    """Let each prediction point at its closest object; of those that hit it, the best score finds it (RibFrac)."""
    found_by = np.full((hit.shape[0], hit.shape[2]), -1, dtype=np.int64)
    closest = value.argmax(axis=1)
    for i in np.flatnonzero(hit.any(axis=(0, 2)))[::-1]:
        found_by[hit[:, i, closest[i]], closest[i]] = i
    return found_by


def each_object(value: Float64[np.ndarray, "n m"], hit: Bool[np.ndarray, "t n m"]) -> Int64[np.ndarray, "t m"]:
    """Let the best-scored prediction that hits an object find it; one prediction may find several (LUNA16)."""
    first = hit.argmax(axis=1)
    return np.where(hit.any(axis=1), first, -1).astype(np.int64)
