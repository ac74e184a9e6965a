"""Moments and percentiles of the voxels of many cases, in memory that does not grow with the voxels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from girih_data3d.resampling import Number

ALL_VALUES = 20_000_000
"""Values that are kept of all cases together,"""
FEWEST_VALUES, MOST_VALUES = 1_000, 100_000
"""but at least and at most so many of each."""


@dataclass(frozen=True)
class Sample:
    """What is kept of the values of one case: exact moments, and evenly spaced values of those in order."""

    count: int
    total: float
    squares: float
    """Sum of squares of the differences from the mean of the case."""
    values: Float32[np.ndarray, " k"]
    """All values in order, or as many of equal rank distance as fit; lowest and highest included."""


@dataclass(frozen=True)
class Intensities:
    """Of one channel, over all cases."""

    count: int
    """Voxels that were looked at, every tenth."""
    mean: Number
    std: Number
    min: Number
    max: Number
    median: Number
    percentile_00_5: Number
    percentile_99_5: Number


def values_per_case(cases: int) -> int:
    """Return how many values to keep of each of so many cases."""
    return min(MOST_VALUES, max(FEWEST_VALUES, ALL_VALUES // max(1, cases)))


def sample(values: Float32[np.ndarray, " n"], keep: int) -> Sample:
    """Return what to keep of the values of a case; all of them if there are at most `keep`."""
    values = np.sort(values)
    exact = values.astype(np.float64)
    mean = float(exact.mean()) if len(exact) else 0.0
    if len(values) > keep:
        values = values[np.round(np.linspace(0, len(values) - 1, keep)).astype(np.int64)]
    return Sample(len(exact), float(exact.sum()), float(np.square(exact - mean).sum()), values)


def pool_samples(samples: Sequence[Sample]) -> Intensities | None:
    """Return the statistics of all values together; None if there is none.

    Mean and standard deviation are exact. Percentiles are numpy's (linear) where all values were kept; otherwise each
    kept value stands for as many as were left out around it, which misplaces a percentile by at most one part in
    `keep` of a case's values. The order of the samples counts in the last bit only.
    """
    samples = [s for s in samples if s.count]
    if not samples:
        return None
    count = sum(s.count for s in samples)
    mean = sum(s.total for s in samples) / count
    squares = sum(s.squares + s.count * (s.total / s.count - mean) ** 2 for s in samples)
    values = np.concatenate([s.values for s in samples]).astype(np.float64)
    weights = np.concatenate([np.full(len(s.values), s.count / len(s.values)) for s in samples])
    low, median, high = _percentiles(values, weights, (0.5, 50, 99.5))
    return Intensities(
        count=count,
        mean=_rounded(mean),
        std=_rounded((squares / count) ** 0.5),
        min=_rounded(values.min()),
        max=_rounded(values.max()),
        median=_rounded(median),
        percentile_00_5=_rounded(low),
        percentile_99_5=_rounded(high),
    )


def _percentiles(
    values: Float64[np.ndarray, " n"], weights: Float64[np.ndarray, " n"], wanted: Sequence[float | int]
) -> list[float]:
    """Return percentiles; a value of weight w lies in the middle of w places. Weights of 1 give numpy's linear rule."""
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[order]
    ends = np.cumsum(weights)
    middles = ends - weights + (weights - 1) / 2
    places = (ends[-1] - 1) * np.asarray(wanted, np.float64) / 100
    found: list[float] = np.interp(places, middles, values).tolist()
    return found


def _rounded(value: float) -> float:
    """Return a number to seven significant digits, which float32 voxels do not exceed."""
    return float(f"{value:.7g}")
