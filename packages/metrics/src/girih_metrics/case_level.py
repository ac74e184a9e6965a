"""Is the image suspicious at all? Scores of whole cases from the scores of their predictions."""

from typing import Literal

import numpy as np
import xarray as xr
from jaxtyping import Float64

from girih_metrics.matches import Matches
from girih_metrics.sweep import check_weights

Combine = Literal["max", "noisy_or"]


def case_level(
    matches: Matches, *, label: int | None = None, combine: Combine = "max", weights: np.ndarray | None = None
) -> xr.Dataset:
    """Return the area under the ROC curve and the average precision of telling positive cases from negative ones.

    A case is positive if it has a counted object (of the class). Equal scores enter together. A case without
    predictions ranks below all others. Where the objects are does not matter: right for the wrong reason counts.

    Args:
        matches: from `match`; the predictions kept by `max_detections`.
        label: one class against the rest; None: any object.
        combine: "max": the best score (nnDetection, picai_eval); "noisy_or": 1 - prod(1 - score), scores in [0, 1].
        weights: (draws, images), how often each image counts; None: once. With it, results have a dimension draw.

    Returns:
        auroc, NaN without positive or without negative cases, and ap, uninterpolated, NaN without positive cases.

    Raises:
        ValueError: no case, an unknown label or switch, scores outside [0, 1] with "noisy_or", broken weights.
    """
    values = check_weights(matches, weights)
    scores, positive = case_scores(matches, label=label, combine=combine)
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    starts = np.append(0, 1 + np.flatnonzero(ranked[1:] != ranked[:-1]))
    in_order, truth = values[:, order], positive[order]
    hits = np.add.reduceat(in_order * truth, starts, axis=1)
    false = np.add.reduceat(in_order * ~truth, starts, axis=1)
    tp, fp = np.cumsum(hits, axis=1), np.cumsum(false, axis=1)
    n_positive, n_negative = tp[:, -1:], fp[:, -1:]
    pairs = (hits * (n_negative - fp + false / 2)).sum(axis=1, keepdims=True)
    precision = np.divide(tp, tp + fp, out=np.zeros_like(tp), where=tp > 0)
    defined = np.where(n_positive > 0, n_positive, np.nan)
    area = pairs / (defined * np.where(n_negative > 0, n_negative, np.nan))
    steps = np.cumsum(hits / defined * precision, axis=1)[:, -1]
    result = xr.Dataset(
        {"auroc": ("draw", area[:, 0]), "ap": ("draw", steps)},
        attrs={"combine": combine, "n_images": matches.n_images, "n_positive": int(positive.sum())},
    )
    return result if weights is not None else result.squeeze("draw")


def case_scores(
    matches: Matches, *, label: int | None = None, combine: Combine = "max"
) -> tuple[Float64[np.ndarray, " images"], np.ndarray]:
    """Return the score of every case, in the order of `matches.case_ids`, and whether it is positive.

    Raises:
        ValueError: an unknown label or `combine`, scores outside [0, 1] with "noisy_or".
    """
    if combine not in ("max", "noisy_or"):
        raise ValueError(f"combine is {combine!r}; wanted 'max' or 'noisy_or'")
    matches.check_label(label)
    chosen = np.ones(len(matches.pred_case), dtype=bool) if label is None else matches.pred_label == label
    case, score = matches.pred_case[chosen], matches.pred_score[chosen]
    if combine == "max":
        scores = np.full(matches.n_images, -np.inf)
        np.maximum.at(scores, case, score)
    else:
        if ((score < 0) | (score > 1)).any():
            raise ValueError(f"scores reach from {score.min()} to {score.max()}; 'noisy_or' wants them in [0, 1]")
        clear = np.ones(matches.n_images)
        np.multiply.at(clear, case, 1 - score)
        scores = 1 - clear
    counted = matches.n_objects()
    return scores, (counted.sum(axis=1) if label is None else counted[:, label]) > 0
