"""Resampling as one small matrix per axis: the spline of scipy order 3, at the speed of a matrix product.

Grids are edge-aligned: the outer voxel edges stay where they are, so that output voxel i of an axis lies at input index
(i + 0.5) * old / new - 0.5. `affine.rescale_affine` gives the affine of the new grid.

The weights of a spline fall by 0.27 per voxel, so that a matrix is a narrow band: it is applied in blocks of rows, each
to the columns that it needs, and in plane slice by slice, so that the intermediate results stay in the cache.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float32, Float64, Shaped
from scipy import ndimage

Method = Literal["spline3", "linear", "nearest", "nnunet"]
Number = float | int  # beartype does not take an int for a float
Triple = tuple[Number, Number, Number]
Band = tuple[slice, slice, Float32[np.ndarray, "_ _"]]
"""Output voxels, the input voxels they need, and the weights."""

ANTIALIAS_FROM = 1.2
"""Ratio of output to input spacing from which an axis is smoothed before it is sampled."""
ANISOTROPIC_ABOVE = 3
"""Ratio of the largest to the smallest spacing above which nnU-Net resamples the coarsest axis separately."""
SPLINE_PADDING = 12
"""Edge voxels repeated outside before a spline is fitted, as scipy does: its pole 0.268^12 is 1e-7."""
BLOCK = 32
"""Rows of a matrix that are applied together; the best of 16 to 96 on volumes of 300^3 to 400 x 512 x 512."""
NEGLIGIBLE = 1e-8
"""Weights below this are left out: a tenth of what float32 resolves beside the weight 1."""


def new_shape(shape_zyx: Sequence[int], spacing_zyx_mm: Triple, target_zyx_mm: Triple) -> tuple[int, int, int]:
    """Return round(old * spacing / target) voxels per axis, at least 1.

    Raises:
        ValueError: a spacing that is not positive and finite.
    """
    for name, values in (("spacing_zyx_mm", spacing_zyx_mm), ("target_zyx_mm", target_zyx_mm)):
        if not all(math.isfinite(v) and v > 0 for v in values):
            raise ValueError(f"{name} is {values}, wanted three positive lengths in mm")
    z, y, x = (
        max(1, round(old / new * n))  # in nnU-Net's order, so that halves are rounded alike
        for n, old, new in zip(shape_zyx, spacing_zyx_mm, target_zyx_mm, strict=True)
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

    "nnunet" follows nnU-Net v2's default for images (order 3, order_z 0). If the largest of the three spacings is more
    than 3 times the smallest, in the volume or else in the target, and one axis alone has it, then that axis takes the
    nearest slice, and the slices are resampled one by one with cubic splines; otherwise all axes are, at once. Either
    way the result is clipped to the range of the slice or of the volume, as `skimage.transform.resize` does. It differs
    from scikit-image by less than 2e-6 of the range (float32).

    Args:
        volume: voxels (z, y, x), with or without leading axes; integers are taken as numbers, not as labels.
        spacing_zyx_mm: voxel size now.
        target_zyx_mm: voxel size wanted; the exact one is extent / `new_shape`.
        method: "spline3" equals `scipy.ndimage.zoom(order=3, mode="nearest", grid_mode=True)`, "linear" its order 1.
        antialias: smooth axes that get coarser by more than 1.2 with a Gaussian of
            0.5 * sqrt(ratio^2 - 1) input voxels (the width that a Gaussian of half an output voxel lacks); never for
            "nearest" and "nnunet".

    Returns:
        A new array, also where the shape stays the same.

    Raises:
        ValueError: a spacing that is not positive, or an unknown method.
    """
    if method not in get_args(Method):
        raise ValueError(f"method is {method!r}, wanted one of {', '.join(get_args(Method))}")
    *lead, z, y, x = volume.shape
    target = new_shape((z, y, x), spacing_zyx_mm, target_zyx_mm)
    if target == (z, y, x):
        return np.array(volume, np.float32)
    if method == "nearest":
        planes, rows, columns = (nearest_index(old, new) for old, new in zip((z, y, x), target, strict=True))
        return volume[..., planes[:, None, None], rows[:, None], columns].astype(np.float32)
    out = np.empty((*lead, *target), np.float32)
    coarse = _coarse_axis(spacing_zyx_mm, target_zyx_mm) if method == "nnunet" else None
    for channel in np.ndindex(*lead):
        if coarse is None:
            _spline(volume[channel], out[channel], 1 if method == "linear" else 3, antialias and method != "nnunet")
            if method == "nnunet":
                np.clip(out[channel], volume[channel].min(), volume[channel].max(), out=out[channel])
        else:
            _slices(np.moveaxis(volume[channel], coarse, 0), np.moveaxis(out[channel], coarse, 0))
    return out


def axis_operator(old: int, new: int, *, order: int, antialias: bool) -> Float64[np.ndarray, "{new} {old}"]:
    """Return the matrix that resamples one axis of `old` voxels to `new` voxels by splines of order 1 or 3."""
    signal = np.eye(old)  # one impulse per column
    ratio = old / new
    if antialias and ratio > ANTIALIAS_FROM:
        sigma = 0.5 * math.sqrt(ratio**2 - 1)
        signal = ndimage.gaussian_filter1d(signal, sigma, axis=0, mode="nearest")
    signal = np.pad(signal, ((SPLINE_PADDING, SPLINE_PADDING), (0, 0)), mode="edge")
    place = (np.arange(new) + 0.5) * ratio - 0.5 + SPLINE_PADDING
    left = np.floor(place).astype(int)
    t = (place - left)[:, None]
    if order == 1:
        first, weights = left, (1 - t, t)
    else:
        signal = ndimage.spline_filter1d(signal, 3, axis=0, mode="nearest")
        cubic = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)  # B-spline, times 6
        first, weights = left - 1, tuple(weight / 6 for weight in cubic)
    operator: np.ndarray = sum(weight * signal[first + k] for k, weight in enumerate(weights))
    return operator


def nearest_index(old: int, new: int) -> np.ndarray:
    """Return floor((i + 0.5) * old / new) for each of the `new` voxels, without rounding."""
    index: np.ndarray = (2 * np.arange(new) + 1) * old // (2 * new)
    return index


def _coarse_axis(spacing_zyx_mm: Triple, target_zyx_mm: Triple) -> int | None:
    """Return the axis that nnU-Net would resample separately."""
    for mm in (spacing_zyx_mm, target_zyx_mm):
        if max(mm) / min(mm) > ANISOTROPIC_ABOVE:
            coarsest = [axis for axis in range(3) if mm[axis] == max(mm)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def _spline(
    volume: Shaped[np.ndarray, "z y x"], out: Float32[np.ndarray, "Z Y X"], order: int, antialias: bool
) -> None:
    """Fill `out` with the volume, all three axes resampled; where z gets shorter, it is the first to be."""
    (z, y, x), (new_z, new_y, new_x) = volume.shape, out.shape
    across, along_y, along_x = (_bands(old, new, order, antialias) for old, new in ((z, new_z), (y, new_y), (x, new_x)))
    if z == new_z:
        _each_slice(volume, out, along_y, along_x)
    elif (y, x) == (new_y, new_x):
        _along_z(volume, out, across)
    elif new_z < z:
        short = np.empty((new_z, y, x), np.float32)
        _along_z(volume, short, across)
        _each_slice(short, out, along_y, along_x)
    else:
        small = np.empty((z, new_y, new_x), np.float32)
        _each_slice(volume, small, along_y, along_x)
        _along_z(small, out, across)


def _slices(volume: Shaped[np.ndarray, "z y x"], out: Float32[np.ndarray, "Z Y X"]) -> None:
    """Fill `out` as nnU-Net does where z is coarse: the nearest slice, resampled in plane, clipped to its range."""
    (old, y, x), (new, new_y, new_x) = volume.shape, out.shape
    along_y, along_x = _bands(y, new_y, 3, False), _bands(x, new_x, 3, False)
    place = (np.arange(new) + 0.5) * (old / new) - 0.5
    nearest = ndimage.map_coordinates(np.arange(old), place[None], order=0, mode="nearest")  # rounds halves as nnU-Net
    for index in np.unique(nearest):
        plane = volume[index : index + 1]
        resized = np.empty((1, new_y, new_x), np.float32)
        _each_slice(plane, resized, along_y, along_x)
        out[nearest == index] = resized.clip(plane.min(), plane.max())


def _bands(old: int, new: int, order: int, antialias: bool) -> list[Band]:
    """Cut the matrix of an axis into blocks of rows without the columns that do not count."""
    operator = axis_operator(old, new, order=order, antialias=antialias) if old != new else np.eye(old)
    return list(_cut(operator))


def _cut(operator: Float64[np.ndarray, "new old"]) -> Iterator[Band]:
    for low in range(0, len(operator), BLOCK):
        rows = operator[low : low + BLOCK]
        counts = np.flatnonzero((np.abs(rows) > NEGLIGIBLE).any(axis=0))
        needed = slice(int(counts[0]), int(counts[-1]) + 1)
        yield slice(low, low + len(rows)), needed, np.ascontiguousarray(rows[:, needed], np.float32)


def _each_slice(
    volume: Shaped[np.ndarray, "z y x"], out: Float32[np.ndarray, "z Y X"], along_y: list[Band], along_x: list[Band]
) -> None:
    half = np.empty((volume.shape[1], out.shape[2]), np.float32)
    for plane, resized in zip(volume, out, strict=True):
        source = np.ascontiguousarray(plane, np.float32)
        for rows, needed, weights in along_x:
            np.matmul(source[:, needed], weights.T, out=half[:, rows])
        for rows, needed, weights in along_y:
            np.matmul(weights, half[needed], out=resized[rows])


def _along_z(volume: Shaped[np.ndarray, "z y x"], out: Float32[np.ndarray, "Z y x"], bands: list[Band]) -> None:
    (z, y, x), flat = volume.shape, out.reshape(len(out), -1)
    for low in range(0, y, BLOCK):
        source = np.ascontiguousarray(volume[:, low : low + BLOCK], np.float32).reshape(z, -1)
        columns = slice(low * x, low * x + source.shape[1])
        for rows, needed, weights in bands:
            np.matmul(weights, source[needed], out=flat[rows, columns])
