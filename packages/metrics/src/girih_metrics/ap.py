"""Average precision: the area under precision over recall."""

from typing import Literal

import numpy as np
import xarray as xr
from jaxtyping import Float64

from girih_metrics.matches import Matches
from girih_metrics.sweep import Counts, check_weights, count, sweep

RECALL = np.linspace(0.0, 1.0, 101)
"""The recall grid of COCO, to the bit, so that the numbers equal those of pycocotools."""


def average_precision(
    matches: Matches, *, curve: Literal["101", "step"] = "101", weights: np.ndarray | None = None
) -> xr.Dataset:
    """Return the average precision at every threshold matched at.

    A class without ground truth has no AP: it is NaN, named in attrs["absent"], and left out of the mean. A class with
    ground truth but without a hit, or without any prediction, has AP 0. Equal scores enter together.

    Args:
        matches: from `match`.
        curve: "101": precision made monotone from the right, mean over 101 recalls (COCO, Lin et al. 2014;
            nnDetection, Baumgartner et al. 2021); "step": the uninterpolated sum of precision times gain in recall
            (scikit-learn, picai_eval).
        weights: (draws, images), how often each image counts; None: once. With it, results have a dimension draw.

    Returns:
        ap_class (threshold, class), ap (threshold), its mean over classes, and mean_ap, the mean over thresholds.

    Raises:
        ValueError: an unknown curve, broken weights.
    """
    if curve not in ("101", "step"):
        raise ValueError(f"curve is {curve!r}; wanted '101' or 'step'")
    values = check_weights(matches, weights)
    scores = np.full((len(values), len(matches.thresholds), len(matches.classes)), np.nan)
    area = _interpolated if curve == "101" else _step
    for t in range(len(matches.thresholds)):
        for label in range(len(matches.classes)):
            for block, counts in count(sweep(matches, t, label), values):
                defined = np.where(counts.n_objects > 0, counts.n_objects, np.nan)
                scores[block, t, label] = area(counts, defined)
    by_class = xr.DataArray(
        scores,
        dims=("draw", "threshold", "class"),
        coords={"threshold": matches.thresholds, "class": list(matches.classes)},
    )
    result = xr.Dataset({"ap_class": by_class, "ap": class_mean(by_class)})
    result["mean_ap"] = result["ap"].mean("threshold")
    objects = matches.n_objects().sum(axis=0)
    result["n_objects"] = ("class", objects)
    result.attrs = {
        "curve": curve,
        "n_images": matches.n_images,
        "absent": ", ".join(name for name, n in zip(matches.classes, objects, strict=True) if n == 0),
        **dict(matches.settings),
    }
    return result if weights is not None else result.squeeze("draw")


def class_mean(by_class: xr.DataArray) -> xr.DataArray:
    """Return the mean over the classes that are not NaN; NaN where none is left."""
    present = by_class.notnull()
    n = present.sum("class")
    return by_class.fillna(0.0).sum("class") / n.where(n > 0)


def _interpolated(counts: Counts, n_objects: Float64[np.ndarray, " b"]) -> Float64[np.ndarray, " b"]:
    if counts.tp.shape[1] == 0:
        return n_objects * 0.0
    recall, precision = counts.tp / n_objects[:, None], _precision(counts)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    sampled = np.zeros((len(recall), len(RECALL)))
    for row, values, reached in zip(sampled, envelope, recall, strict=True):
        at = np.searchsorted(reached, RECALL, side="left")
        known = at < len(values)
        row[known] = values[at[known]]
    return np.where(np.isnan(n_objects), np.nan, sampled.mean(axis=1))


def _step(counts: Counts, n_objects: Float64[np.ndarray, " b"]) -> Float64[np.ndarray, " b"]:
    if counts.tp.shape[1] == 0:
        return n_objects * 0.0
    gain = np.diff(counts.tp, axis=1, prepend=0.0) / n_objects[:, None]
    return np.cumsum(gain * _precision(counts), axis=1)[:, -1]  # in order, so that empty steps change no bit


def _precision(counts: Counts) -> Float64[np.ndarray, "b s"]:
    calls = counts.tp + counts.fp
    precision: np.ndarray = np.divide(counts.tp, calls, out=np.zeros_like(calls), where=counts.tp > 0)
    return precision
