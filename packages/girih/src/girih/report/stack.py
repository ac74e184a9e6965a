"""A volume as a stack of small axial pictures that fit a budget, from which a page draws slices of all three planes.

Pictures are for looking, not for measuring: WebP with loss, 8 bits, large volumes shrunk. Row 0 is the patient's front,
column 0 the patient's right, picture 0 the lowest slice.
"""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from PIL import Image

from girih.report.marks import Mark
from girih.report.slices import LUNG, SOFT_TISSUE, Window, plane_of
from girih.report.volumes import Triplet, Volume

LONGEST_YX = 512
"""Most pixels along a side of a picture."""
MOST_SLICES = 320
"""Most pictures of a volume; of more slices, neighbours are averaged."""
RUNGS = ((1, 85), (1, 70), (1, 55), (1, 40), (2, 75), (2, 50), (3, 50), (4, 50), (6, 30))
"""What is tried until the pictures fit: averaged pixels along a side, quality of WebP."""
TRIED = 8
"""Every 8th picture is encoded to guess the size of all."""
SLAB_SLICES = 32
"""Slices read at once, unless more are averaged; half a chunk of a prepared dataset."""
PERCENTILES = (0.1, 99.9)
"""Range of pictures of voxels without a known unit."""
SAMPLED_SLICES = 12
"""Slices that the percentiles are taken from."""

HOUNSFIELD_CODES = ((0, -1350.0), (90, -200.0), (210, 300.0), (255, 2000.0))
"""Grey value -> HU, straight in between: 4 HU a step in soft tissue, 13 in lung, 38 in bone."""
HOUNSFIELD_WINDOWS = (
    LUNG,
    SOFT_TISSUE,
    Window(-500.0, 1300.0, "bone"),
    Window(0.0, 80.0, "brain"),
)


@dataclass(frozen=True)
class Stack:
    """The pictures of a volume, and what a page needs to draw them and boxes on them."""

    pictures: tuple[bytes, ...]
    """WebP, lowest slice first."""
    shape_zyx: Triplet
    """Pictures, rows, columns."""
    step_zyx_mm: tuple[float, float, float]
    """Size of a picture's voxel; a multiple of the scan's."""
    merged_slices: int
    """Slices of the scan that one picture is the average of."""
    n_slices: int
    """Slices of the scan."""
    codes: tuple[tuple[int, float], ...]
    """Grey value -> intensity, straight in between."""
    windows: tuple[Window, ...]


def make_stack(volume: Volume, max_bytes: int) -> Stack:
    """Return the pictures of a volume, together at most `max_bytes` long.

    Raises:
        ValueError: even the smallest pictures are larger.
    """
    codes = HOUNSFIELD_CODES if volume.hounsfield else _codes_of(volume)
    n_slices, rows, columns = volume.shape_zyx
    factors = (math.ceil(n_slices / MOST_SLICES), math.ceil(rows / LONGEST_YX), math.ceil(columns / LONGEST_YX))
    grey = np.concatenate([_coded(slab, codes) for slab in _shrunk_slabs(volume, factors)])
    pictures, shrink = _encode_within(grey, max_bytes, volume.case_id)
    z_mm, y_mm, x_mm = (mm * factor for mm, factor in zip(volume.spacing_zyx_mm, factors, strict=True))
    return Stack(
        pictures=pictures,
        shape_zyx=(len(grey), math.ceil(grey.shape[1] / shrink), math.ceil(grey.shape[2] / shrink)),
        step_zyx_mm=(z_mm, y_mm * shrink, x_mm * shrink),
        merged_slices=factors[0],
        n_slices=n_slices,
        codes=codes,
        windows=HOUNSFIELD_WINDOWS if volume.hounsfield else (Window(codes[0][1], codes[-1][1], "whole range"),),
    )


def box_on_stack(mark: Mark, volume: Volume) -> Float64[np.ndarray, "6"]:
    """Return (x0, y0, z0, x1, y1, z1) of a box in mm from the first corner of the first picture."""
    z0, y0, x0, z1, y1, x1 = (float(edge) for edge in mark.box)
    left, top, right, bottom = plane_of(volume).on_paper(y0, x0, y1, x1)
    z_mm = volume.spacing_zyx_mm[0]
    return np.array([left, top, z0 * z_mm, right, bottom, z1 * z_mm])


def _shrunk_slabs(volume: Volume, factors: Triplet) -> Iterator[Float32[np.ndarray, "z y x"]]:
    """The volume from below, turned as it lies on paper, blocks of `factors` voxels averaged."""
    n_slices, rows, columns = volume.shape_zyx
    step = factors[0] * max(1, SLAB_SLICES // factors[0])
    for z in range(0, n_slices, step):
        slab = volume.read((z, 0, 0), (min(step, n_slices - z), rows, columns))
        yield _average(slab[:, ::-1, ::-1], factors)


def _average(values: Float32[np.ndarray, "z y x"], factors: Triplet) -> Float32[np.ndarray, "Z Y X"]:
    """Average blocks; the last ones are filled up with the edge's values."""
    if factors == (1, 1, 1):
        return values
    padded = np.pad(values, [(0, -n % factor) for n, factor in zip(values.shape, factors, strict=True)], mode="edge")
    (a, b, c), (z, y, x) = factors, padded.shape
    averaged: np.ndarray = padded.reshape(z // a, a, y // b, b, x // c, c).mean(axis=(1, 3, 5), dtype=np.float32)
    return averaged


def _codes_of(volume: Volume) -> tuple[tuple[int, float], ...]:
    n, rows, columns = volume.shape_zyx
    picked = np.unique(np.linspace(0, n - 1, min(n, SAMPLED_SLICES)).round().astype(int))
    sample = np.concatenate([volume.read((int(z), 0, 0), (1, rows, columns)) for z in picked])
    low, high = (float(value) for value in np.percentile(sample, PERCENTILES))
    return (0, low), (255, max(high, low + 1e-6))


def _coded(values: Float32[np.ndarray, "z y x"], codes: tuple[tuple[int, float], ...]) -> UInt8[np.ndarray, "z y x"]:
    grey, intensity = (np.array(column, np.float64) for column in zip(*codes, strict=True))
    return np.asarray(np.round(np.interp(values, intensity, grey)), np.uint8)


def _encode_within(grey: UInt8[np.ndarray, "z y x"], max_bytes: int, case_id: str) -> tuple[tuple[bytes, ...], int]:
    """The pictures of the first rung that fits, and how many pixels it averages along a side."""
    for shrink, quality in RUNGS:
        tried = [_webp(picture, shrink, quality) for picture in grey[TRIED // 2 :: TRIED]]
        if sum(map(len, tried)) * len(grey) > max_bytes * max(1, len(tried)):
            continue
        pictures = tuple(_webp(picture, shrink, quality) for picture in grey)
        if sum(map(len, pictures)) <= max_bytes:
            return pictures, shrink
    raise ValueError(f"case {case_id!r}: its {len(grey)} pictures do not fit in {max_bytes:,} bytes, allow more")


def _webp(picture: UInt8[np.ndarray, "y x"], shrink: int, quality: int) -> bytes:
    if shrink > 1:
        picture = np.round(_average(picture[None].astype(np.float32), (1, shrink, shrink))[0]).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="WEBP", quality=quality, method=2)
    return buffer.getvalue()
