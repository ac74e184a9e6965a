"""Intensity normalisation, and the record of it that travels with prepared data and weights."""

import math
from collections.abc import Iterator
from typing import Literal, TypedDict, get_args

import numpy as np
from jaxtyping import Bool, Float32

from girih_data3d.resampling import Number

Scheme = Literal["zscore", "zscore_mask", "ct", "none"]
Range = tuple[Number, Number]
PerChannel = tuple[Number, ...]

CONSTANT_BELOW = 1e-6
"""A standard deviation below this part of the mean is rounding (float32 resolves 1e-7): the channel is constant."""


class Normalisation(TypedDict):
    """How intensities were normalised; `mean` and `std` are per channel, null where they are taken from each case."""

    scheme: Scheme
    clip: list[float] | None
    mean: list[float] | None
    std: list[float] | None


class Moments(TypedDict):
    """Mean and standard deviation of each channel, in the scan's own intensities."""

    mean: list[float]
    std: list[float]


def normalize(
    volume: Float32[np.ndarray, "c z y x"],
    scheme: Scheme,
    *,
    clip: Range | None = None,
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    mask: Bool[np.ndarray, "mz my mx"] | None = None,
) -> tuple[Float32[np.ndarray, "c z y x"], Normalisation]:
    """Normalise each channel: clip first if asked, then subtract a mean and divide by a standard deviation.

    Args:
        volume: intensities.
        scheme: "zscore": mean and std of the channel; "zscore_mask": of its voxels inside `mask`, zero outside
            (as nnU-Net does for skull-stripped brains); "ct": the given ones, of the whole dataset; "none".
        clip: lowest and highest intensity; required for "ct" (nnU-Net: the 0.5 and 99.5 percentiles of the dataset).
        mean: per channel, for "ct" only.
        std: per channel, for "ct" only.
        mask: for "zscore_mask"; default: where any channel is not zero.

    A constant channel (or an empty mask) becomes all zeros: it holds no information and has no scale.

    Raises:
        ValueError: a missing or superfluous parameter, another number of channels, an empty clip range, std <= 0.
    """
    out = volume.copy()
    record, _ = normalize_in_place(out, scheme, clip=clip, mean=mean, std=std, mask=mask)
    return out, record


def normalize_in_place(
    volume: Float32[np.ndarray, "c z y x"],
    scheme: Scheme,
    *,
    clip: Range | None = None,
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    mask: Bool[np.ndarray, "mz my mx"] | None = None,
) -> tuple[Normalisation, Moments | None]:
    """Do what `normalize` does to the volume itself, in no more memory than a slice.

    Returns:
        The record of the scheme, and what was subtracted and divided by; None for "none".

    Raises:
        ValueError: as for `normalize`.
    """
    params = check_normalisation(scheme, clip=clip, mean=mean, std=std)
    if mask is not None and scheme != "zscore_mask":
        raise ValueError(f"mask is given, but scheme {scheme!r} does not use it")
    if mask is not None and mask.shape != volume.shape[1:]:
        raise ValueError(f"mask has shape {mask.shape}, the volume {volume.shape[1:]}")
    if mean is not None and std is not None and len(mean) != len(volume):
        raise ValueError(f"mean and std have {len(mean)} values, the volume has {len(volume)} channels")
    if scheme == "zscore_mask" and mask is None:
        mask = (volume != 0).any(axis=0)
    if clip is not None:
        np.clip(volume, np.float32(clip[0]), np.float32(clip[1]), out=volume)
    if scheme == "none":
        return params, None
    moments: Moments = {"mean": [], "std": []}
    for number, channel in enumerate(volume):
        m, s = _moments(channel, mask) if mean is None or std is None else (mean[number], std[number])
        moments["mean"].append(float(m))
        moments["std"].append(float(s))
        if s <= CONSTANT_BELOW * abs(m):
            channel[:] = 0
        else:
            channel -= np.float32(m)
            channel /= np.float32(s)
        if mask is not None:
            channel[~mask] = 0
    return params, moments


def check_normalisation(
    scheme: Scheme,
    *,
    clip: Range | None,
    mean: PerChannel | None,
    std: PerChannel | None,
) -> Normalisation:
    """Return the record of a scheme after checking that its parameters belong together.

    Raises:
        ValueError: as for `normalize`.
    """
    if scheme not in get_args(Scheme):
        raise ValueError(f"normalisation is {scheme!r}, wanted one of {', '.join(get_args(Scheme))}")
    if clip is not None and not (np.isfinite(clip).all() and clip[0] < clip[1]):
        raise ValueError(f"clip is {clip}, wanted two finite numbers, lowest first")
    if scheme == "ct":
        if clip is None or mean is None or std is None:
            raise ValueError(f"scheme 'ct' needs clip, mean and std, found clip={clip}, mean={mean}, std={std}")
        if len(mean) != len(std) or not np.isfinite([*mean, *std]).all() or min(std) <= 0:
            raise ValueError(f"mean={mean}, std={std}: wanted one finite value per channel each, std above 0")
    elif mean is not None or std is not None:
        raise ValueError(f"mean={mean}, std={std} are given, but scheme {scheme!r} takes them from each case")
    return {
        "scheme": scheme,
        "clip": None if clip is None else [float(v) for v in clip],
        "mean": None if mean is None else [float(v) for v in mean],
        "std": None if std is None else [float(v) for v in std],
    }


def _moments(channel: Float32[np.ndarray, "z y x"], mask: Bool[np.ndarray, "z y x"] | None) -> tuple[float, float]:
    """Return mean and standard deviation, in float64, slice by slice; zeros if there is no voxel."""
    count, total, squares = 0, 0.0, 0.0
    for values in _slices(channel, mask):
        count += values.size
        total += float(values.sum(dtype=np.float64))
    mean = total / max(1, count)
    for values in _slices(channel, mask):
        squares += float(np.square(values.astype(np.float64) - mean).sum())
    return mean, math.sqrt(squares / max(1, count))


def _slices(
    channel: Float32[np.ndarray, "z y x"], mask: Bool[np.ndarray, "z y x"] | None
) -> Iterator[Float32[np.ndarray, "*n"]]:
    for number, plane in enumerate(channel):
        yield plane if mask is None else plane[mask[number]]
