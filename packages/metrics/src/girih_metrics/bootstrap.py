"""How sure a score is: resample the images, or the patients, and count again from the same matches."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import xarray as xr
from jaxtyping import Int64

from girih_metrics.ap import average_precision
from girih_metrics.froc import FPPI, Interpolation, Pooling, froc
from girih_metrics.interfaces import Numbers
from girih_metrics.intervals import Interval, bca_interval, check_interval, percentile_interval
from girih_metrics.matches import Matches


def bootstrap(
    matches: Matches,
    *,
    draws: int = 1000,
    seed: int | Sequence[int] = 0,
    group: bool = True,
    level: float | int = 0.95,
    interval: Interval = "percentile",
    curve: Literal["101", "step"] = "101",
    fppi: Numbers = FPPI,
    interpolation: Interpolation = "linear",
    pooling: Pooling = "pooled",
    band_fppi: Numbers = (),
) -> xr.Dataset:
    """Return AP and FROC of resampled sets of images, with intervals.

    Each draw takes as many patients (or images) as there are, with replacement. Draws depend on `seed` and the set of
    group names alone: every method scored on the same cases sees the same draws. Nothing is matched again.

    Args:
        matches: from `match`.
        draws: how many.
        seed: of the draws.
        group: resample the cases' groups (patients); False: single images.
        level: of the intervals.
        interval: "percentile", or "bca" (bias-corrected and accelerated, by leaving out one group at a time).
        curve: of AP, see `average_precision`.
        fppi: where FROC is read and averaged, see `froc`.
        interpolation: see `froc`.
        pooling: see `froc`.
        band_fppi: further FPPI, for a band around the curve; adds `band`.

    Returns:
        For each of ap (threshold), froc (threshold), sensitivity (threshold, fppi) and band (threshold, band_fppi):
        the draws under that name (dimension draw), NAME_point, and NAME_interval with dimension bound (lower, upper).
        A draw without any object of a class averages the other classes: attrs["n_dropped_class"] counts those draws,
        attrs["n_undefined"] those without any object, which are NaN and left out of the intervals.

    Raises:
        ValueError: no case, fewer than one draw, a level outside (0, 1), an unknown interval, "bca" with a single
            group.
    """
    check_interval(interval)
    units = matches.groups if group else matches.case_ids

    def scores(weights: np.ndarray) -> dict[str, xr.DataArray]:
        ap = average_precision(matches, curve=curve, weights=weights)["ap"]
        both = froc(matches, fppi=[*fppi, *band_fppi], interpolation=interpolation, pooling=pooling, weights=weights)[
            "sensitivity"
        ]
        read = both.isel(fppi=slice(len(fppi)))
        found = {"ap": ap, "froc": read.mean("fppi", skipna=False), "sensitivity": read}
        if len(band_fppi):
            found["band"] = both.isel(fppi=slice(len(fppi), None)).rename(fppi="band_fppi")
        return found

    point = {name: value.isel(draw=0) for name, value in scores(np.ones((1, matches.n_images))).items()}
    weights = resample(units, draws=draws, seed=seed)
    drawn = scores(weights)
    left_out = scores(leave_one_out(units)) if interval == "bca" else {}
    parts: dict[str, xr.DataArray] = {}
    for name, values in drawn.items():
        parts[name], parts[f"{name}_point"] = values, point[name]
        parts[f"{name}_interval"] = (
            bca_interval(values, point[name], left_out[name].rename(draw="left_out"), level=level)
            if interval == "bca"
            else percentile_interval(values, level=level)
        )
    attrs = {
        "draws": draws,
        "level": level,
        "interval": interval,
        "resampled": "groups" if group else "images",
        "n_images": matches.n_images,
        "n_groups": len(set(matches.groups)),
        "n_objects": int(matches.gt_counted.sum()),
        **draws_lacking(matches, weights),
    }
    return xr.Dataset(parts, attrs=attrs | dict(matches.settings))


def resample(
    groups: Sequence[str], *, draws: int = 1000, seed: int | Sequence[int] = 0
) -> Int64[np.ndarray, "draws images"]:
    """Return how often each image counts in each draw of whole groups with replacement.

    Raises:
        ValueError: no image, fewer than one draw.
    """
    if not len(groups) or draws < 1:
        raise ValueError(f"{len(groups)} images and {draws} draws; wanted at least one of each")
    names, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    times = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return times[:, member].astype(np.int64)


def draws_lacking(matches: Matches, weights: Int64[np.ndarray, "draws images"]) -> dict[str, int]:
    """Count the draws without any object (n_undefined), and those without one of the classes (n_dropped_class).

    Classes that have no object in the whole set do not count, nor do draws without any object in the second.
    """
    objects = matches.n_objects()
    drawn = weights @ objects[:, objects.any(axis=0)] > 0
    some = drawn.any(axis=1)
    return {"n_undefined": int((~some).sum()), "n_dropped_class": int((some & ~drawn.all(axis=1)).sum())}


def leave_one_out(groups: Sequence[str]) -> Int64[np.ndarray, "groups images"]:
    """Return weights that leave out one group per row, in the order of their names.

    Raises:
        ValueError: fewer than two groups.
    """
    names, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"{len(names)} group; wanted at least two to leave one out")
    kept: np.ndarray = member[None, :] != np.arange(len(names))[:, None]
    return kept.astype(np.int64)
