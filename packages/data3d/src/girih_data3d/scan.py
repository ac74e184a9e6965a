"""Read a scan or a label file of any supported format into canonical RAS orientation, (z, y, x)."""

import hashlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import xarray as xr
from jaxtyping import Float32, Float64, Shaped

from girih_data3d.affine import affine_problem, spacing_zyx
from girih_data3d.errors import ScanError
from girih_data3d.grid_checks import Frame
from girih_data3d.itk import first_files, read_dicom_series, read_itk
from girih_data3d.nifti import Rescale, read_nifti, scaled
from girih_data3d.npy import read_npy
from girih_data3d.resampling import Triple

nib: Any = nibabel  # its published types are partial

NIFTI_SUFFIXES = (".nii.gz", ".nii")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
BARE = ".npy"
"""The extension of arrays without a header that says how they lie in the patient."""
GRID_TOLERANCE = 1e-3
"""Largest difference (mm) between the affines of an image and its label."""


def read_scan(
    path: Path | str,
    *,
    frame: Frame | None = None,
    case_id: str | None = None,
    modality: str | None = None,
    rescale: Rescale | None = None,
    spacing_zyx_mm: Triple | None = None,
) -> xr.DataArray:
    """Read one scan: .nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd, .npy, or a folder that holds one DICOM series.

    Args:
        path: the file or folder.
        frame: of a NIfTI file with a time axis: "mean", or the number of one frame from 0; None: such a file is an
            error. A file without a time axis has one frame.
        case_id: name of the case; default the file's name without its extension.
        modality: "CT", "MR", ...; kept as an attribute.
        rescale: (slope, intercept) in place of the file's own: intensity = value as stored * slope + intercept. A DICOM
            series, each slice of which has its own, takes none.
        spacing_zyx_mm: voxel size along the (z, y, x) of the file's array in place of the file's own; the directions of
            the axes and the place of the first voxel stay. An array without a header (.npy) needs it; its axes are
            taken as `read_npy` says.

    Returns:
        float32 (channel=1, z, y, x), axes turned to the closest RAS+ orientation (no resampling, an oblique scan stays
        oblique), coordinates index * spacing in mm. Attributes: `affine` (voxel-centre index (x, y, z) -> RAS mm),
        `spacing_zyx_mm`, `modality`, `case_id`, and of the file as it lies on disk `source_affine`, `source_shape_zyx`;
        with another voxel size than the header's, `header_affine` is what `affine` would be with that.

    Raises:
        ScanError: the file cannot be read safely; the message names it and the value found.
    """
    path = Path(path)
    array, header_affine = _read(path, frame, rescale)
    source_affine = _placed(path, header_affine, spacing_zyx_mm)
    canonical, affine = _canonical(array, source_affine)
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused as such
        volume = np.ascontiguousarray(canonical, dtype=np.float32)
    _check_finite(path, volume)
    attrs: dict[str, Any] = {
        "affine": affine,
        "spacing_zyx_mm": spacing_zyx(affine),
        "modality": modality,
        "case_id": scan_name(path) if case_id is None else case_id,
        "source_affine": source_affine,
        "source_shape_zyx": tuple(reversed(array.shape)),
    }
    if spacing_zyx_mm is not None and not _is_bare(path):
        attrs["header_affine"] = header_affine @ np.linalg.inv(source_affine) @ affine  # the same turn
    dims = ("channel", "z", "y", "x")
    return xr.DataArray(volume[None], dims=dims, coords=_coords(volume.shape, affine), name="scan", attrs=attrs)


def read_labels(path: Path | str, *, like: xr.DataArray) -> xr.DataArray:
    """Read a label file that lies on the grid of the scan `like`, whatever the axis order of the two files.

    Where the scan's file was given another voxel size than its header's, the label file may have either. An array
    without a header (.npy) takes the voxel size of the scan's file.

    Returns:
        int32 (z, y, x) with the coordinates and the attributes of `like`.

    Raises:
        ScanError: another shape or affine (1e-3 mm) than the scan, a negative or fractional value, or unreadable.
    """
    path = Path(path)
    array, header_affine = _read(path)
    bare_mm = spacing_zyx(like.attrs["source_affine"]) if _is_bare(path) else None
    labels, affine = _canonical(array, _placed(path, header_affine, bare_mm))
    wanted = tuple(like.shape[-3:])
    if labels.shape != wanted:
        raise ScanError(f"{path}: canonical shape (z, y, x) {labels.shape}, the scan's is {wanted}")
    places = [like.attrs[name] for name in ("affine", "header_affine") if name in like.attrs]
    if not any(np.allclose(affine, place, rtol=0, atol=GRID_TOLERANCE) for place in places):
        scan_affine = np.asarray(like.attrs["affine"]).tolist()
        raise ScanError(f"{path}: canonical affine {affine.tolist()}, the scan's is {scan_affine}")
    _check_finite(path, labels)
    low, high = labels.min(), labels.max()
    if low < 0 or high > np.iinfo(np.int32).max:
        raise ScanError(f"{path}: labels from {low} to {high}, wanted 0 to {np.iinfo(np.int32).max}")
    whole = np.ascontiguousarray(labels, dtype=np.int32)
    if labels.dtype.kind == "f" and not np.array_equal(whole, labels):
        fractional = labels[whole != labels]
        raise ScanError(f"{path}: {len(fractional)} labels are not whole numbers, for example {fractional[0]}")
    coords = {axis: like.coords[axis] for axis in ("z", "y", "x")}
    return xr.DataArray(whole, dims=("z", "y", "x"), coords=coords, name="labels", attrs=dict(like.attrs))


def channel_sha256(channel: Float32[np.ndarray, "z y x"]) -> str | None:
    """Return the SHA-256 of one channel of a canonical scan, by which the same scan is known again in another dataset.

    It is that of the shape as text "z y x" (ASCII), a zero byte, and for every plane z of four bit maps in C order,
    each filled up with zeros to whole bytes: is a voxel larger than the one before it along x; smaller; along y larger;
    smaller. None where all these bits are 0: a constant channel is like any other.

    Only the order of values counts, for their last digits depend on the file: a slope is text in DICOM and float32 in
    NIfTI. So it outlives any rising change of intensities that keeps different values different: another slope and
    intercept (for 16-bit voxels while |intercept| < 2^22 slopes, which float32 resolves), one slope per plane, another
    unit, a z-score; and another file format, type of voxels or direction of axes. Voxel size and place in the patient
    do not count. It does not outlive resampling, cropping, clipped or rounded intensities, lossy compression, removed
    faces, nor axes that are turned: those of a scan at 45 degrees to the patient may be taken for others when its
    affine is rounded otherwise.
    """
    digest, known = hashlib.sha256(b"%d %d %d\0" % channel.shape), False
    for plane in channel:
        for after, before in ((plane[:, 1:], plane[:, :-1]), (plane[1:], plane[:-1])):
            for bits in (np.packbits(after > before), np.packbits(after < before)):
                known = known or bool(bits.any())
                digest.update(bits.tobytes())
    return digest.hexdigest() if known else None


def scan_name(path: Path) -> str:
    """Return a scan file's name without its extension (`a.b.nii.gz` -> `a.b`); a folder's name as it is."""
    lower = path.name.lower()
    suffix = next((s for s in (*NIFTI_SUFFIXES, *ITK_SUFFIXES, BARE) if lower.endswith(s)), "")
    return path.name[: len(path.name) - len(suffix)]


def is_scan(path: Path) -> bool:
    """Return whether a file's name has the extension of a format that says how the scan lies in the patient."""
    return path.name.lower().endswith(NIFTI_SUFFIXES + ITK_SUFFIXES)


def holds_dicom(folder: Path) -> bool:
    """Return whether one of the first files of a folder begins as DICOM files do (part 10, "DICM" at byte 128)."""
    for path in first_files(folder):
        with path.open("rb") as handle:
            if handle.read(132)[128:] == b"DICM":
                return True
    return False


def _read(
    path: Path, frame: Frame | None = None, rescale: Rescale | None = None
) -> tuple[Shaped[np.ndarray, "x y z"], Float64[np.ndarray, "4 4"]]:
    """Return voxels in the file's axis order and its affine as it stands there."""
    if not path.exists():
        raise ScanError(f"{path}: no such file or folder")
    name = path.name.lower()
    if path.is_dir():
        if rescale is not None:
            raise ScanError(f"{path}: a DICOM series has a rescale slope and intercept per slice, wanted no other")
        return read_dicom_series(path, frame)
    if name.endswith(NIFTI_SUFFIXES):
        return read_nifti(path, frame, rescale)
    if name.endswith(ITK_SUFFIXES):
        array, affine = read_itk(path, frame)
    elif _is_bare(path):
        array, affine = read_npy(path, frame)
    else:
        known = ", ".join((*NIFTI_SUFFIXES, *ITK_SUFFIXES, BARE))
        raise ScanError(f"{path}: unknown format, wanted one of {known}, or a folder with one DICOM series")
    return (array if rescale is None else scaled(array, *rescale)), affine


def _is_bare(path: Path) -> bool:
    return path.name.lower().endswith(BARE)


def _placed(
    path: Path, affine: Float64[np.ndarray, "4 4"], spacing_zyx_mm: Triple | None
) -> Float64[np.ndarray, "4 4"]:
    """Return a file's affine, checked, with the lengths of its columns replaced if there are others."""
    if spacing_zyx_mm is None and _is_bare(path):
        raise ScanError(f"{path}: does not say how large a voxel is, wanted spacing_zyx_mm")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing_zyx_mm is not None and (np.isfinite(lengths) & (lengths > 0)).all():
        affine = affine.copy()
        affine[:3, :3] *= np.array(spacing_zyx_mm[::-1], np.float64) / lengths
    problem = affine_problem(affine)
    if problem is not None:
        raise ScanError(f"{path}: {problem}")
    return affine


def _canonical(
    array: Shaped[np.ndarray, "x y z"], affine: Float64[np.ndarray, "4 4"]
) -> tuple[Shaped[np.ndarray, "Z Y X"], Float64[np.ndarray, "4 4"]]:
    """Turn axes to the closest RAS+ orientation, then to (z, y, x)."""
    orientation = nib.io_orientation(affine)
    turned = nib.apply_orientation(array, orientation)
    return turned.transpose(2, 1, 0), affine @ nib.orientations.inv_ornt_aff(orientation, array.shape)


def _coords(shape: tuple[int, ...], affine: Float64[np.ndarray, "4 4"]) -> dict[str, np.ndarray]:
    return {axis: np.arange(n) * mm for axis, n, mm in zip("zyx", shape, spacing_zyx(affine), strict=True)}


def _check_finite(path: Path, array: Shaped[np.ndarray, "z y x"]) -> None:
    if array.dtype.kind == "f" and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        bad = array.size - int(np.isfinite(array).sum())
        raise ScanError(f"{path}: {bad} of {array.size} voxels are NaN or infinite, as {array.dtype}")
