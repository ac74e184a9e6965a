"""Boxes of other tools, to and from (z0, y0, x0, z1, y1, x1), half-open edges. Every pair of functions round-trips."""

from typing import Literal

import numpy as np
from jaxtyping import Float64

MonaiMode = Literal["xyzxyz", "cccwhd", "xyzwhd"]
Boxes = Float64[np.ndarray, "n 6"]

_FROM_NNDETECTION = [0, 1, 4, 2, 3, 5]
_TO_NNDETECTION = [0, 1, 3, 4, 2, 5]
_MIRROR = [2, 1, 0, 5, 4, 3]


def from_nndetection(boxes: Boxes, *, padded: bool = True) -> Boxes:
    """Convert nnDetection's (a0_lo, a1_lo, a0_hi, a1_hi, a2_lo, a2_hi) on the array axes a0, a1, a2 = z, y, x.

    Args:
        boxes: in voxels.
        padded: its own boxes reach from the first index - 1 to the last + 1, so that one voxel is 2 wide; the lower
            edges move up by one. False: the numbers are edges already.

    Raises:
        ValueError: a padded box less than one voxel wide, which is no box here: compare such boxes unpadded.
    """
    found = boxes[:, _FROM_NNDETECTION]
    if not padded:
        return found
    thin = (found[:, 3:] - found[:, :3] < 1).any(axis=1)
    if thin.any():
        row = int(np.flatnonzero(thin)[0])
        raise ValueError(
            f"boxes row {row} is {boxes[row].tolist()}, under 1 voxel wide; wanted padded nnDetection boxes"
        )
    shrunk: np.ndarray = found + np.array([1.0, 1, 1, 0, 0, 0])
    return shrunk


def to_nndetection(boxes: Boxes, *, padded: bool = True) -> Boxes:
    """Convert to nnDetection's axes and (padded) its first index - 1, last index + 1; see `from_nndetection`."""
    moved = boxes - np.array([1.0, 1, 1, 0, 0, 0]) if padded else boxes
    return moved[:, _TO_NNDETECTION]


def from_monai(boxes: Boxes, *, mode: MonaiMode = "xyzxyz") -> Boxes:
    """Convert MONAI's boxes, whose axes run x, y, z.

    Args:
        boxes: any unit.
        mode: MONAI's name: "xyzxyz" corners, "cccwhd" centre and size, "xyzwhd" lower corner and size.

    Raises:
        ValueError: an unknown mode.
    """
    first, second = boxes[:, :3], boxes[:, 3:]
    if mode == "cccwhd":
        first, second = first - second / 2, first + second / 2
    elif mode == "xyzwhd":
        second = first + second
    elif mode != "xyzxyz":
        raise ValueError(f"mode is {mode!r}; wanted 'xyzxyz', 'cccwhd' or 'xyzwhd'")
    return np.concatenate([first, second], axis=1)[:, _MIRROR]


def to_monai(boxes: Boxes, *, mode: MonaiMode = "xyzxyz") -> Boxes:
    """Convert to MONAI's boxes; see `from_monai`.

    Raises:
        ValueError: an unknown mode.
    """
    corners = boxes[:, _MIRROR]
    low, high = corners[:, :3], corners[:, 3:]
    if mode == "xyzxyz":
        return corners
    if mode == "cccwhd":
        return np.concatenate([(low + high) / 2, high - low], axis=1)
    if mode == "xyzwhd":
        return np.concatenate([low, high - low], axis=1)
    raise ValueError(f"mode is {mode!r}; wanted 'xyzxyz', 'cccwhd' or 'xyzwhd'")


def from_coco(boxes: Boxes) -> Boxes:
    """Convert boxes in the manner of COCO, (x, y, z, width, height, depth) from the lower corner."""
    return from_monai(boxes, mode="xyzwhd")


def to_coco(boxes: Boxes) -> Boxes:
    """Convert to boxes in the manner of COCO, (x, y, z, width, height, depth) from the lower corner."""
    return to_monai(boxes, mode="xyzwhd")


def from_world_lps(
    points: Float64[np.ndarray, "n 3"], diameters: Float64[np.ndarray, " n"]
) -> tuple[Boxes, Float64[np.ndarray, "n 3"]]:
    """Convert LUNA16's findings: world points (x, y, z) in LPS millimetres, and diameters.

    Returns:
        Cubes around the points and their centres, both (z, y, x) in RAS millimetres: x and y change sign.
    """
    centers = points[:, ::-1] * np.array([1.0, -1.0, -1.0])
    half = diameters[:, None] / 2
    return np.concatenate([centers - half, centers + half], axis=1), centers


def to_world_lps(boxes: Boxes) -> tuple[Float64[np.ndarray, "n 3"], Float64[np.ndarray, " n"]]:
    """Convert boxes (z, y, x) in RAS millimetres to LPS points (x, y, z) and diameters, the longest sides."""
    centers = (boxes[:, :3] + boxes[:, 3:]) / 2 * np.array([1.0, -1.0, -1.0])
    return centers[:, ::-1].copy(), (boxes[:, 3:] - boxes[:, :3]).max(axis=1, initial=0.0)


def lps_to_ras(boxes: Boxes) -> Boxes:
    """Mirror boxes (z, y, x) between LPS and RAS millimetres: x and y change sign. Its own inverse."""
    z0, y0, x0, z1, y1, x1 = boxes.T
    return np.stack([z0, -y1, -x1, z1, -y0, -x0], axis=1)
