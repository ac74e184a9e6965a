"""NRRD, MetaImage and DICOM series through SimpleITK, which is imported only when such a file is read."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Shaped

from girih_data3d.errors import ScanError
from girih_data3d.grid_checks import Frame, check_shape, choose_frames

NRRD_DATA_FILE = re.compile(rb"(?:\A|[\r\n])[ \t]*data ?file[ \t]*:[ \t]*([^\r\n]*?)[ \t]*(?=[\r\n]|\Z)", re.IGNORECASE)
META_DATA_FILE = re.compile(rb"ElementDataFile[ \t]*[=:]?[ \t]*([^\r\n]*?)[ \t]*(?=[\r\n]|\Z)", re.IGNORECASE)
"""What says in a header where the voxels are; MetaIO takes a colon for an equals sign."""
NRRD_SPACING = re.compile(rb"(?:\A|[\r\n])[ \t]*(?:space directions|spacings)[ \t]*:(?!=)([^\r\n]*)", re.IGNORECASE)
META_SPACING = re.compile(rb"(?:\A|[\r\n])[ \t]*Element(?:Spacing|Size)[ \t]*[=:]([^\r\n]*)")
"""What says in a header how large a voxel is; ITK takes 1 mm where nothing does, and for what is no number. After :=
stands a remark (NRRD's key/value pairs)."""
HEADER_BYTES = 1 << 20
BETWEEN_NUMBERS = re.compile(rb"[\s(),]+")
ADDRESS = re.compile(r"\(0x[0-9a-f]+\)")
NRRD_HEADER_END = re.compile(rb"\r?\n\r?\n")
NRRD_SUFFIXES = (".nrrd", ".nhdr")
NRRD_SPACE = "left-posterior-superior"
"""ITK turns the other two anatomical spaces, right- and left-anterior-superior, into this one."""
PIXEL_SPACING, IMAGE_POSITION, MODALITY, SERIES = "0028|0030", "0020|0032", "0008|0060", "0020|000e"
OTHER = "OT"
"""The modality of a DICOM file that was converted from something else; it says nothing."""
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
MAX_SLICE_OFFSET = 0.1
"""Largest distance of a DICOM slice from the even grid, in slice gaps; a missing slice moves its neighbours by more."""


def read_itk(path: Path, frame: Frame | None = None) -> tuple[Shaped[np.ndarray, "x y z"], Float64[np.ndarray, "4 4"]]:
    """Return the voxels of a .nrrd, .nhdr, .mha or .mhd file in its own axis order, and its affine to RAS mm.

    Raises:
        ScanError: SimpleITK is not installed, or the file is unreadable, truncated, not 3D, not one number per voxel,
            names other files than one beside it, or says nothing about the size of a voxel or (NRRD) about the
            patient's orientation.
    """
    sitk = _simple_itk(path)
    voxel_file(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        _check_information(path, reader, frame)
        _check_spacing(path)
        image = reader.Execute()
    except RuntimeError as error:
        raise ScanError(f"{path}: not readable, or truncated: {_reason(error)}") from error
    return _array(sitk, path, image), _affine(image)


def voxel_file(path: Path) -> Path:
    """Return the file that holds the voxels of a NRRD or MetaImage header: one beside it, or itself.

    Raises:
        ScanError: the header cannot be read, or names several files, or one elsewhere.
    """
    header = _header(path)
    names = (NRRD_DATA_FILE if path.suffix.lower() in NRRD_SUFFIXES else META_DATA_FILE).findall(header)
    if len(names) > 1:  # whose word ITK takes is not for us to guess
        raise ScanError(f"{path}: the header says {len(names)} times where its voxels are, wanted once at most")
    if not names or names[0].upper() == b"LOCAL":
        return path
    name: str = names[0].decode(errors="replace")
    found = path.parent / name
    if Path(name).name != name or not found.is_file():
        raise ScanError(f"{path}: its voxels are in {name!r}, wanted the name of one file beside it")
    return found


def read_dicom_series(
    folder: Path, frame: Frame | None = None
) -> tuple[Shaped[np.ndarray, "x y z"], Float64[np.ndarray, "4 4"]]:
    """Return the voxels (rescaled) of the one DICOM series in a folder, and its affine to RAS mm.

    The slice axis comes from the first and the last slice position, so that a tilted gantry shows up as shear.

    Raises:
        ScanError: no series, several series, a missing or repeated slice, no Pixel Spacing, or an unreadable file.
    """
    sitk = _simple_itk(folder)
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not series:
        raise ScanError(f"{folder}: no DICOM series in this folder ({sum(1 for _ in folder.iterdir())} entries)")
    if len(series) > 1:
        raise ScanError(f"{folder}: {len(series)} DICOM series, wanted one per folder: {', '.join(series)}")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    try:
        if len(names) == 1:
            return _one_file(sitk, Path(names[0]), frame)
        positions = np.array([_position(sitk, name) for name in names])
        step = _even_step(folder, positions)
        first = sitk.ImageFileReader()
        first.SetFileName(names[0])
        first.ReadImageInformation()
        if not first.HasMetaDataKey(PIXEL_SPACING):
            raise ScanError(f"{names[0]}: no Pixel Spacing, (0028,0030)")
        check_shape(folder, (*first.GetSize()[:2], len(names)))
        choose_frames(folder, 1, frame)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(names)
        reader.SetOutputPixelType(sitk.sitkFloat32)  # else the first slice's, which may cut off what another one scales
        image = reader.Execute()
    except RuntimeError as error:
        raise ScanError(f"{folder}: DICOM series is not readable: {_reason(error)}") from error
    affine = _affine(image)
    affine[:, 2] = LPS_TO_RAS @ [*step, 0.0]
    affine[:, 3] = LPS_TO_RAS @ [*positions[0], 1.0]
    return _array(sitk, folder, image), affine


def modality_and_series(folder: Path) -> tuple[str | None, str | None]:
    """Return modality and SeriesInstanceUID as the first DICOM files of a folder state them.

    None stands for what they do not state; for both, without SimpleITK.
    """
    try:
        sitk = _simple_itk(folder)
    except ScanError:
        return None, None  # whoever reads the voxels will say so
    series = None
    for path in first_files(folder):
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            continue  # no image, as a DICOMDIR
        modality, uid = (reader.GetMetaData(t) if reader.HasMetaDataKey(t) else "" for t in (MODALITY, SERIES))
        series = series or uid.strip(" \0") or None
        if modality.strip() not in ("", OTHER):
            return modality.strip(), series
    return None, series


def first_files(folder: Path) -> list[Path]:
    """Return the files of a folder that are looked at to see what it holds."""
    return sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))[:8]


def _one_file(
    sitk: Any, path: Path, frame: Frame | None
) -> tuple[Shaped[np.ndarray, "x y z"], Float64[np.ndarray, "4 4"]]:
    """Read a multi-frame DICOM file; a lone slice says nothing about the distance between slices.

    Most state spacing and place per frame, in nested tags that SimpleITK does not show; where they state nothing, GDCM
    takes 1 mm and the origin. So what reads exactly as these defaults is refused: it may be a guess.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    if reader.GetDimension() < 3 or reader.GetSize()[2] == 1:
        raise ScanError(f"{path.parent}: DICOM series of one slice, {path.name}: wanted a volume")
    _check_information(path, reader, frame)
    guessed = []
    if reader.GetSpacing() == (1, 1, 1) and not reader.HasMetaDataKey(PIXEL_SPACING):
        guessed.append("voxels of 1 x 1 x 1 mm")
    place = (*reader.GetOrigin(), *reader.GetDirection())
    if place == (0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1) and not reader.HasMetaDataKey(IMAGE_POSITION):
        guessed.append("a first voxel at (0, 0, 0) with axes along those of the patient")
    if guessed:
        raise ScanError(
            f"{path}: a multi-frame DICOM file that reads as {' and '.join(guessed)}, which is also what is taken "
            "where a file states nothing; if you know better, convert it to NIfTI"
        )
    image = reader.Execute()
    return _array(sitk, path, image), _affine(image)


def _header(path: Path) -> bytes:
    """Return the beginning of a NRRD or MetaImage file: its text, maybe with voxels behind it."""
    try:
        with path.open("rb") as stream:
            header = stream.read(HEADER_BYTES)
    except OSError as error:
        raise ScanError(f"{path}: not readable: {error}") from error
    # the voxels of a NRRD may follow an empty line
    return NRRD_HEADER_END.split(header, maxsplit=1)[0] if path.suffix.lower() in NRRD_SUFFIXES else header


def _check_spacing(path: Path) -> None:
    header, pattern, wanted = _header(path), NRRD_SPACING, "space directions"
    if path.suffix.lower() not in NRRD_SUFFIXES:
        header, pattern, wanted = META_DATA_FILE.split(header, maxsplit=1)[0], META_SPACING, "ElementSpacing"
    found = pattern.findall(header)
    if not found or not all(map(_all_finite, found)):
        said = ", ".join(repr(value.strip().decode(errors="replace")) for value in found)
        what = f"says that a voxel is {said}" if found else "does not say how large a voxel is"
        raise ScanError(f"{path}: the header {what}, wanted {wanted!r} in finite numbers")


def _all_finite(text: bytes) -> bool:
    """Whether a field of a header holds finite numbers and nothing else."""
    try:
        numbers = [float(part) for part in BETWEEN_NUMBERS.split(text) if part]
    except ValueError:
        return False
    return len(numbers) > 0 and all(map(math.isfinite, numbers))


def _simple_itk(path: Path) -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise ScanError(f"{path}: this format needs SimpleITK: pip install 'girih-data3d[itk]'") from error
    return SimpleITK


def _check_information(path: Path, reader: Any, frame: Frame | None) -> None:
    check_shape(path, reader.GetSize())
    if reader.GetDimension() != 3:
        raise ScanError(f"{path}: {reader.GetDimension()} axes, wanted 3; a time axis is read from NIfTI only")
    choose_frames(path, 1, frame)
    if reader.GetNumberOfComponents() != 1:
        raise ScanError(f"{path}: {reader.GetNumberOfComponents()} numbers per voxel, wanted 1")
    if path.suffix.lower() in NRRD_SUFFIXES:
        space = reader.GetMetaData("NRRD_space") if reader.HasMetaDataKey("NRRD_space") else "missing"
        if space != NRRD_SPACE:
            raise ScanError(f"{path}: space is {space}, which says nothing about the patient; wanted {NRRD_SPACE}")


def _array(sitk: Any, path: Path, image: Any) -> Shaped[np.ndarray, "x y z"]:
    array: np.ndarray = sitk.GetArrayFromImage(image)
    if array.dtype.kind not in "iuf" or array.ndim != 3:
        raise ScanError(f"{path}: voxels of type {image.GetPixelIDTypeAsString()}, wanted one plain number each")
    return array.transpose()


def _affine(image: Any) -> Float64[np.ndarray, "4 4"]:
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    ras: np.ndarray = LPS_TO_RAS @ affine
    return ras


def _position(sitk: Any, name: str) -> list[float]:
    reader = sitk.ImageFileReader()
    reader.SetFileName(name)
    reader.ReadImageInformation()
    if not reader.HasMetaDataKey(IMAGE_POSITION):
        raise ScanError(f"{name}: no Image Position (Patient), (0020,0032)")
    return [float(value) for value in reader.GetMetaData(IMAGE_POSITION).split("\\")]


def _even_step(folder: Path, positions: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "3"]:
    """Return the vector from slice to slice; every slice has to lie on the even grid it spans."""
    step: np.ndarray = (positions[-1] - positions[0]) / (len(positions) - 1)
    gap = float(np.linalg.norm(step))
    even = positions[0] + step * np.arange(len(positions))[:, None]
    offset = np.linalg.norm(positions - even, axis=1)
    if gap == 0 or offset.max() > MAX_SLICE_OFFSET * gap:
        gaps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
        raise ScanError(
            f"{folder}: uneven slice gaps, from {gaps.min():.4g} to {gaps.max():.4g} mm; a slice is missing or repeated"
        )
    return step


def _reason(error: RuntimeError) -> str:
    """Return ITK's own words without the place in its source; NRRD's last line is the most exact."""
    text = str(error).rpartition("ERROR: ")[2].rpartition("[nrrd]")[2]
    return " ".join(ADDRESS.sub("", text).split())
