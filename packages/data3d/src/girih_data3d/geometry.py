"""Spatial augmentation as one linear map per patch: drawn once, applied in one resampling.

The map A (3x3, order z, y, x) takes offsets from the patch's centre, in patch voxels, to offsets in case voxels.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Float64, Shaped
from scipy import ndimage

from girih_data3d.affine import shift_affine
from girih_data3d.resampling import Number, Triple

Triplet = tuple[int, int, int]

SPLINE_MARGIN = 8
"""Voxels around a patch that a cubic spline still feels: its pole 0.268^8 is 3e-5."""


@dataclass(frozen=True)
class Geometry:
    """Random rotation, scaling and mirroring; the defaults are nnDetection's ("base_more" augmentation).

    Raises:
        ValueError: a probability outside [0, 1], an angle or a scale out of range.
    """

    rotation_deg: Number = 30.0
    """Largest angle about each of the three axes, in degrees; about the patch's centre, in millimetres."""
    p_rotation: Number = 0.2
    scale: tuple[Number, Number] = (0.7, 1.4)
    """Range of the extent that is looked at: above 1 objects get smaller. Half of the draws lie below 1."""
    p_scale: Number = 0.2
    p_mirror: Number = 0.5
    """Of each axis."""
    order: Literal[1, 3] = 1
    """Interpolation of images: linear, or cubic spline; labels are always taken from the nearest voxel."""

    def __post_init__(self) -> None:
        for name in ("p_rotation", "p_scale", "p_mirror"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted 0 to 1")
        if not 0 <= self.rotation_deg <= 180:
            raise ValueError(f"rotation_deg is {self.rotation_deg}, wanted 0 to 180")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(f"scale is {self.scale}, wanted two positive numbers, lowest first")
        if self.order not in (1, 3):
            raise ValueError(f"order is {self.order}, wanted 1 or 3")

    def draw(self, rng: np.random.Generator, spacing_zyx_mm: Triple) -> Float64[np.ndarray, "3 3"]:
        """Draw the map of one patch."""
        matrix = np.diag(np.where(rng.random(3) < self.p_mirror, -1.0, 1.0))
        angles = np.radians(rng.uniform(-self.rotation_deg, self.rotation_deg, 3))
        if rng.random() < self.p_rotation:
            mm = np.array(spacing_zyx_mm)
            matrix = _rotation(angles) * mm / mm[:, None] @ matrix
        low, high = self.scale
        share = rng.random()
        if low < 1 < high:
            low, high = (low, 1.0) if rng.random() < 0.5 else (1.0, high)
        if rng.random() < self.p_scale:
            matrix = matrix * (low + (high - low) * share)
        return matrix


def is_flip(matrix: Float64[np.ndarray, "3 3"]) -> bool:
    """Return whether a map only mirrors axes, so that nothing has to be interpolated."""
    return bool((np.abs(matrix) == np.eye(3)).all())


def patch_affine(
    affine: Float64[np.ndarray, "4 4"],
    matrix: Float64[np.ndarray, "3 3"],
    centre: Float64[np.ndarray, "3"],
    patch_zyx: Triplet,
) -> Float64[np.ndarray, "4 4"]:
    """Return the affine of a patch that lies at `centre` (voxel edges of the case) under a map."""
    moved = shift_affine(affine, first_voxel(matrix, centre, patch_zyx))
    moved[:3, :3] = affine[:3, :3] @ matrix[::-1, ::-1]
    return moved


def first_voxel(
    matrix: Float64[np.ndarray, "3 3"], centre: Float64[np.ndarray, "3"], patch_zyx: Triplet
) -> Float64[np.ndarray, "3"]:
    """Return the index in the case of the patch's first voxel."""
    first: np.ndarray = centre - 0.5 - matrix @ ((np.array(patch_zyx) - 1) / 2)
    return first


def read_window(
    matrix: Float64[np.ndarray, "3 3"], centre: Float64[np.ndarray, "3"], patch_zyx: Triplet, order: int
) -> tuple[Triplet, Triplet]:
    """Return start and size of the window of the case that the mapped patch needs."""
    corners = np.array(list(itertools.product(*((0, n - 1) for n in patch_zyx))), np.float64)
    index = first_voxel(matrix, centre, patch_zyx) + corners @ matrix.T
    margin = SPLINE_MARGIN if order == 3 else 0
    low = np.floor(index.min(axis=0)).astype(int) - margin
    size = np.ceil(index.max(axis=0)).astype(int) + 1 + margin - low
    return (int(low[0]), int(low[1]), int(low[2])), (int(size[0]), int(size[1]), int(size[2]))


def warp(
    window: Shaped[np.ndarray, "z y x"],
    matrix: Float64[np.ndarray, "3 3"],
    offset: Float64[np.ndarray, "3"],
    patch_zyx: Triplet,
    order: int,
) -> Shaped[np.ndarray, "Z Y X"]:
    """Resample a window to a patch; patch index o is taken from window index matrix @ o + offset.

    Order 0 keeps the type (nearest voxel), 1 (linear) and 3 (cubic spline) give float32. Equal to scipy's
    affine_transform; a map without rotation is applied axis by axis, which is 3 to 10 times faster.
    """
    if (matrix == np.diag(np.diag(matrix))).all():
        return _along_axes(window, np.diag(matrix), offset, patch_zyx, order)
    plain: Any = ndimage  # its published types are partial
    if order == 3:
        window = plain.spline_filter(window, 3, output=np.float32, mode="nearest")
    return np.asarray(
        plain.affine_transform(
            window,
            matrix,
            offset=offset,
            output_shape=patch_zyx,
            output=window.dtype if order == 0 else np.float32,
            order=order,
            mode="nearest",
            prefilter=False,
        )
    )


def _along_axes(
    window: Shaped[np.ndarray, "z y x"],
    steps: Float64[np.ndarray, "3"],
    first: Float64[np.ndarray, "3"],
    patch_zyx: Triplet,
    order: int,
) -> Shaped[np.ndarray, "Z Y X"]:
    """Take patch index o of an axis from window index step * o + first, one axis after the other."""
    lines = [*zip(window.shape, patch_zyx, steps.tolist(), first.tolist(), strict=True)]
    if order == 0:
        near = (np.floor(step * np.arange(n) + at + 0.5).astype(int).clip(0, old - 1) for old, n, step, at in lines)
        taken: np.ndarray = window[np.ix_(*near)]
        return taken
    z, y, x = (_line_operator(*line, order) for line in lines)
    planes = z @ window.astype(np.float32, copy=False).reshape(len(window), -1)
    resampled: np.ndarray = y @ planes.reshape(-1, *window.shape[1:]) @ x.T
    return resampled


def _line_operator(old: int, new: int, step: float, first: float, order: int) -> Float32[np.ndarray, "{new} {old}"]:
    """Return the matrix that takes `new` samples, `step` apart from index `first` on, of a line of `old` voxels."""
    plain: Any = ndimage
    operator: np.ndarray = plain.affine_transform(  # along the second axis it gives the identity back
        np.eye(old), (step, 1), offset=(first, 0), output_shape=(new, old), order=order, mode="nearest"
    )
    return operator.astype(np.float32)


def _rotation(angles: Float64[np.ndarray, "3"]) -> Float64[np.ndarray, "3 3"]:
    """Return the rotation about z, then y, then x (arrays in z, y, x order)."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = (i for i in range(3) if i != axis)
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
        matrix = turn @ matrix
    return matrix
