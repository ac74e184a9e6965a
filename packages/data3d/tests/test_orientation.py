"""A landmark keeps its place in the patient, from any file to the store and back to NIfTI."""

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

import girih_data3d as d3

SPACING = (0.7, 1.1, 2.5)
SHAPE = (5, 6, 7)  # (x, y, z) of the file
LANDMARK = (3, 1, 4)
BRIGHT = 9000
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
AS_READ = d3.PrepareSpec(target_zyx_mm=None, normalisation="none", dtype="float32", crop=None)
TOLERANCE_MM = 1e-3


def volume() -> np.ndarray:
    array = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
    array[LANDMARK] = BRIGHT
    return array


def tilt(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def affine_of(order: tuple[int, ...], signs: tuple[int, ...], degrees: float) -> np.ndarray:
    """Voxel axis k of the file runs along +-axis order[k] of the patient, then all are tilted."""
    affine = np.eye(4)
    affine[:3, :3] = tilt(degrees) @ (np.eye(3)[:, order] * signs * SPACING)
    affine[:3, 3] = (-30.0, 12.5, 99.0)
    return affine


def name_of(order: tuple[int, ...], signs: tuple[int, ...], degrees: int) -> str:
    return "".join(("LR", "PA", "IS")[axis][sign > 0] for axis, sign in zip(order, signs, strict=True)) + f"-{degrees}"


AFFINES = {
    name_of(order, signs, degrees): affine_of(order, signs, degrees)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
    for degrees in (0, 17)
}
"""All 48 axis orientations, and each of them oblique."""


def canonical(affine: np.ndarray) -> nib.Nifti1Image:
    """What nibabel makes of the file: the reference."""
    return nib.as_closest_canonical(nib.Nifti1Image(volume(), affine))


def check_scan(values: np.ndarray, found: np.ndarray, affine: np.ndarray) -> None:
    """Voxels (z, y, x) at the affine `found` are those of a file with this affine."""
    expected = canonical(affine)
    np.testing.assert_array_equal(values, expected.get_fdata().transpose(2, 1, 0))
    np.testing.assert_allclose(found, expected.affine, atol=TOLERANCE_MM)
    world = d3.voxel_to_world(found, np.argwhere(values == BRIGHT))
    np.testing.assert_allclose(world, [(affine @ [*LANDMARK, 1])[:3]], atol=TOLERANCE_MM)


def write_itk(path: Path, affine: np.ndarray) -> None:
    lps = LPS @ affine
    image = sitk.GetImageFromArray(volume().transpose())
    image.SetSpacing(SPACING)
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / SPACING).ravel().tolist())
    sitk.WriteImage(image, str(path))


def write_series(folder: Path, affine: np.ndarray) -> None:
    """Write a volume as DICOM slices, numbered and named against their order in space."""
    folder.mkdir()
    lps = LPS @ affine
    row, column = (lps[:3, k] / SPACING[k] for k in (0, 1))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z in range(SHAPE[2]):
        image = sitk.GetImageFromArray(volume()[:, :, z].transpose()[None])
        image.SetSpacing((*SPACING[:2], 1.0))
        tags = {
            "0008|0060": "CT",
            "0020|000d": "1.2",
            "0020|000e": "1.2.3",
            "0020|0032": "\\".join(f"{v:.8f}" for v in lps[:3, 3] + z * lps[:3, 2]),
            "0020|0037": "\\".join(f"{v:.8f}" for v in (*row, *column)),
            "0020|0013": str(100 - z),
            "0008|0018": f"1.2.3.{100 - z}",
        }
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{100 - z}.dcm"))
        writer.Execute(image)


FILES = {f"{name}.nii.gz": affine for name, affine in AFFINES.items()}
FILES |= {
    f"itk-{name}{('.nrrd', '.mha')[k % 2]}": AFFINES[name] for k, name in enumerate(list(AFFINES)[1::2])
}  # oblique
FILES |= {f"dicom-{name}": AFFINES[name] for name in list(AFFINES)[1::6]}  # every third, oblique


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("orientations") / "scans"
    folder.mkdir()
    for name, affine in FILES.items():
        if name.endswith(".nii.gz"):
            nib.save(nib.Nifti1Image(volume(), affine), folder / name)
        elif name.startswith("itk"):
            write_itk(folder / name, affine)
        else:
            write_series(folder / name, affine)
    return folder


@pytest.fixture(scope="module")
def store(scans: Path) -> d3.Store:
    report = d3.prepare_many(d3.read_manifest(scans), scans.parent / "store", AS_READ, workers=0)
    assert len(report.done) == len(FILES)
    return d3.Store.open(scans.parent / "store")


def test_there_are_48_orientations() -> None:
    turned = {tuple(np.rint(a[:3, :3] / SPACING).ravel()) for name, a in AFFINES.items() if name.endswith("-0")}
    assert len(turned) == 48
    assert len(AFFINES) == 96


@pytest.mark.parametrize("name", FILES)
def test_from_the_file_to_the_store_and_back(scans: Path, store: d3.Store, name: str) -> None:
    affine = FILES[name]
    scan = d3.read_scan(scans / name)
    check_scan(scan.values[0], scan.attrs["affine"], affine)
    prepared, record = d3.prepare_scan(scan, AS_READ)
    check_scan(prepared.values[0], prepared.attrs["affine"], affine)
    assert record["source_shape_zyx"] == list(SHAPE[::-1])
    if not name.startswith("dicom"):  # a series has no order of its slices but that in space
        np.testing.assert_allclose(record["source_affine"], affine, atol=TOLERANCE_MM)
    case = store[scan.attrs["case_id"]]
    check_scan(case.to_xarray().values[0], case.affine, affine)
    case.export_nifti(scans.parent / "out.nii")
    exported = nib.load(scans.parent / "out.nii")
    check_scan(exported.get_fdata().transpose(2, 1, 0), exported.affine, affine)


@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior", "left-anterior-superior"])
def test_nrrd_spaces(tmp_path: Path, space: str) -> None:
    flip = np.array([-1 if "left" in space else 1, -1 if "posterior" in space else 1, 1])
    affine = affine_of((0, 1, 2), (1, 1, 1), 17)
    columns = " ".join(f"({','.join(map(str, flip * column))})" for column in affine[:3, :3].T)
    header = f"NRRD0004\ntype: short\ndimension: 3\nspace: {space}\nsizes: 5 6 7\nspace directions: {columns}\n"
    header += f"endian: little\nencoding: raw\nspace origin: ({','.join(map(str, flip * affine[:3, 3]))})\n\n"
    (tmp_path / "a.nrrd").write_bytes(header.encode() + volume().tobytes("F"))
    scan = d3.read_scan(tmp_path / "a.nrrd")
    check_scan(scan.values[0], scan.attrs["affine"], affine)


def test_tilted_gantry_is_seen(tmp_path: Path) -> None:
    affine = affine_of((0, 1, 2), (1, 1, 1), 0)
    affine[1, 2] = 0.3  # each slice lies 0.3 mm further to the front
    write_series(tmp_path / "series", affine)
    with pytest.raises(d3.ScanError, match=r"affine is sheared: cosine 0\.119"):
        d3.read_scan(tmp_path / "series")
