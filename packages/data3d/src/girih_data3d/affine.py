"""4x4 affines: voxel-centre index (x, y, z) -> RAS millimetres; arrays and boxes are in (z, y, x) order.

A box is (z0, y0, x0, z1, y1, x1) on voxel edges, half-open: edge e lies at index e - 0.5.
"""

import itertools

import numpy as np
from jaxtyping import Float64, Real

MAX_SPACING_MM = 50.0
"""Thicker than any clinical slice; a larger value is a broken header."""
MAX_SHEAR = 1e-3
"""Largest |cosine| between two voxel axes. Rounded headers stay below 1e-4; a tilted gantry gives 0.1 or more."""


def voxel_to_world(
    affine: Float64[np.ndarray, "4 4"], index_zyx: Real[np.ndarray, "n 3"]
) -> Float64[np.ndarray, "n 3"]:
    """Return the RAS position (x, y, z) in mm of voxel-centre indices (z, y, x)."""
    world: np.ndarray = np.asarray(index_zyx, np.float64)[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]
    return world


def world_to_voxel(affine: Float64[np.ndarray, "4 4"], ras_mm: Real[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3"]:
    """Return the voxel-centre indices (z, y, x), fractional, of RAS positions (x, y, z) in mm."""
    offset = np.asarray(ras_mm, np.float64) - affine[:3, 3]
    return np.ascontiguousarray(np.linalg.solve(affine[:3, :3], offset.T).T[:, ::-1])


def spacing_zyx(affine: Float64[np.ndarray, "4 4"]) -> tuple[float, float, float]:
    """Return the voxel size in mm along (z, y, x): the norms of the affine's columns."""
    x, y, z = (float(n) for n in np.linalg.norm(affine[:3, :3], axis=0))
    return z, y, x


def affine_problem(affine: Float64[np.ndarray, "4 4"]) -> str | None:
    """Return why an affine cannot place a volume in space, or None when it can.

    Refused: not finite, a voxel size outside (0, 50) mm, axes that are not orthogonal (|cosine| > 1e-3).
    """
    if not np.isfinite(affine).all():
        return f"affine has non-finite values: {affine.tolist()}"
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not ((spacing > 0) & (spacing < MAX_SPACING_MM)).all():
        return f"voxel size along the file's axes is {spacing.tolist()} mm, wanted above 0 and below {MAX_SPACING_MM:g}"
    axes = affine[:3, :3] / spacing
    if abs(np.linalg.det(axes)) < MAX_SHEAR:
        return f"affine is singular: {affine.tolist()}"
    shear = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if shear > MAX_SHEAR:
        return f"affine is sheared: cosine {shear:.4g} between two voxel axes, wanted at most {MAX_SHEAR:g}"
    return None


def shift_affine(affine: Float64[np.ndarray, "4 4"], start_zyx: Real[np.ndarray, "3"]) -> Float64[np.ndarray, "4 4"]:
    """Return the affine of the array that starts at index `start_zyx` of the given one (a crop, or a patch)."""
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.asarray(start_zyx, np.float64)[::-1]
    return moved


def rescale_affine(
    affine: Float64[np.ndarray, "4 4"], shape_zyx: tuple[int, int, int], new_shape_zyx: tuple[int, int, int]
) -> Float64[np.ndarray, "4 4"]:
    """Return the affine after resampling to another shape over the same extent (outer voxel edges stay in place)."""
    scale = (np.asarray(shape_zyx, np.float64) / np.asarray(new_shape_zyx, np.float64))[::-1]
    scaled = affine.copy()
    scaled[:3, :3] = affine[:3, :3] * scale
    scaled[:3, 3] += affine[:3, :3] @ (0.5 * scale - 0.5)
    return scaled


def move_boxes(
    boxes: Real[np.ndarray, "n 6"], affine: Float64[np.ndarray, "4 4"], target_affine: Float64[np.ndarray, "4 4"]
) -> Float64[np.ndarray, "n 6"]:
    """Carry boxes from one voxel grid to another through RAS: the hull of the eight moved corners."""
    index = world_to_voxel(target_affine, voxel_to_world(affine, _corners(boxes) - 0.5)).reshape(-1, 8, 3) + 0.5
    return np.concatenate([index.min(axis=1), index.max(axis=1)], axis=1)


def boxes_to_ras(boxes: Real[np.ndarray, "n 6"], affine: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "n 6"]:
    """Return the hull (x0, y0, z0, x1, y1, z1) in RAS mm of boxes in voxel edges."""
    world = voxel_to_world(affine, _corners(boxes) - 0.5).reshape(-1, 8, 3)
    return np.concatenate([world.min(axis=1), world.max(axis=1)], axis=1)


def _corners(boxes: Real[np.ndarray, "n 6"]) -> Float64[np.ndarray, "m 3"]:
    """Return the eight corners (z, y, x) of every box, box by box."""
    pick = np.array(list(itertools.product((0, 3), (1, 4), (2, 5))))
    return np.asarray(boxes, np.float64)[:, pick].reshape(-1, 3)
