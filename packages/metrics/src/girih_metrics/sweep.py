"""True and false positives while the score threshold sinks, for many weightings of the images at once.

Between two scores at which something is found only false positives accumulate, so a sweep keeps one entry per score
at which something is found (a step). All counts are sums of image weights, whole numbers in float64, hence exact: a
weight of 2 counts as the image twice in the list.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from scipy.sparse import csr_array

from girih_metrics.matches import Matches

CHUNK = 2**16
"""Numbers per array while working through the draws: half a MiB, so that they stay in the processor's cache."""


@dataclass(frozen=True)
class Sweep:
    """One class, or all pooled, at one threshold: s steps over the images, best score first.

    `hits[k, i]`: objects of image i found at step k; `false_tied`: false positives of the same score;
    `false_before`: those between step k - 1 and k, its last row those after the last step.
    """

    scores: Float64[np.ndarray, " s"]
    hits: csr_array
    false_tied: csr_array
    false_before: csr_array
    n_objects: Int64[np.ndarray, " images"]


@dataclass(frozen=True)
class Counts:
    """What a sweep counts under b weightings; one row per weighting.

    `tp[:, k]`, `fp[:, k]`: including step k; `fp_before[:, k]`: just before it, the last column is the total.
    """

    tp: Float64[np.ndarray, "b s"]
    fp: Float64[np.ndarray, "b s"]
    fp_before: Float64[np.ndarray, "b s+1"]
    n_objects: Float64[np.ndarray, " b"]
    n_images: Float64[np.ndarray, " b"]


def sweep(matches: Matches, t: int, label: int | None) -> Sweep:
    """Return the sweep at threshold index `t`, of one class or (None) of all classes pooled."""
    score, image, tp = _sorted(matches, t, label)
    group = np.cumsum(np.diff(score, prepend=score[:1]) != 0) if len(score) else np.zeros(0, dtype=np.int64)
    group_finds = np.bincount(group, weights=tp) > 0
    steps = int(group_finds.sum())
    step: np.ndarray = (np.cumsum(group_finds) - group_finds)[group]  # steps completed before this prediction's score
    tied, right = group_finds[group], tp > 0
    objects = matches.n_objects()
    return Sweep(
        scores=score[right][np.unique(step[right], return_index=True)[1]],
        hits=_matrix(tp[right], step[right], image[right], (steps, matches.n_images)),
        false_tied=_ones(step, image, tied & ~right, (steps, matches.n_images)),
        false_before=_ones(step, image, ~tied, (steps + 1, matches.n_images)),
        n_objects=objects.sum(axis=1) if label is None else objects[:, label],
    )


def count(sweep: Sweep, weights: Float64[np.ndarray, "draws images"]) -> Iterator[tuple[slice, Counts]]:
    """Yield the counts under every weighting, a block of draws at a time, with the slice they belong to."""
    size = max(1, CHUNK // (len(sweep.scores) + 1))
    for start in range(0, len(weights), size):
        block = slice(start, min(start + size, len(weights)))
        columns = np.ascontiguousarray(weights[block].T)
        before = np.cumsum(sweep.false_before @ columns, axis=0)
        tied = np.cumsum(sweep.false_tied @ columns, axis=0)
        fp = before[:-1] + tied
        before[1:] += tied
        tp = np.cumsum(sweep.hits @ columns, axis=0)
        yield (
            block,
            Counts(
                tp=np.ascontiguousarray(tp.T),
                fp=np.ascontiguousarray(fp.T),
                fp_before=np.ascontiguousarray(before.T),
                n_objects=weights[block] @ sweep.n_objects.astype(np.float64),
                n_images=weights[block].sum(axis=1),
            ),
        )


def operating_points(
    matches: Matches, t: int, label: int | None
) -> tuple[Float64[np.ndarray, " p"], Float64[np.ndarray, " p"], Float64[np.ndarray, " p"]]:
    """Return score, true and false positives when the predictions of that score and above are kept, inf first.

    Raises:
        ValueError: no case, an unknown label.
    """
    _check_images(matches)
    matches.check_label(label)
    score, _, tp = _sorted(matches, t, label)
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1) if len(score) else np.zeros(0, dtype=np.int64)
    found, wrong = np.cumsum(tp)[last], np.cumsum(tp == 0)[last]
    return np.append(np.inf, score[last]), np.append(0.0, found), np.append(0.0, wrong)


def check_weights(matches: Matches, weights: np.ndarray | None) -> Float64[np.ndarray, "draws images"]:
    """Return the weightings as float64, one of ones for None.

    Raises:
        ValueError: no case; not one column per image, not whole numbers of at least 0, or a row of zeros.
    """
    _check_images(matches)
    if weights is None:
        return np.ones((1, matches.n_images))
    values = np.asarray(weights, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != matches.n_images:
        raise ValueError(f"weights have shape {values.shape}; wanted (draws, {matches.n_images}), a column per image")
    if not (np.isfinite(values).all() and (values >= 0).all() and (values == np.floor(values)).all()):
        raise ValueError("weights hold a negative or broken number; wanted how often each image counts")
    if not values.any(axis=1).all():
        raise ValueError(
            f"weights row {int(np.flatnonzero(~values.any(axis=1))[0])} is zero; wanted at least one image"
        )
    return values


def _check_images(matches: Matches) -> None:
    if not matches.n_images:
        raise ValueError("no cases; wanted at least one")


def _sorted(matches: Matches, t: int, label: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score, image and objects found of the predictions that count, best score first."""
    chosen = np.ones(len(matches.pred_case), dtype=bool) if label is None else matches.pred_label == label
    found_by = matches.found_by[t][matches.gt_counted & (matches.found_by[t] >= 0)]
    tp = np.bincount(found_by, minlength=len(chosen))
    kept = np.flatnonzero(chosen & (matches.judged[t] | (tp > 0)))
    kept = kept[np.argsort(-matches.pred_score[kept], kind="stable")]
    return matches.pred_score[kept], matches.pred_case[kept], tp[kept]


def _ones(step: np.ndarray, image: np.ndarray, chosen: np.ndarray, shape: tuple[int, int]) -> csr_array:
    return _matrix(np.ones(int(chosen.sum())), step[chosen], image[chosen], shape)


def _matrix(value: np.ndarray, row: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> csr_array:
    return csr_array((value.astype(np.float64), (row, column)), shape=shape)
