"""What the tests of the formats share: tiny scans, files of them in any orientation, and the check of what comes out.

Fixtures (test modules cannot import each other, so all of it comes as fixtures):

- `scans`: name -> `Scan`, all of 12 x 16 x 20 voxels of 2.5 x 0.75 x 0.5 mm (z, y, x), with one landmark, the brightest
  voxel, apart from the objects:
  "plain" (two objects), "flipped" (the same, its file's axes run to L, P and S), "turned" (its file's first axis is z),
  "empty" (no object), "touching" (objects 1 and 2 share a face), "numbered" (objects 7, 256 and 300).
- `Scan.write(path, labels=None)`: the volume, or labels on its grid, in the orientation of the scan's files; .nii,
  .nii.gz, .mhd, .mha or .nrrd.
- `Scan.labels()`: int32 (z, y, x) with the numbers of the objects; `Scan.boxes`: number -> (z0, y0, x0, z1, y1, x1);
  `Scan.hull(1, 2)`: the box around several; `Scan.mask(1)`: one object, uint8.
- `prepare(dataset)` -> `Store`: prepares all cases, not resampled, cropped or normalised, and fails if one fails.
- `assert_planted(store, case_id, scan, [(class, box), ...])`: the landmark lies where it lay in the patient, and the
  objects (any order) are exactly these.
- `write_series(scan, folder, upside_down=False, series_uid="1.2.3", **tags)`: its volume as a DICOM series whose axes
  run to L, P and S; the InstanceNumbers, after which the files are called, fall along z if `upside_down`.
- `write_rows(path, [[...], ...], delimiter=",", encoding="utf-8")`: a CSV file.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813

import girih_data3d as d3

SHAPE = (12, 16, 20)
AFFINE = np.array([[0.5, 0, 0, -40], [0, 0.75, 0, 13.5], [0, 0, 2.5, 7], [0, 0, 0, 1]])
LANDMARK = (10, 1, 2)
FIRST, SECOND, THIRD = (2, 3, 4, 5, 7, 9), (7, 9, 12, 10, 14, 18), (8, 2, 11, 10, 5, 14)
BESIDE_FIRST = (2, 3, 9, 5, 7, 13)
UNTOUCHED = d3.PrepareSpec(target_zyx_mm=None, normalisation="none", dtype="float32", crop=None)


@dataclass(frozen=True)
class Scan:
    """A scan with objects, in RAS orientation, and the orientation of its files."""

    volume: np.ndarray
    boxes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    axes: str = "RAS"
    affine: np.ndarray = field(default_factory=AFFINE.copy)

    def labels(self) -> np.ndarray:
        out = np.zeros(self.volume.shape, np.int32)
        for number, (z0, y0, x0, z1, y1, x1) in self.boxes.items():
            out[z0:z1, y0:y1, x0:x1] = number
        return out

    def mask(self, number: int) -> np.ndarray:
        return (self.labels() == number).astype(np.uint8)

    def hull(self, *numbers: int) -> tuple[int, ...]:
        boxes = np.array([self.boxes[number] for number in numbers])
        return (*boxes[:, :3].min(axis=0).tolist(), *boxes[:, 3:].max(axis=0).tolist())

    def write(self, path: Path, labels: np.ndarray | None = None) -> Path:
        array = (self.volume if labels is None else labels).transpose(2, 1, 0)
        turn = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(self.axes)
        )
        affine = self.affine @ nib.orientations.inv_ornt_aff(turn, array.shape)
        array = nib.apply_orientation(array, turn)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name.endswith((".nii", ".nii.gz")):
            nib.save(nib.Nifti1Image(array, affine), path)
            return path
        image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
        lps = np.diag([-1.0, -1, 1, 1]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
        sitk.WriteImage(image, str(path))
        return path


def make_scan(seed: int, boxes: dict[int, tuple[int, ...]], axes: str = "RAS") -> Scan:
    volume = np.random.default_rng(seed).integers(-200, 200, SHAPE).astype(np.int16)
    volume[LANDMARK] = 1000
    return Scan(volume, boxes, axes)


@pytest.fixture(scope="session")
def scans() -> dict[str, Scan]:
    """Tiny scans by name; read only."""
    return {
        "plain": make_scan(0, {1: FIRST, 2: SECOND}),
        "flipped": make_scan(1, {1: FIRST, 2: SECOND}, "LPS"),
        "turned": make_scan(2, {1: FIRST, 2: SECOND}, "ILP"),
        "empty": make_scan(3, {}),
        "touching": make_scan(4, {1: FIRST, 2: BESIDE_FIRST}),
        "numbered": make_scan(5, {7: FIRST, 256: SECOND, 300: THIRD}),
    }


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[[d3.Dataset], d3.Store]:
    """Prepares a dataset as it is, all cases of which have to succeed."""

    def prepared(dataset: d3.Dataset) -> d3.Store:
        root = tmp_path / "prepared"
        report = d3.prepare_many(dataset, root, UNTOUCHED, workers=0)
        assert report.failed == {}
        return d3.Store.open(root)

    return prepared


@pytest.fixture(scope="session")
def assert_planted() -> Callable[..., None]:
    """Compares a prepared case with the scan that was written."""

    def check(store: d3.Store, case_id: str, scan: Scan, objects: Sequence[tuple[int, tuple[float, ...]]]) -> None:
        case = store[case_id]
        volume = case.read_patch((0, 0, 0), case.shape[1:])[0]
        np.testing.assert_array_equal(volume, scan.volume)
        place = np.array(np.unravel_index(volume.argmax(), volume.shape), np.float64)
        wanted = scan.affine @ [*np.array(LANDMARK)[::-1], 1]
        np.testing.assert_allclose(d3.voxel_to_world(case.affine, place[None])[0], wanted[:3], atol=1e-5)
        found = sorted(zip(case.labels.tolist(), map(tuple, case.boxes.tolist()), strict=True))
        assert found == sorted((index, tuple(map(float, box))) for index, box in objects)

    return check


@pytest.fixture(scope="session")
def write_series() -> Callable[..., Path]:
    """Writes a DICOM series."""

    def write(
        scan: Scan, folder: Path, *, upside_down: bool = False, series_uid: str = "1.2.3", **tags: object
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        volume, affine = scan.volume[:, ::-1, ::-1], np.diag([-1.0, -1, 1, 1]) @ scan.affine
        depth, rows, columns = volume.shape
        spacing = np.abs(np.diag(affine)[:3])
        corner = affine[:3, 3] + affine[:3, :3] @ [columns - 1, rows - 1, 0]
        for k, pixels in enumerate(volume):
            number = depth - k if upside_down else k + 1
            meta = pydicom.dataset.FileMetaDataset()
            meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
            meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
            meta.MediaStorageSOPInstanceUID = f"{series_uid}.{k}"
            data = pydicom.Dataset()
            data.file_meta = meta
            data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
            data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = "1.2", series_uid, "1.2.9"
            data.Modality, data.InstanceNumber, data.ImageType = "CT", number, ["ORIGINAL", "PRIMARY", "AXIAL"]
            data.ImagePositionPatient = [*corner[:2].tolist(), float(corner[2] + k * spacing[2])]
            data.ImageOrientationPatient, data.PixelSpacing = [1, 0, 0, 0, 1, 0], [float(spacing[1]), float(spacing[0])]
            data.Rows, data.Columns, data.SamplesPerPixel = rows, columns, 1
            data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 1
            data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
            data.RescaleSlope, data.RescaleIntercept = 1, 0
            data.PixelData = np.ascontiguousarray(pixels).tobytes()
            for name, value in tags.items():
                setattr(data, name, value)
            data.save_as(folder / f"1-{number:03d}.dcm", enforce_file_format=True)
        return folder

    return write


@pytest.fixture(scope="session")
def write_rows() -> Callable[..., Path]:
    """Writes a CSV file."""

    def write(path: Path, rows: Sequence[Sequence[object]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding=encoding) as stream:
            csv.writer(stream, delimiter=delimiter).writerows(rows)
        return path

    return write
