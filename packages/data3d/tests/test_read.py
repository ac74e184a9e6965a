"""Reading: every format gives the agreed form; places are tested in test_orientation, faults in test_hostile."""

import tracemalloc
from collections.abc import Callable, Sequence
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


def test_every_slice_of_a_dicom_series_has_its_own_slope(tmp_path: Path, dicom_series: Callable[..., None]) -> None:
    slopes = [1.0, 0.5, 99.0]  # as in PET
    dicom_series(tmp_path / "series", [0.0, 1.0, 2.0], slopes=slopes)
    scan = d3.read_scan(tmp_path / "series").values[0, :, ::-1, ::-1]  # RAS turned rows and columns
    for number, slope in enumerate(slopes):
        np.testing.assert_allclose(scan[number, 0], (number + np.arange(5) * 100) * slope, rtol=1e-6)


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


def test_dicom_without_a_pixel_spacing_is_refused(tmp_path: Path, dicom_series: Callable[..., None]) -> None:
    dicom_series(tmp_path / "series", [0, 1])
    for path in (tmp_path / "series").iterdir():
        content = path.read_bytes()
        assert content.count(b"\x28\x00\x30\x00") == 1
        path.write_bytes(content.replace(b"\x28\x00\x30\x00", b"\x28\x00\x32\x00"))  # a tag that nobody knows
    with pytest.raises(d3.ScanError, match=r"1.2.3-0.dcm: no Pixel Spacing, \(0028,0030\)"):
        d3.read_scan(tmp_path / "series")


def write_frames(folder: Path, *, unknown: Sequence[bytes] = ()) -> None:
    """Write a multi-frame file whose elements `unknown` are of other numbers."""
    folder.mkdir()
    image = sitk.GetImageFromArray(volume().transpose().astype(np.uint8))
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((4, 5, 6))
    sitk.WriteImage(image, str(folder / "frames.dcm"))
    content = (folder / "frames.dcm").read_bytes()
    for tag in unknown:
        assert tag in content
        content = content.replace(tag, tag[:2] + bytes([tag[2] | 1]) + tag[3:])
    (folder / "frames.dcm").write_bytes(content)


def test_frames_in_one_dicom_file(tmp_path: Path) -> None:
    write_frames(tmp_path / "frames")
    scan = d3.read_scan(tmp_path / "frames")
    assert scan.attrs["spacing_zyx_mm"] == pytest.approx((2.5, 0.8, 0.7))
    np.testing.assert_array_equal(np.sort(scan.values, axis=None), np.sort(volume().astype(np.uint8), axis=None))
    assert d3.read_manifest(tmp_path / "frames").sources[0].modality is None  # OT, "other", says nothing


@pytest.mark.parametrize(
    ("unknown", "words"),
    [
        ([b"\x28\x00\x30\x00"], "reads as voxels of 1 x 1 x 1 mm, which"),
        ([b"\x20\x00\x32\x00", b"\x20\x00\x37\x00"], r"a first voxel at \(0, 0, 0\) with axes along"),
    ],
    ids=["spacing", "place"],
)
def test_frames_of_a_size_or_place_that_the_file_does_not_state(
    tmp_path: Path, unknown: list[bytes], words: str
) -> None:
    write_frames(tmp_path / "frames", unknown=unknown)
    with pytest.raises(d3.ScanError, match=rf"frames.dcm: a multi-frame DICOM file.*{words}.* convert it to NIfTI"):
        d3.read_scan(tmp_path / "frames")


def test_single_dicom_slice_is_no_volume_with_known_gap(tmp_path: Path, dicom_series: Callable[..., None]) -> None:
    dicom_series(tmp_path / "one", [0])
    with pytest.raises(d3.ScanError, match="one slice"):
        d3.read_scan(tmp_path / "one")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint8])
def test_frames_of_a_4d_file(tmp_path: Path, suffix: str, dtype: type) -> None:
    frames = np.random.default_rng(0).integers(0, 200, (*SHAPE, 9)).astype(dtype)
    image = nib.Nifti1Image(frames, np.diag([-2, 3, 4, 1]))
    image.header.set_slope_inter(0.5, -3.0)
    nib.save(image, tmp_path / f"a{suffix}")
    canonical = nib.as_closest_canonical(nib.load(tmp_path / f"a{suffix}"))
    expected = canonical.get_fdata().transpose(3, 2, 1, 0)
    for frame in (0, 4, 8):
        scan = d3.read_scan(tmp_path / f"a{suffix}", frame=frame)
        np.testing.assert_allclose(scan.values[0], expected[frame], rtol=1e-6)
        np.testing.assert_allclose(scan.attrs["affine"], canonical.affine)
        assert scan.attrs["source_shape_zyx"] == SHAPE[::-1]
    mean = d3.read_scan(tmp_path / f"a{suffix}", frame="mean")
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean.values[0], expected.mean(axis=0), rtol=1e-6)
    for frame in (9, -1):
        with pytest.raises(d3.ScanError, match=f"no frame {frame}: the file has 9"):
            d3.read_scan(tmp_path / f"a{suffix}", frame=frame)


def test_mean_of_many_frames_takes_the_memory_of_few(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((64, 64, 64, 60), np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    tracemalloc.start()
    scan = d3.read_scan(tmp_path / "a.nii.gz", frame="mean")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (scan.values == 1).all()
    assert peak < 12 * scan.nbytes  # all frames as they are stored: 30 times


@pytest.mark.parametrize("name", ["a.nii", "a.nrrd"])
def test_a_file_without_a_time_axis_has_one_frame(tmp_path: Path, name: str) -> None:
    save(tmp_path / "a.nii", volume()[..., None], np.eye(4))  # a trailing axis of one is none
    sitk.WriteImage(sitk.GetImageFromArray(volume()), str(tmp_path / "a.nrrd"))
    for frame in (None, 0, "mean"):
        assert d3.read_scan(tmp_path / name, frame=frame).size == volume().size
    with pytest.raises(d3.ScanError, match="no frame 1: the file has 1"):
        d3.read_scan(tmp_path / name, frame=1)


def test_frame_of_a_case(tmp_path: Path) -> None:
    frames = np.stack([volume(), volume() + 2], axis=3)
    for name in ("a.nii", "b.nii"):
        save(tmp_path / name, frames, np.eye(4))
    paths = (tmp_path / "a.nii", tmp_path / "b.nii")
    both = d3.read_source(d3.CaseSource("x", paths, frame="mean"))
    np.testing.assert_array_equal(both.values, np.stack([volume().T + 1.0] * 2))
    with pytest.raises(d3.ScanError, match="a fourth axis of 2 frames"):
        d3.read_source(d3.CaseSource("x", paths))


def test_big_endian_and_second_version(tmp_path: Path) -> None:
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        header = kind.header_class(endianness=">")
        nib.save(kind(volume(), np.diag([-1, 2, 3, 1]), header), tmp_path / "a.nii")
        assert (tmp_path / "a.nii").read_bytes()[:2] == b"\0\0"  # sizeof_hdr, high bytes first
        scan = d3.read_scan(tmp_path / "a.nii")
        np.testing.assert_array_equal(scan.values[0], volume().T[..., ::-1])


def test_extensions_of_the_header_are_skipped(tmp_path: Path) -> None:
    image = nib.Nifti1Image(volume(), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 5000))
    for name in ("a.nii", "a.nii.gz"):
        nib.save(image, tmp_path / name)
        np.testing.assert_array_equal(d3.read_scan(tmp_path / name).values[0], volume().T)


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
