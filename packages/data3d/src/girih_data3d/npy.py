"""Volumes in .npy files: voxels without a header that says how the patient lies in them."""

from pathlib import Path
from tokenize import TokenError

import numpy as np
from jaxtyping import Float64, Shaped

from girih_data3d.errors import ScanError
from girih_data3d.grid_checks import Frame, check_shape, choose_frames

LPS_IN_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_npy(path: Path, frame: Frame | None = None) -> tuple[Shaped[np.ndarray, "x y z"], Float64[np.ndarray, "4 4"]]:
    """Return the voxels of a (z, y, x) or (1, z, y, x) array, mapped from the file, and an affine for voxels of 1 mm.

    The file does not say how the patient lies in it. The axes are taken as those of an axial CT in its usual DICOM
    order: the first index rises from inferior to superior, the second from anterior to posterior, the third from right
    to left. No data set has confirmed that yet.

    Raises:
        ScanError: not an array of plain numbers (a pickle is never loaded), truncated, or not three-dimensional.
    """
    try:
        voxels = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, TypeError, ArithmeticError, SyntaxError, TokenError) as error:
        raise ScanError(
            f"{path}: not an array in numpy's format (a pickle is never loaded), or truncated: {error}"
        ) from error
    if voxels.dtype.kind not in "iufb":
        raise ScanError(f"{path}: voxels of type {voxels.dtype}, wanted plain numbers")
    spatial = voxels.shape[1:] if voxels.ndim == 4 and len(voxels) == 1 else voxels.shape
    if len(spatial) != 3:
        raise ScanError(f"{path}: shape {voxels.shape}, wanted (z, y, x) or (1, z, y, x)")
    check_shape(path, spatial)
    choose_frames(path, 1, frame)
    plain = voxels.view(np.uint8) if voxels.dtype.kind == "b" else voxels
    return plain.reshape(spatial).transpose(), LPS_IN_RAS.copy()
