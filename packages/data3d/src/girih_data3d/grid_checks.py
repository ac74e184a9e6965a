"""Limits that a header has to meet before voxels are read."""

import math
from pathlib import Path

from girih_data3d.errors import ScanError

MAX_VOXELS = 2**31
"""8 GiB as float32; more than ten times a whole-body CT of 512 x 512 x 2000."""


def check_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the three axes of a header's shape, trailing ones dropped.

    Raises:
        ScanError: fewer or more than three axes, an empty axis, or more than 2**31 voxels.
    """
    axes = tuple(int(n) for n in shape)
    while len(axes) > 3 and axes[-1] == 1:
        axes = axes[:-1]
    if len(axes) != 3:
        raise ScanError(f"{path}: shape {tuple(shape)} has {len(axes)} axes, wanted 3")
    if min(axes) < 1:
        raise ScanError(f"{path}: shape {axes} has an empty axis")
    if math.prod(axes) > MAX_VOXELS:
        raise ScanError(f"{path}: shape {axes} is {math.prod(axes)} voxels, wanted at most {MAX_VOXELS}")
    return axes[0], axes[1], axes[2]
