"""Reading: every orientation, every format, and everything that can be wrong with a file."""

import gzip
import itertools
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

import girih_data3d as d3

SHAPE = (5, 6, 7)  # (x, y, z) of the file
LANDMARK = (3, 1, 4)


def volume() -> np.ndarray:
    array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    array[LANDMARK] = 9000
    return array


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def rotation(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


@pytest.mark.parametrize("oblique", [0.0, 17.0])
def test_landmark_keeps_its_place_in_all_48_orientations(tmp_path: Path, oblique: float) -> None:
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = rotation(oblique) @ (np.eye(3)[:, order] * signs * (0.7, 1.1, 2.5))
            affine[:3, 3] = (-30.0, 12.5, 99.0)
            scan = d3.read_scan(save(tmp_path / "scan.nii", volume(), affine))
            found = np.argwhere(scan.values[0] == 9000)
            world = d3.voxel_to_world(scan.attrs["affine"], found)
            np.testing.assert_allclose(world[0], (affine @ [*LANDMARK, 1])[:3], atol=1e-3)
            axes = scan.attrs["affine"][:3, :3]
            assert (np.argmax(np.abs(axes), axis=0) == (0, 1, 2)).all()
            assert (np.diag(axes) > 0).all()
            assert scan.attrs["spacing_zyx_mm"] == pytest.approx(np.linalg.norm(axes, axis=0)[::-1])
            assert scan.attrs["source_shape_zyx"] == (7, 6, 5)
            np.testing.assert_allclose(scan.attrs["source_affine"], affine, atol=1e-4)


def test_scan_has_the_agreed_form(tmp_path: Path) -> None:
    scan = d3.read_scan(save(tmp_path / "a.b.nii.gz", volume(), np.diag([2, 3, 4, 1])), modality="CT")
    assert scan.dims == ("channel", "z", "y", "x")
    assert scan.dtype == np.float32
    assert scan.shape == (1, 7, 6, 5)
    assert scan.attrs["case_id"] == "a.b"
    assert scan.attrs["modality"] == "CT"
    assert scan.attrs["spacing_zyx_mm"] == (4.0, 3.0, 2.0)
    assert scan.z.values.tolist() == [0, 4, 8, 12, 16, 20, 24]


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(volume(), np.eye(4))
    image.header.set_slope_inter(2.0, -10.0)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_array_equal(d3.read_scan(tmp_path / "a.nii").values[0], volume().T * 2.0 - 10.0)


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
def test_itk_formats_agree_with_nifti(tmp_path: Path, name: str) -> None:
    affine = np.eye(4)
    affine[:3, :3] = rotation(10) * (0.7, 1.1, 2.5)
    affine[:3, 3] = (4, 5, 6)
    save(tmp_path / "a.nii", volume(), affine)
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nii")), str(tmp_path / name))
    ours, theirs = d3.read_scan(tmp_path / name), d3.read_scan(tmp_path / "a.nii")
    np.testing.assert_array_equal(ours.values, theirs.values)
    np.testing.assert_allclose(ours.attrs["affine"], theirs.attrs["affine"], atol=1e-4)
    np.testing.assert_allclose(ours.attrs["source_affine"], theirs.attrs["source_affine"], atol=1e-4)


def test_dicom_series(tmp_path: Path, dicom_series: Callable[..., None]) -> None:
    dicom_series(tmp_path / "series", [7.5, 5.0, 10.0])  # files are not in slice order
    scan = d3.read_scan(tmp_path / "series")
    assert scan.shape == (1, 3, 4, 5)
    assert scan.attrs["spacing_zyx_mm"] == pytest.approx((2.5, 0.9, 0.8))
    assert scan.attrs["case_id"] == "series"
    # patient left is +x in LPS, so that RAS turns columns and rows round: x = 10 mm is column 0
    where = d3.world_to_voxel(scan.attrs["affine"], np.array([[10.0, 20.0, 7.5]]))
    np.testing.assert_allclose(where, [[1, 3, 4]], atol=1e-4)
    assert scan.values[0, 1, 3, 4] == 0
    assert scan.values[0, 2, 3, 3] == 102


@pytest.mark.parametrize(
    ("positions", "message"), [([0, 1, 3, 4], "uneven"), ([0, 1, 1, 2], "uneven"), ([0, 0.5, 1, 2, 3, 4], "uneven")]
)
def test_dicom_with_uneven_gaps_is_refused(
    tmp_path: Path, dicom_series: Callable[..., None], positions: list[float], message: str
) -> None:
    dicom_series(tmp_path / "series", positions)
    with pytest.raises(d3.ScanError, match=message):
        d3.read_scan(tmp_path / "series")


def test_dicom_with_two_series_is_refused(tmp_path: Path, dicom_series: Callable[..., None]) -> None:
    dicom_series(tmp_path / "both", [0, 1], series="1.2.3")
    dicom_series(tmp_path / "both", [0, 1], series="1.2.4")
    with pytest.raises(d3.ScanError, match=r"both: 2 DICOM series.*1\.2\.3"):
        d3.read_scan(tmp_path / "both")


def test_single_dicom_slice_is_no_volume_with_known_gap(tmp_path: Path, dicom_series: Callable[..., None]) -> None:
    dicom_series(tmp_path / "one", [0])
    with pytest.raises(d3.ScanError, match="one slice"):
        d3.read_scan(tmp_path / "one")


def header_with(path: Path, offset: int, value: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(value)] = value
    path.write_bytes(content)


def test_hostile_files(tmp_path: Path) -> None:
    good = save(tmp_path / "good.nii.gz", np.random.default_rng(0).random((20, 20, 20)), np.eye(4)).read_bytes()

    def check(name: str, message: str) -> None:
        with pytest.raises(d3.ScanError, match=message) as caught:
            d3.read_scan(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)

    for cut in (3, len(good) // 2, len(good) - 4):
        (tmp_path / "cut.nii.gz").write_bytes(good[:cut])
        check("cut.nii.gz", "cut.nii.gz")
    (tmp_path / "trailer.nii.gz").write_bytes(good[:-8] + b"\0" * 8)
    check("trailer.nii.gz", "CRC")
    (tmp_path / "cut.nii").write_bytes(gzip.decompress(good)[:-1])
    check("cut.nii", r"truncated: 64351 bytes on disk, .* 64352 bytes")
    check("none.nii", "no such file")
    (tmp_path / "text.txt").write_text("hello")
    check("text.txt", "unknown format")
    (tmp_path / "text.nii").write_text("hello")
    check("text.nii", "not a readable NIfTI")
    (tmp_path / "text.nrrd").write_text("hello")
    check("text.nrrd", "not readable")
    (tmp_path / "empty").mkdir()
    check("empty", "no DICOM series")
    save(tmp_path / "4d.nii", np.zeros((3, 3, 3, 2), np.int16), np.eye(4))
    check("4d.nii", r"a fourth axis of 2 frames; wanted frame=\"mean\"")
    save(tmp_path / "2d.nii", np.zeros((3, 3), np.int16), np.eye(4))
    check("2d.nii", "2 axes")
    broken = np.ones((3, 3, 3))
    broken[0, 0] = (np.nan, np.inf, -np.inf)
    save(tmp_path / "nan.nii", broken, np.eye(4))
    check("nan.nii", "3 of 27 voxels are NaN or infinite")
    save(tmp_path / "rgb.nii", np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")]), np.eye(4))
    check("rgb.nii", "not a plain number")
    save(tmp_path / "complex.nii", np.zeros((3, 3, 3), np.complex64), np.eye(4))
    check("complex.nii", "complex64")
    save(tmp_path / "thick.nii", volume(), np.diag([1, 1, 80, 1]))
    check("thick.nii", r"\[1.0, 1.0, 80.0\] mm, wanted above 0 and below 50")
    save(tmp_path / "trailing.nii", volume()[..., None], np.eye(4))
    assert d3.read_scan(tmp_path / "trailing.nii").shape == (1, 7, 6, 5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], "wanted above 0"),
        ([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]], "singular"),
        ([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], "sheared: cosine 0.196"),
        ([[np.nan, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], "non-finite"),
    ],
)
def test_impossible_affines(tmp_path: Path, rows: list[list[float]], message: str) -> None:
    save(tmp_path / "a.nii", volume(), np.eye(4))
    header_with(tmp_path / "a.nii", 280, np.array(rows, "<f4").tobytes())  # srow_x, srow_y, srow_z
    with pytest.raises(d3.ScanError, match=message):
        d3.read_scan(tmp_path / "a.nii")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_absurd_header_is_refused_before_allocation(tmp_path: Path, suffix: str) -> None:
    save(tmp_path / "a.nii", volume(), np.eye(4))
    for shape, message in [((30000, 30000, 30000), "wanted at most"), ((1000, 1000, 1000), "truncated")]:
        header_with(tmp_path / "a.nii", 42, np.array(shape, "<i2").tobytes())
        content = (tmp_path / "a.nii").read_bytes()
        path = tmp_path / f"absurd{suffix}"
        path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
        with pytest.raises(d3.ScanError, match=message):
            d3.read_scan(path)


def test_absurd_nrrd_header_is_refused(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(volume()), str(tmp_path / "a.nrrd"))
    content = (tmp_path / "a.nrrd").read_bytes().replace(b"sizes: 7 6 5", b"sizes: 70000 60000 50000")
    (tmp_path / "a.nrrd").write_bytes(content)
    with pytest.raises(d3.ScanError, match="wanted at most"):
        d3.read_scan(tmp_path / "a.nrrd")


def test_labels_share_the_grid_of_the_scan(tmp_path: Path) -> None:
    scan = d3.read_scan(save(tmp_path / "scan.nii", volume(), np.diag([-1, 1, 2, 1])))
    labels = np.zeros(SHAPE, np.uint8)
    labels[LANDMARK] = 2
    found = d3.read_labels(save(tmp_path / "same.nii", labels, np.diag([-1, 1, 2, 1])), like=scan)
    assert found.dtype == np.int32
    assert found.dims == ("z", "y", "x")
    assert scan.values[0][found.values == 2].tolist() == [9000]
    turned = np.diag([1.0, 1, 2, 1])  # the same grid written with x the other way round
    turned[0, 3] = -4
    other = d3.read_labels(save(tmp_path / "turned.nii", labels[::-1].astype(np.float64), turned), like=scan)
    np.testing.assert_array_equal(other, found)


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    scan = d3.read_scan(save(tmp_path / "scan.nii", volume(), np.eye(4)))
    labels = np.zeros(SHAPE, np.float32)
    for array, affine, message in [
        (labels[1:], np.eye(4), r"shape \(z, y, x\) \(7, 6, 4\), the scan's is \(7, 6, 5\)"),
        (labels, np.diag([1, 1, 1.01, 1]), "canonical affine"),
        (labels - 1, np.eye(4), "labels from -1"),
        (labels + 0.5, np.eye(4), "210 labels are not whole numbers, for example 0.5"),
        (labels + 3e9, np.eye(4), "wanted 0 to 2147483647"),
    ]:
        with pytest.raises(d3.ScanError, match=message):
            d3.read_labels(save(tmp_path / "bad.nii", array, affine), like=scan)
