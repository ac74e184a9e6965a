"""Confidence intervals from bootstrap draws (Efron and Tibshirani 1993, chapters 13 and 14)."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import xarray as xr
from jaxtyping import Float64
from scipy.special import ndtr, ndtri

Interval = Literal["percentile", "bca"]
Bounds = Callable[[tuple[int, ...], np.ndarray], np.ndarray]


def percentile_interval(values: xr.DataArray, *, level: float | int = 0.95) -> xr.DataArray:
    """Return the interval that holds `level` of the draws, half of the rest on either side.

    Draws that are NaN (no ground truth was drawn) are left out; NaN if none is left.

    Args:
        values: with a dimension draw.
        level: between 0 and 1.

    Returns:
        The other dimensions, and bound (lower, upper) last.

    Raises:
        ValueError: a level outside (0, 1).
    """
    tails = np.array(_tails(level))
    return _bounds(values, lambda index, draws: np.quantile(draws, tails))


def bca_interval(
    values: xr.DataArray, point: xr.DataArray, left_out: xr.DataArray, *, level: float | int = 0.95
) -> xr.DataArray:
    """Return the bias-corrected and accelerated interval.

    NaN draws are left out, and so are NaN scores without a group; without any of those there is no acceleration. The
    share of draws below the point is kept half a draw away from 0 and 1, so that the interval exists when every draw
    falls on one side.

    Args:
        values: with a dimension draw.
        point: the score of the whole set; the other dimensions of `values`.
        left_out: the scores without one group each; dimension left_out instead of draw.
        level: between 0 and 1.

    Returns:
        The other dimensions, and bound (lower, upper) last.

    Raises:
        ValueError: a level outside (0, 1).
    """
    normal = ndtri(_tails(level))
    whole = point.transpose(*[dim for dim in values.dims if dim != "draw"]).values
    jackknife = left_out.transpose("left_out", ...).values

    def bounds(index: tuple[int, ...], draws: Float64[np.ndarray, " b"]) -> Float64[np.ndarray, "2"]:
        below = np.mean(draws < whole[index]) + np.mean(draws == whole[index]) / 2
        bias = ndtri(np.clip(below, 0.5 / len(draws), 1 - 0.5 / len(draws)))
        single = np.asarray([row[index] for row in jackknife])
        single = single[~np.isnan(single)]
        apart = single.mean() - single if len(single) else single
        spread = (apart**2).sum() ** 1.5
        acceleration = (apart**3).sum() / (6 * spread) if spread > 0 else 0.0
        shifted = bias + normal
        ends: np.ndarray = np.quantile(draws, ndtr(bias + shifted / (1 - acceleration * shifted)))
        return ends

    return _bounds(values, bounds)


def check_interval(interval: Interval) -> None:
    """Check the name of a kind of interval.

    Raises:
        ValueError: an unknown name.
    """
    if interval not in ("percentile", "bca"):
        raise ValueError(f"interval is {interval!r}; wanted 'percentile' or 'bca'")


def _bounds(values: xr.DataArray, of_draws: Bounds) -> xr.DataArray:
    if values.sizes["draw"] == 0:
        raise ValueError("no draws; wanted at least one")
    other = [dim for dim in values.dims if dim != "draw"]
    drawn = values.transpose("draw", *other)
    found = np.full((*drawn.shape[1:], 2), np.nan)
    for index in np.ndindex(*drawn.shape[1:]):
        draws = np.asarray([row[index] for row in drawn.values])
        draws = draws[~np.isnan(draws)]
        if len(draws):
            found[index] = of_draws(index, draws)
    coords = {name: value for name, value in drawn.coords.items() if "draw" not in value.dims}
    return xr.DataArray(found, dims=(*other, "bound"), coords=coords | {"bound": ["lower", "upper"]})


def _tails(level: float | int) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; wanted a number between 0 and 1")
    return (1 - level) / 2, (1 + level) / 2
