"""Volumes in .npy files: voxels without a header that says how the patient lies in them."""

from pathlib import Path
from tokenize import TokenError

import numpy as np
from jaxtyping import Float64, Shaped

from girih_data3d.errors import ScanError
from girih_data3d.grid_checks import Frame, check_shape, choose_frames

MAGIC = b"\x93NUMPY"
VERSIONS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
"""Of the header; the third is for names that are not Latin-1, which plain numbers do not have."""
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
        with path.open("rb") as stream:
            start = stream.read(len(MAGIC))
            if start != MAGIC:
                raise ScanError(f"{path}: not an array in numpy's format, it begins with {start!r}")
            stream.seek(0)
            version = np.lib.format.read_magic(stream)
            if version not in VERSIONS:
                raise ScanError(f"{path}: version {version} of numpy's format, wanted one of {sorted(VERSIONS)}")
            shape, _, dtype = VERSIONS[version](stream)
        if dtype.kind not in "iufb":
            raise ScanError(f"{path}: voxels of type {dtype}, wanted plain numbers; a pickle is never loaded")
        spatial = shape[1:] if len(shape) == 4 and shape[0] == 1 else shape
        if len(spatial) != 3:
            raise ScanError(f"{path}: shape {shape}, wanted (z, y, x) or (1, z, y, x)")
        check_shape(path, spatial)
        choose_frames(path, 1, frame)
        voxels = np.lib.format.open_memmap(path, mode="r").reshape(spatial)
    except (OSError, ValueError, SyntaxError, TokenError) as error:
        if isinstance(error, ScanError):
            raise
        raise ScanError(f"{path}: not a readable array in numpy's format, or truncated: {error}") from error
    plain = voxels.view(np.uint8) if voxels.dtype.kind == "b" else voxels
    return plain.transpose(), LPS_IN_RAS.copy()
