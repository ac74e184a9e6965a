"""Resampling as one small matrix per axis: the spline of scipy order 3, at the speed of a matrix product.

Grids are edge-aligned: the outer voxel edges stay where they are, so that output voxel i of an axis lies at input index
(i + 0.5) * old / new - 0.5. `affine.rescale_affine` gives the affine of the new grid.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64, Shaped
from scipy import ndimage

Method = Literal["spline3", "linear", "nearest"]
Number = float | int  # beartype does not take an int for a float
Triple = tuple[Number, Number, Number]

ANTIALIAS_FROM = 1.2
"""Ratio of output to input spacing from which an axis is smoothed before it is sampled."""


def new_shape(shape_zyx: Sequence[int], spacing_zyx_mm: Triple, target_zyx_mm: Triple) -> tuple[int, int, int]:
    """Return round(old * spacing / target) voxels per axis, at least 1.

    Raises:
        ValueError: a spacing that is not positive and finite.
    """
    for name, values in (("spacing_zyx_mm", spacing_zyx_mm), ("target_zyx_mm", target_zyx_mm)):
        if not all(math.isfinite(v) and v > 0 for v in values):
            raise ValueError(f"{name} is {values}, wanted three positive lengths in mm")
    z, y, x = (
        max(1, round(n * old / new)) for n, old, new in zip(shape_zyx, spacing_zyx_mm, target_zyx_mm, strict=True)
    )
    return z, y, x


def resample(
    volume: Shaped[np.ndarray, "*channel z y x"],
    *,
    spacing_zyx_mm: Triple,
    target_zyx_mm: Triple,
    method: Method = "spline3",
    antialias: bool = True,
) -> Float32[np.ndarray, "*channel Z Y X"]:
    """Resample the last three axes to another voxel size; outside the volume its edge values continue.

    Args:
        volume: voxels (z, y, x), with or without leading axes; integers are taken as numbers, not as labels.
        spacing_zyx_mm: voxel size now.
        target_zyx_mm: voxel size wanted; the exact one is extent / `new_shape`.
        method: "spline3" equals `scipy.ndimage.zoom(order=3, mode="nearest", grid_mode=True)`, "linear" its order 1.
        antialias: smooth axes that get coarser by more than 1.2 with a Gaussian of
            0.5 * sqrt(ratio^2 - 1) input voxels (the width that a Gaussian of half an output voxel lacks); never for
            "nearest".

    Raises:
        ValueError: a spacing that is not positive, or an unknown method.
    """
    if method not in ("spline3", "linear", "nearest"):
        raise ValueError(f"method is {method!r}, wanted 'spline3', 'linear' or 'nearest'")
    shape = volume.shape[-3:]
    target = new_shape(shape, spacing_zyx_mm, target_zyx_mm)
    out = np.asarray(volume, np.float32)
    for axis in sorted(range(3), key=lambda a: target[a] / shape[a]):  # shrink first: less to compute on the way
        old, new = shape[axis], target[axis]
        if old == new:
            continue
        if method == "nearest":
            out = np.take(out, _nearest_index(old, new), axis=axis - 3)
        else:
            operator = axis_operator(old, new, order=3 if method == "spline3" else 1, antialias=antialias)
            out = _apply(operator.astype(np.float32), out, axis)
    return np.ascontiguousarray(out)


def axis_operator(old: int, new: int, *, order: int, antialias: bool) -> Float64[np.ndarray, "{new} {old}"]:
    """Return the matrix that resamples one axis of `old` voxels to `new` voxels."""
    if old == 1:
        return np.ones((new, 1))
    # scipy filters both axes, but along the second it evaluates the spline at its knots, which gives the identity back
    operator: np.ndarray = ndimage.zoom(np.eye(old), (new / old, 1), order=order, mode="nearest", grid_mode=True)
    ratio = old / new
    if antialias and ratio > ANTIALIAS_FROM:
        sigma = 0.5 * math.sqrt(ratio**2 - 1)
        operator = operator @ ndimage.gaussian_filter1d(np.eye(old), sigma, axis=0, mode="nearest")
    return operator


def _nearest_index(old: int, new: int) -> np.ndarray:
    return (2 * np.arange(new) + 1) * old // (2 * new)  # floor((i + 0.5) * old / new), without rounding


def _apply(
    operator: Float32[np.ndarray, "new old"], volume: Float32[np.ndarray, "*channel z y x"], axis: int
) -> Float32[np.ndarray, "*channel Z Y X"]:
    if axis == 2:  # (..., y, x) @ (x, X)
        out: np.ndarray = volume @ operator.T
    elif axis == 1:  # (Y, y) @ (..., y, x)
        out = operator @ volume
    else:  # (Z, z) @ (..., z, y * x)
        *lead, z, y, x = volume.shape
        out = (operator @ volume.reshape(*lead, z, y * x)).reshape(*lead, len(operator), y, x)
    return out
