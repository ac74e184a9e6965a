"""Slices of a volume as pictures: which way up, which grey values.

A slice is a plane of the first array axis; volumes lie in the closest RAS+ orientation, so it is an axial one.
On paper it is radiological: the patient's right is on the left, the front is up. Paper is measured in mm.
"""

import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Num, Real, UInt8
from PIL import Image

from girih.report.volumes import Volume

AIR_FILLED_HU = -400.0
"""Lung lies below, soft tissue above."""
ROBUST_PERCENTILES = (0.5, 99.5)
"""Range of grey values where voxels have no known unit; nnU-Net's fingerprint clips CT at the same two."""

Number = int | float
Region = tuple[int, int, int, int]
"""(y0, x0, y1, x1), voxel edges within a slice, half-open."""
Rectangle = tuple[float, float, float, float]
"""(left, top, right, bottom) on paper, mm."""
SIDES = ("R", "L", "A", "P")
"""Anatomical letters at the left, right, top and bottom of paper. In the closest RAS+ orientation each axis has one
that is its own, so they hold, to the nearest, however oblique the scan is."""


@dataclass(frozen=True)
class Window:
    """Grey values from `low` (black) to `high` (white)."""

    low: float
    high: float
    name: str

    @property
    def said(self) -> str:
        """Name, width and level."""
        return f"{self.name}: W {self.high - self.low:.4g} L {(self.low + self.high) / 2:.4g}"


LUNG = Window(-1350.0, 150.0, "lung")
"""Level -600, width 1500: the usual lung window in HU."""
SOFT_TISSUE = Window(-160.0, 240.0, "soft tissue")
"""Level 40, width 400: the usual soft-tissue window in HU."""


@dataclass(frozen=True)
class Plane:
    """How the slices of one volume lie on paper."""

    shape_yx: tuple[int, int]
    spacing_yx_mm: tuple[float, float]

    @property
    def whole(self) -> Region:
        """The region of the whole slice."""
        return (0, 0, *self.shape_yx)

    def on_paper(self, y0: Number, x0: Number, y1: Number, x1: Number) -> Rectangle:
        """Return where a rectangle of voxel edges lies on paper."""
        (rows, columns), (mm_y, mm_x) = self.shape_yx, self.spacing_yx_mm
        return (columns - x1) * mm_x, (rows - y1) * mm_y, (columns - x0) * mm_x, (rows - y0) * mm_y

    def around(self, box: Real[np.ndarray, "6"], least_mm: float) -> Region:
        """Return the square region about a box, three times its longer side and at least `least_mm` wide."""
        side_mm = max(least_mm, *(3 * (box[axis + 4] - box[axis + 1]) * self.spacing_yx_mm[axis] for axis in (0, 1)))
        low, high = [0, 0], [0, 0]
        for axis in (0, 1):
            size = self.shape_yx[axis]
            width = min(size, max(1, round(side_mm / self.spacing_yx_mm[axis])))
            start = round((box[axis + 1] + box[axis + 4] - width) / 2)
            low[axis] = min(max(start, 0), size - width)
            high[axis] = low[axis] + width
        return low[0], low[1], high[0], high[1]


def plane_of(volume: Volume) -> Plane:
    """Return how the slices of a volume lie on paper."""
    return Plane(shape_yx=volume.shape_zyx[1:], spacing_yx_mm=volume.spacing_zyx_mm[1:])


def read_region(volume: Volume, slice_index: int, region: Region) -> Float32[np.ndarray, "y x"]:
    """Return a region of one slice: Hounsfield units if they can be had, else as stored."""
    y0, x0, y1, x1 = region
    values: np.ndarray = volume.read((slice_index, y0, x0), (1, y1 - y0, x1 - x0))[0]
    return values


def window_for(field: Num[np.ndarray, "y x"], whole: Num[np.ndarray, "Y X"], *, hounsfield: bool) -> Window:
    """Return the window for a part of a slice: lung or soft tissue in CT, else percentiles of the whole slice."""
    if hounsfield:
        if np.median(field) < AIR_FILLED_HU:
            return LUNG
        return SOFT_TISSUE
    low, high = (float(value) for value in np.percentile(whole, ROBUST_PERCENTILES))
    return Window(low, max(high, low + 1e-6), "percentiles 0.5 to 99.5")


def grey(values: Num[np.ndarray, "y x"], window: Window) -> UInt8[np.ndarray, "rows columns"]:
    """Return a region of a slice as grey pixels, turned as it lies on paper."""
    scaled = np.clip((values - window.low) / (window.high - window.low), 0, 1)
    return np.asarray(np.round(scaled[::-1, ::-1] * 255), dtype=np.uint8)


def grey_png(pixels: UInt8[np.ndarray, "rows columns"], longest: int) -> bytes:
    """Return pixels as an 8-bit PNG, averaged down so that no side exceeds `longest`."""
    image = Image.fromarray(pixels)
    shrink = max(image.size) / longest
    if shrink > 1:
        image = image.resize(
            (max(1, round(image.width / shrink)), max(1, round(image.height / shrink))), Image.Resampling.BOX
        )
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
