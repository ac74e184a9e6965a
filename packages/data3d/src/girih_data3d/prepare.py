"""Prepare a scan in memory: crop, resample, normalise; and put its labels on the same grid."""

import math
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float32, Float64, Int32, Int64

from girih_data3d.affine import rescale_affine, shift_affine, spacing_zyx
from girih_data3d.errors import ScanError
from girih_data3d.grid_checks import MAX_VOXELS
from girih_data3d.instances import resample_instances
from girih_data3d.normalisation import Moments, Normalisation, normalize_in_place
from girih_data3d.resampling import Triple, new_shape, resample
from girih_data3d.spec import PrepareSpec

Size = tuple[int, int, int]


class Prepared(TypedDict):
    """How a prepared grid lies in its source file; plain JSON values.

    A box goes back by its eight corners: `affine` -> RAS -> inverse `source_affine` -> hull (`move_boxes`).
    """

    source_shape_zyx: list[int]
    source_affine: list[list[float]]
    crop_start_zyx: list[int]
    """In the canonical grid of the scan."""
    shape_zyx: list[int]
    affine: list[list[float]]
    normalisation: Normalisation
    moments: Moments | None
    """What was used for each channel: intensity = value * std + mean, in the mask if there is one; None: nothing."""


@dataclass(frozen=True)
class Grid:
    """The part of a canonical scan that is kept, and the grid it is resampled to."""

    start: Size
    stop: Size
    shape: Size
    affine: Float64[np.ndarray, "4 4"]
    spacing: Triple
    """Of the scan."""
    target: Triple
    """Voxel size that was asked for; the exact one is extent / shape."""


def prepare_scan(scan: xr.DataArray, spec: PrepareSpec) -> tuple[xr.DataArray, Prepared]:
    """Crop, resample and normalise a scan as a dataset made with `spec` holds it (before quantisation).

    Returns:
        The prepared scan, of the same form as `read_scan`'s, and the record that places it in the source file.

    Raises:
        ScanError: more than 2**31 voxels at the target's voxel size.
        ValueError: the normalisation's channels are not the scan's.
    """
    return prepare_on_grid(scan, spec, choose_grid(scan, spec))


def choose_grid(scan: xr.DataArray, spec: PrepareSpec, boxes: Float64[np.ndarray, "n 6"] | None = None) -> Grid:
    """Return the crop (never through one of the objects' boxes, in voxel edges) and the resampled grid."""
    shape: Size = (scan.sizes["z"], scan.sizes["y"], scan.sizes["x"])
    start, stop = (0, 0, 0), shape
    if spec.crop == "nonzero":
        start, stop = _bounds(scan.values)
        if boxes is not None and len(boxes):
            low, high = np.floor(boxes[:, :3].min(axis=0)), np.ceil(boxes[:, 3:].max(axis=0))
            start = _size(np.minimum(start, low.astype(int)))
            stop = _size(np.maximum(stop, high.astype(int)))
    cropped: Size = (stop[0] - start[0], stop[1] - start[1], stop[2] - start[2])
    spacing: Triple = scan.attrs["spacing_zyx_mm"]
    target = spec.target_zyx_mm or spacing
    out = new_shape(cropped, spacing, target)
    if math.prod(out) > MAX_VOXELS:
        raise ScanError(
            f"case {scan.attrs['case_id']!r}: {out} voxels at {target} mm, wanted at most {MAX_VOXELS} in all"
        )
    affine = rescale_affine(shift_affine(scan.attrs["affine"], np.array(start)), cropped, out)
    return Grid(start, stop, out, affine, spacing, target)


def prepare_on_grid(scan: xr.DataArray, spec: PrepareSpec, grid: Grid) -> tuple[xr.DataArray, Prepared]:
    """Resample a scan to a grid and normalise it."""
    volume = scan.values[(slice(None), *_window(grid))]
    mask = None
    if spec.normalisation == "zscore_mask":
        inside = (volume != 0).any(axis=0)
        mask = resample(inside, spacing_zyx_mm=grid.spacing, target_zyx_mm=grid.target, method="nearest") > 0
    volume = resample(
        volume,
        spacing_zyx_mm=grid.spacing,
        target_zyx_mm=grid.target,
        method=spec.method,
        antialias=spec.antialias,
    )
    record, moments = normalize_in_place(
        volume, spec.normalisation, clip=spec.clip, mean=spec.mean, std=spec.std, mask=mask
    )
    prepared: Prepared = {
        "source_shape_zyx": [int(n) for n in scan.attrs["source_shape_zyx"]],
        "source_affine": np.asarray(scan.attrs["source_affine"]).tolist(),
        "crop_start_zyx": list(grid.start),
        "shape_zyx": list(grid.shape),
        "affine": grid.affine.tolist(),
        "normalisation": record,
        "moments": moments,
    }
    spacing = spacing_zyx(grid.affine)
    coords = {axis: np.arange(n) * mm for axis, n, mm in zip("zyx", grid.shape, spacing, strict=True)}
    attrs = {**scan.attrs, "affine": grid.affine, "spacing_zyx_mm": spacing}
    return xr.DataArray(volume, dims=("channel", "z", "y", "x"), coords=coords, name="scan", attrs=attrs), prepared


def labels_on_grid(labels: Int32[np.ndarray, "z y x"], grid: Grid) -> Int32[np.ndarray, "Z Y X"]:
    """Crop and resample a label map of the canonical scan; no label vanishes that lies inside the crop."""
    return resample_instances(labels[_window(grid)], spacing_zyx_mm=grid.spacing, target_zyx_mm=grid.target)


def valid_on_grid(defaced: Bool[np.ndarray, "z y x"], grid: Grid) -> Bool[np.ndarray, "Z Y X"]:
    """Return which voxels of a prepared grid show the patient: those that overlap no defaced voxel of the scan."""
    hidden = defaced[_window(grid)]
    for axis, new in enumerate(grid.shape):
        planes = np.moveaxis(hidden, axis, 0)
        ends = ((i * len(planes) // new, -(-(i + 1) * len(planes) // new)) for i in range(new))
        hidden = np.stack([planes[low:high].any(axis=0) for low, high in ends], axis=axis)
    return ~hidden


def _window(grid: Grid) -> tuple[slice, slice, slice]:
    z, y, x = (slice(a, b) for a, b in zip(grid.start, grid.stop, strict=True))
    return z, y, x


def _bounds(volume: Float32[np.ndarray, "c z y x"]) -> tuple[Size, Size]:
    """Return the half-open bounds of what is not zero in any channel, or of everything if there is nothing.

    Looks at planes from the border inwards, so that a volume without an empty border is hardly read.
    """
    low, high = np.zeros(3, np.int64), np.array(volume.shape[1:])
    for axis in range(3):
        kept = volume[(slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))]
        planes = np.moveaxis(kept, axis + 1, 0)
        first = next((i for i, plane in enumerate(planes) if plane.any()), None)
        if first is None:
            return (0, 0, 0), _size(high)
        last = next(i for i in reversed(range(len(planes))) if planes[i].any())
        low[axis], high[axis] = first, last + 1
    return _size(low), _size(high)


def _size(values: Int64[np.ndarray, "3"]) -> Size:
    z, y, x = values.tolist()
    return z, y, x
