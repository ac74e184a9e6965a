"""Free-response ROC: sensitivity against false positives per image."""

from typing import Literal

import numpy as np
import xarray as xr
from jaxtyping import Float64

from girih_metrics.ap import class_mean
from girih_metrics.interfaces import Numbers
from girih_metrics.matches import Matches
from girih_metrics.sweep import Counts, check_weights, count, operating_points, sweep

FPPI = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per image at which LUNA16 (Setio et al. 2017) and nnDetection read the curve."""

Interpolation = Literal["linear", "step"]
Pooling = Literal["pooled", "class_mean"]


def froc(
    matches: Matches,
    *,
    fppi: Numbers = FPPI,
    interpolation: Interpolation = "linear",
    pooling: Pooling = "pooled",
    weights: np.ndarray | None = None,
) -> xr.Dataset:
    """Return the sensitivity at given numbers of false positives per image, and its mean.

    The curve starts at (0, 0), has one point per distinct score, stays flat beyond its last point, and takes the upper
    value where it rises vertically. Without any hit it is 0, without any ground truth NaN. Every image counts in the
    denominator of FPPI, those without objects too.

    Args:
        matches: from `match`.
        fppi: where to read the curve.
        interpolation: "linear" between points, or "step": the best operating point not above each FPPI.
        pooling: "pooled": all classes in one curve, as nnDetection's default (matching stays class by class);
            "class_mean": one curve per class, mean over the classes with ground truth; adds sensitivity_class and
            froc_class.
        weights: (draws, images), how often each image counts; None: once. With it, results have a dimension draw.

    Returns:
        sensitivity (threshold, fppi) and froc (threshold), its mean.

    Raises:
        ValueError: an unknown switch, an FPPI that is negative or not finite, broken weights.
    """
    if interpolation not in ("linear", "step") or pooling not in ("pooled", "class_mean"):
        raise ValueError(
            f"interpolation is {interpolation!r}, pooling {pooling!r}; "
            "wanted 'linear' or 'step', and 'pooled' or 'class_mean'"
        )
    at = np.asarray(fppi, dtype=np.float64)
    if at.ndim != 1 or not len(at) or not (np.isfinite(at) & (at >= 0)).all():
        raise ValueError(f"fppi is {fppi}; wanted finite numbers of at least 0")
    values = check_weights(matches, weights)
    labels = [None] if pooling == "pooled" else list(range(len(matches.classes)))
    found = np.full((len(values), len(matches.thresholds), len(labels), len(at)), np.nan)
    read = _linear if interpolation == "linear" else _step
    for t in range(len(matches.thresholds)):
        for k, label in enumerate(labels):
            for block, counts in count(sweep(matches, t, label), values):
                found[block, t, k] = read(counts, at)
    coords = {"threshold": matches.thresholds, "fppi": at}
    by_class = xr.DataArray(found, dims=("draw", "threshold", "class", "fppi"), coords=coords)
    if pooling == "pooled":
        result = xr.Dataset({"sensitivity": by_class.squeeze("class")})
    else:
        by_class = by_class.assign_coords({"class": list(matches.classes)})
        result = xr.Dataset({"sensitivity": class_mean(by_class), "sensitivity_class": by_class})
        result["froc_class"] = by_class.mean("fppi", skipna=False)
    result["froc"] = result["sensitivity"].mean("fppi", skipna=False)
    counted = matches.n_objects()
    result.attrs = {
        "interpolation": interpolation,
        "pooling": pooling,
        "n_images": matches.n_images,
        "n_negative_images": int((counted.sum(axis=1) == 0).sum()),
        "n_objects": int(counted.sum()),
        "absent": ", ".join(matches.classes[label] for label in np.flatnonzero(counted.sum(axis=0) == 0)),
        **dict(matches.settings),
    }
    return result if weights is not None else result.squeeze("draw")


def froc_curve(matches: Matches, *, threshold: float | int | None = None, label: int | None = None) -> xr.Dataset:
    """Return the operating points of the curve: fppi, sensitivity and score, along a dimension `point`.

    One point per distinct score, for keeping the predictions of that score and above, after (0, 0) at infinity.

    Args:
        matches: from `match`.
        threshold: one of those matched at; None if there is only one.
        label: one class; None: all pooled.

    Raises:
        ValueError: no case, an unknown threshold or label.
    """
    scores, tp, fp = operating_points(matches, matches.threshold_index(threshold), label)
    counted = matches.gt_counted if label is None else matches.gt_counted & (matches.gt_label == label)
    n_objects = int(counted.sum())
    return xr.Dataset(
        {
            "fppi": ("point", fp / matches.n_images),
            "sensitivity": ("point", tp / (n_objects or np.nan)),
            "score": ("point", scores),
        },
        attrs={"n_images": matches.n_images, "n_objects": n_objects, **dict(matches.settings)},
    )


def _vertices(counts: Counts) -> tuple[Float64[np.ndarray, "b v"], Float64[np.ndarray, "b v"]]:
    """False and true positives at (0, 0), before and after every step, and at the end."""
    n_draws, steps = counts.tp.shape
    x = np.empty((n_draws, 2 * steps + 2))
    y = np.zeros_like(x)
    x[:, 0] = 0.0
    x[:, 1::2] = counts.fp_before
    x[:, 2::2] = counts.fp
    y[:, 2::2] = counts.tp
    y[:, 3::2] = counts.tp
    return x, y


def _linear(counts: Counts, fppi: Float64[np.ndarray, " k"]) -> Float64[np.ndarray, "b k"]:
    x, y = _vertices(counts)
    x /= counts.n_images[:, None]
    y /= np.where(counts.n_objects > 0, counts.n_objects, np.nan)[:, None]
    found = np.empty((len(x), len(fppi)))
    for row, xs, ys in zip(found, x, y, strict=True):
        row[:] = np.interp(fppi, xs, ys)
    return found


def _step(counts: Counts, fppi: Float64[np.ndarray, " k"]) -> Float64[np.ndarray, "b k"]:
    x, y = counts.fp / counts.n_images[:, None], np.pad(counts.tp, ((0, 0), (1, 0)))
    found = np.empty((len(x), len(fppi)))
    for row, xs, ys in zip(found, x, y, strict=True):
        row[:] = ys[np.searchsorted(xs, fppi, side="right")]
    return found / np.where(counts.n_objects > 0, counts.n_objects, np.nan)[:, None]
