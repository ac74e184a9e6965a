"""NIfTI files: checked before anything is allocated, read frame by frame, written aside and renamed."""

import gzip
import io
import math
import os
import uuid
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import xarray as xr
from jaxtyping import Float32, Float64, Shaped

from girih_data3d.errors import ScanError
from girih_data3d.grid_checks import Frame, check_shape, choose_frames
from girih_data3d.resampling import Number

nib: Any = nibabel  # its published types are partial

DEFLATE_MAX_RATIO = 1032
"""Upper limit of the compression ratio of deflate (zlib manual, "Maximum Compression Factor")."""
SURPLUS = 1 << 20
"""Bytes that may follow the voxels in a gzip stream; more is not what the header describes."""
BLOCK = 1 << 22
Rescale = tuple[Number, Number]
"""(slope, intercept): intensity = value as stored * slope + intercept."""
MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""NIfTI's codes of lengths: unknown (taken for mm), metre, millimetre, micrometre."""


def read_nifti(
    path: Path, frame: Frame | None = None, rescale: Rescale | None = None
) -> tuple[Shaped[np.ndarray, "x y z"], Float64[np.ndarray, "4 4"]]:
    """Return the voxels in the file's own axis order (scaled by slope and intercept) and its affine to RAS mm.

    `rescale` takes the place of the header's slope and intercept.

    Trailing axes of length one are dropped. Of a 4D file one frame is read, or the mean of all, one after the other.
    The whole gzip stream is read, so that its checksum is verified.

    Raises:
        ScanError: unreadable, truncated, not three-dimensional, not plain numbers, without orientation, or larger than
            the file can hold.
    """
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            header = _header(path, stream.read(nib.Nifti2Header.sizeof_hdr))
            affine = _affine(path, header)
            return _voxels(path, stream, header, frame, rescale or header.get_slope_inter()), affine
    except EOFError as error:
        raise ScanError(f"{path}: truncated: {error}") from error
    except (nib.spatialimages.HeaderDataError, OSError, zlib.error, ArithmeticError, ValueError) as error:
        if isinstance(error, ScanError):
            raise
        raise ScanError(f"{path}: not a readable NIfTI file: {error}") from error


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
    aside = path.with_name(f".partial-{uuid.uuid4().hex}{suffix}")
    try:
        nib.save(image, aside)
        with aside.open("rb") as handle:
            os.fsync(handle.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _header(path: Path, start: bytes) -> Any:
    """Return the header as nibabel understands it; extensions are left alone."""
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        if kind.may_contain_header(start):
            header = kind(start[: kind.sizeof_hdr], check=False)
            break
    else:
        raise ScanError(f"{path}: not a readable NIfTI file: it begins with {start[:8]!r}")
    if header["magic"].item() != kind.single_magic:
        raise ScanError(f"{path}: header of a pair (.hdr, .img), wanted one file")
    for name in ("sform_code", "qform_code"):  # nibabel would take what it does not know for 0
        if int(header[name]) not in nib.nifti1.xform_codes.code:
            raise ScanError(f"{path}: {name} is {int(header[name])}, which is no way of placing a file in the patient")
    if not np.isfinite(header["vox_offset"]):
        raise ScanError(f"{path}: vox_offset is {header['vox_offset']}, wanted where the voxels begin")
    if not header["sform_code"] and not (header["pixdim"][1:4] > 0).all():  # nibabel would mend it
        raise ScanError(f"{path}: voxel size {header['pixdim'][1:4].tolist()}, wanted three positive lengths")
    header.check_fix()
    return header


def _affine(path: Path, header: Any) -> Float64[np.ndarray, "4 4"]:
    if not header["sform_code"] and not header["qform_code"]:
        raise ScanError(f"{path}: sform_code and qform_code are 0: nothing says how the patient lies in the file")
    unit = int(header["xyzt_units"]) % 8
    if unit not in MM_PER_UNIT:
        raise ScanError(f"{path}: xyzt_units is {int(header['xyzt_units'])}, which is no unit of length")
    affine = np.array(header.get_best_affine(), np.float64)
    affine[:3] *= MM_PER_UNIT[unit]
    return affine


def scaled(
    stored: Shaped[np.ndarray, "x y z"], slope: Number | None, intercept: Number | None
) -> Shaped[np.ndarray, "x y z"]:
    """Return stored * slope + intercept in float32, computed in float64 slice by slice; nothing to do: as stored."""
    if slope is None or intercept is None or (slope, intercept) == (1, 0):
        return stored
    out: Float32[np.ndarray, "x y z"] = np.empty(stored.shape, np.float32, order="F")
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused as such
        for z in range(stored.shape[2]):
            out[..., z] = stored[..., z].astype(np.float64) * slope + intercept
    return out


def _voxels(
    path: Path,
    stream: io.BufferedIOBase,
    header: Any,
    frame: Frame | None,
    rescale: tuple[Number | None, Number | None],
) -> Shaped[np.ndarray, "x y z"]:
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise ScanError(f"{path}: voxel type {dtype} is not a plain number")
    shape, count = check_shape(path, header.get_data_shape())
    frames = choose_frames(path, count, frame)
    size, offset = math.prod(shape) * dtype.itemsize, header.get_data_offset()
    found, end = path.stat().st_size, offset + count * size
    packed = isinstance(stream, gzip.GzipFile)
    if found * (DEFLATE_MAX_RATIO if packed else 1) < end:
        raise ScanError(f"{path}: truncated: {found} bytes on disk, but the header describes {end} bytes")
    stream.seek(offset + frames.start * size)
    read = (scaled(_bytes(path, stream, size, end).view(dtype).reshape(shape, order="F"), *rescale) for _ in frames)
    voxels = next(read)
    if len(frames) > 1:
        total = voxels.astype(np.float64)
        for one in read:
            total += one
        voxels = (total / len(frames)).astype(np.float32)
    if packed:
        _check_end(path, stream, end)
    return voxels


def _bytes(path: Path, stream: io.BufferedIOBase, size: int, end: int) -> Shaped[np.ndarray, " n"]:
    content = np.empty(size, np.uint8)
    done = 0
    while done < size:
        block = stream.read(min(BLOCK, size - done))
        if not block:
            raise ScanError(f"{path}: truncated: {stream.tell()} bytes inside, but the header describes {end} bytes")
        content[done : done + len(block)] = np.frombuffer(block, np.uint8)
        done += len(block)
    return content


def _check_end(path: Path, stream: io.BufferedIOBase, end: int) -> None:
    """Read on to where gzip verifies its checksum."""
    while stream.read(BLOCK):
        if stream.tell() > end + SURPLUS:
            raise ScanError(f"{path}: more than {stream.tell()} bytes inside, but the header describes {end} bytes")


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
