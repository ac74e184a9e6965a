"""Cut one patch out of a case: plain, mirrored, or resampled once under a linear map."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float32, Float64, Shaped

from girih_data3d.case import Case, LabelKind
from girih_data3d.geometry import Triplet, first_voxel, is_flip, read_window, warp

Read = Callable[[Triplet, Triplet], Shaped[np.ndarray, "*channel z y x"]]
Matrix = Float64[np.ndarray, "3 3"]
Point = Float64[np.ndarray, "3"]


def cut_image(case: Case, matrix: Matrix, centre: Point, size: Triplet, order: int) -> Float32[np.ndarray, "c z y x"]:
    """Return the intensities of a patch; 0 outside the case."""
    return _cut(case.read_patch, matrix, centre, size, order)


def cut_labels(
    case: Case, kind: LabelKind, matrix: Matrix, centre: Point, size: Triplet
) -> Shaped[np.ndarray, "z y x"]:
    """Return the labels of a patch, each from the nearest voxel."""
    return _cut(lambda start, extent: case.read_label_patch(kind, start, extent), matrix, centre, size, 0)


def cut_inside(shape: Triplet, matrix: Matrix, centre: Point, size: Triplet) -> Bool[np.ndarray, "z y x"]:
    """Return which voxels of a patch lie inside a case of this shape."""

    def read(start: Triplet, extent: Triplet) -> Bool[np.ndarray, "z y x"]:
        lines = [
            (np.arange(a, a + n) >= 0) & (np.arange(a, a + n) < end)
            for a, n, end in zip(start, extent, shape, strict=True)
        ]
        return lines[0][:, None, None] & lines[1][:, None] & lines[2]

    return _cut(read, matrix, centre, size, 0)


def plain_start(centre: Point, size: Triplet) -> Triplet:
    """Return the first voxel of the unturned patch around a centre."""
    z, y, x = np.floor(centre - np.array(size) / 2 + 0.5).astype(int).tolist()
    return z, y, x


def _cut(read: Read, matrix: Matrix, centre: Point, size: Triplet, order: int) -> Shaped[np.ndarray, "*channel z y x"]:
    if is_flip(matrix):
        mirrored = tuple(axis - 3 for axis in range(3) if matrix[axis, axis] < 0)
        return np.ascontiguousarray(np.flip(read(plain_start(centre, size), size), mirrored))
    start, extent = read_window(matrix, centre, size, order)
    window = read(start, extent)
    if order == 0 and (window == window.flat[0]).all():  # labels are background for the most part
        return np.full((*window.shape[:-3], *size), window.flat[0])
    out = np.empty((*window.shape[:-3], *size), window.dtype)
    offset = first_voxel(matrix, centre, size) - start
    for channel in np.ndindex(window.shape[:-3]):
        out[channel] = warp(window[channel], matrix, offset, size, order)
    return out
