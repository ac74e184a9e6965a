"""How sure a score is: resample the images, or the patients, and count again from the same matches."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import xarray as xr
from jaxtyping import Int64

from girih_metrics.ap import average_precision
from girih_metrics.froc import FPPI, Interpolation, Pooling, froc
from girih_metrics.interfaces import Numbers
from girih_metrics.matches import Matches


def bootstrap(
    matches: Matches,
    *,
    draws: int = 1000,
    seed: int = 0,
    group: bool = True,
    level: float | int = 0.95,
    curve: Literal["101", "step"] = "101",
    fppi: Numbers = FPPI,
    interpolation: Interpolation = "linear",
    pooling: Pooling = "pooled",
    band_fppi: Numbers = (),
) -> xr.Dataset:
    """Return AP and FROC of resampled sets of images, with percentile intervals.

    Each draw takes as many patients (or images) as there are, with replacement. Draws depend on `seed` and the set of
    group names alone: every method scored on the same cases sees the same draws. Nothing is matched again.

    Args:
        matches: from `match`.
        draws: how many.
        seed: of the draws.
        group: resample the cases' groups (patients); False: single images.
        level: of the intervals.
        curve: of AP, see `average_precision`.
        fppi: where FROC is read and averaged, see `froc`.
        interpolation: see `froc`.
        pooling: see `froc`.
        band_fppi: further FPPI, for a band around the curve; adds `band`.

    Returns:
        For each of ap (threshold), froc (threshold), sensitivity (threshold, fppi) and band (threshold, band_fppi):
        the draws under that name (dimension draw), NAME_point, and NAME_interval with dimension bound (lower, upper).

    Raises:
        ValueError: no case, fewer than one draw, a level outside (0, 1).
    """
    weights = resample(matches.groups if group else matches.case_ids, draws=draws, seed=seed)
    parts: dict[str, xr.DataArray] = {}
    for name, scored in (("", np.ones((1, matches.n_images), dtype=np.int64)), ("draws", weights)):
        ap = average_precision(matches, curve=curve, weights=scored)
        at = froc(
            matches,
            fppi=[*fppi, *band_fppi],
            interpolation=interpolation,
            pooling=pooling,
            weights=scored,
        )["sensitivity"]
        read = at.isel(fppi=slice(len(fppi)))
        found = {"ap": ap["ap"], "froc": read.mean("fppi", skipna=False), "sensitivity": read}
        if len(band_fppi):
            found["band"] = at.isel(fppi=slice(len(fppi), None)).rename(fppi="band_fppi")
        for key, value in found.items():
            parts[key if name else f"{key}_point"] = value if name else value.squeeze("draw")
    for key in [key for key in parts if not key.endswith("_point")]:
        parts[f"{key}_interval"] = percentile_interval(parts[key], level=level)
    attrs = {
        "draws": draws,
        "seed": seed,
        "level": level,
        "resampled": "groups" if group else "images",
        "n_images": matches.n_images,
        "n_groups": len(set(matches.groups)),
        "n_objects": int(matches.gt_counted.sum()),
    }
    return xr.Dataset(parts, attrs=attrs | dict(matches.settings))


def resample(groups: Sequence[str], *, draws: int = 1000, seed: int = 0) -> Int64[np.ndarray, "draws images"]:
    """Return how often each image counts in each draw of whole groups with replacement.

    Raises:
        ValueError: no image, fewer than one draw.
    """
    if not len(groups) or draws < 1:
        raise ValueError(f"{len(groups)} images and {draws} draws; wanted at least one of each")
    names, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    times = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return times[:, member].astype(np.int64)


def percentile_interval(values: xr.DataArray, *, level: float | int = 0.95) -> xr.DataArray:
    """Return the interval that holds `level` of the draws, half of the rest on either side.

    Draws that are NaN (no ground truth was drawn) are left out; NaN if none is left.

    Raises:
        ValueError: a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; wanted a number between 0 and 1")
    tails = [(1 - level) / 2, (1 + level) / 2]
    known = values.notnull().any("draw")
    bounds = values.where(known, 0.0).quantile(tails, dim="draw", skipna=True)
    bounds = bounds.rename(quantile="bound").assign_coords(bound=["lower", "upper"])
    return bounds.where(known).transpose(..., "bound")
