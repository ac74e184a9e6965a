"""One operating point: what is found and what is wrong when predictions below a score are hidden."""

import numpy as np
import xarray as xr

from girih_metrics.matches import Matches
from girih_metrics.sweep import check_weights, operating_points


def operating_point(
    matches: Matches,
    *,
    min_score: float | int = -np.inf,
    beta: float | int = 1.0,
    label: int | None = None,
    weights: np.ndarray | None = None,
) -> xr.Dataset:
    """Return sensitivity, precision, F-beta and false positives per image at every threshold matched at.

    Args:
        matches: from `match`.
        min_score: predictions with this score and above are kept.
        beta: weight of sensitivity against precision; 2 counts sensitivity twice.
        label: one class; None: all pooled.
        weights: (draws, images), how often each image counts; None: once. With it, results have a dimension draw.

    Returns:
        sensitivity (NaN without ground truth), precision (NaN without a prediction that counts), f_beta (0 when
        nothing is right; NaN without ground truth and predictions), fppi, tp, fp and n_objects, all over (threshold).

    Raises:
        ValueError: no case, an unknown label, beta not positive, min_score NaN, broken weights.
    """
    matches.check_label(label)
    if np.isnan(min_score):
        raise ValueError("min_score is nan; wanted a number")
    if not 0 < beta < np.inf:
        raise ValueError(f"beta is {beta}; wanted a positive number")
    values = check_weights(matches, weights)
    kept = matches.pred_score >= min_score
    if label is not None:
        kept &= matches.pred_label == label
    counted = matches.n_objects()
    n_objects = values @ (counted.sum(axis=1) if label is None else counted[:, label]).astype(np.float64)
    per_image = np.zeros((2, len(matches.thresholds), matches.n_images))
    right, wrong = matches.true_positives() * kept, matches.false_positives() & kept
    for t in range(len(matches.thresholds)):
        for k, hits in enumerate((right[t], wrong[t])):
            per_image[k, t] = np.bincount(matches.pred_case, weights=hits, minlength=matches.n_images)
    tp, fp = values @ per_image[0].T, values @ per_image[1].T
    objects = np.broadcast_to(n_objects[:, None], tp.shape)
    parts = {
        "sensitivity": _ratio(tp, objects),
        "precision": _ratio(tp, tp + fp),
        "f_beta": _ratio((1 + beta**2) * tp, beta**2 * objects + tp + fp),
        "fppi": fp / values.sum(axis=1, keepdims=True),
        "tp": tp,
        "fp": fp,
        "n_objects": objects,
    }
    result = xr.Dataset(
        {name: (("draw", "threshold"), value) for name, value in parts.items()},
        coords={"threshold": matches.thresholds},
        attrs={"min_score": float(min_score), "beta": float(beta), "n_images": matches.n_images},
    )
    return result if weights is not None else result.squeeze("draw")


def score_at_fppi(
    matches: Matches, fppi: float | int, *, threshold: float | int | None = None, label: int | None = None
) -> float:
    """Return the lowest score to keep so that there are at most `fppi` false positives per image.

    Choose it on validation cases and apply it to test cases with `operating_point`. Infinity: keep nothing.

    Raises:
        ValueError: no case, an unknown threshold or label.
    """
    scores, _, fp = operating_points(matches, matches.threshold_index(threshold), label)
    return float(scores[np.flatnonzero(fp / matches.n_images <= fppi)[-1]]) if fppi >= 0 else np.inf


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    ratio: np.ndarray = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return ratio
