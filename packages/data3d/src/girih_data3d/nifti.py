"""NIfTI files through nibabel: checked before anything is allocated, written aside and renamed."""

import gzip
import os
import uuid
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import xarray as xr
from jaxtyping import Float64, Shaped

from girih_data3d.errors import ScanError
from girih_data3d.grid_checks import check_shape

nib: Any = nibabel  # its published types are partial

DEFLATE_MAX_RATIO = 1032
"""Upper limit of the compression ratio of deflate (zlib manual, "Maximum Compression Factor")."""


def read_nifti(path: Path) -> tuple[Shaped[np.ndarray, "x y z"], Float64[np.ndarray, "4 4"]]:
    """Return the voxels in the file's own axis order (scaled by slope and intercept) and its affine to RAS mm.

    Trailing axes of length one are dropped; the whole gzip stream is read, so that its checksum is verified.

    Raises:
        ScanError: unreadable, truncated, not three-dimensional, not plain numbers, or larger than the file can hold.
    """
    try:
        image = nib.load(path)
    except (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, OSError, EOFError, ValueError) as e:
        raise ScanError(f"{path}: not a readable NIfTI file: {e}") from e
    dtype = image.get_data_dtype()
    shape = check_shape(path, image.shape)
    if dtype.kind not in "iuf":
        raise ScanError(f"{path}: voxel type {dtype} is not a plain number")
    packed = path.suffix.lower() == ".gz"
    needed = int(image.dataobj.offset) + int(np.prod(shape)) * dtype.itemsize
    found = path.stat().st_size
    if found * (DEFLATE_MAX_RATIO if packed else 1) < needed:
        raise ScanError(f"{path}: truncated: {found} bytes on disk, but the header describes {needed} bytes")
    try:
        if packed:
            image = type(image).from_bytes(_gunzip(path, needed))
        return np.asanyarray(image.dataobj).reshape(shape), np.asarray(image.affine, np.float64)
    except (nib.spatialimages.HeaderDataError, OSError, EOFError, zlib.error, ValueError) as error:
        if isinstance(error, ScanError):
            raise
        raise ScanError(f"{path}: truncated or damaged: {error}") from error


def write_nifti(
    volume: xr.DataArray | Shaped[np.ndarray, "*shape"],
    path: Path | str,
    *,
    affine: Float64[np.ndarray, "4 4"] | None = None,
) -> None:
    """Write a (z, y, x) or (1, z, y, x) volume as .nii or .nii.gz: to a file beside, then renamed.

    Args:
        volume: a scan or label DataArray (its `affine` attribute is used) or a bare array.
        path: where to; the folder must exist.
        affine: voxel-centre index (x, y, z) -> RAS mm; required for a bare array.

    Raises:
        ValueError: another extension, more than one channel, no affine, or a value type NIfTI does not have.
    """
    path = Path(path)
    suffix = next((s for s in (".nii.gz", ".nii") if path.name.endswith(s)), None)
    if suffix is None:
        raise ValueError(f"{path}: wanted a name that ends in .nii or .nii.gz")
    if affine is None:
        if not isinstance(volume, xr.DataArray) or "affine" not in volume.attrs:
            raise ValueError(f"{path}: no affine: pass affine= or a DataArray with the attribute 'affine'")
        affine = np.asarray(volume.attrs["affine"], np.float64)
    array = np.asarray(volume)
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim != 3:
        raise ValueError(f"{path}: shape {array.shape}: wanted (z, y, x) or (1, z, y, x)")
    image = nib.Nifti1Image(_storable(array, path).transpose(2, 1, 0), affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    aside = path.with_name(f".{uuid.uuid4().hex}{suffix}")
    try:
        nib.save(image, aside)
        with aside.open("rb") as handle:
            os.fsync(handle.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _gunzip(path: Path, needed: int) -> bytes:
    with gzip.open(path, "rb") as stream:
        content = stream.read(needed)
        if len(content) < needed:
            raise ScanError(f"{path}: truncated: {len(content)} bytes inside, but the header describes {needed} bytes")
        while stream.read(1 << 20):  # to the end, where gzip verifies its checksum
            pass
    return content


def _storable(array: Shaped[np.ndarray, "z y x"], path: Path) -> Shaped[np.ndarray, "z y x"]:
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype.kind == "f":
        return array.astype(np.float32) if array.dtype != np.float64 else array
    if array.dtype.kind in "iu":
        if array.dtype.itemsize < 8:
            return array
        low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
        if low >= -(2**31) and high < 2**31:
            return array.astype(np.int32)
        raise ValueError(f"{path}: integers from {low} to {high} do not fit into int32")
    raise ValueError(f"{path}: values of type {array.dtype} cannot be written to NIfTI")
