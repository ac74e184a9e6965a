"""What a case source says in place of its files: voxel size, slope and intercept; arrays without a header."""

import gzip
import hashlib
import io
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st

import girih_data3d as d3
from girih_data3d.scan import channel_sha256

nib: Any = nibabel
OBLIQUE = np.array([[-0.79, 0.12, 0, 40], [0.12, 0.79, 0, -30], [0, 0, -2.0, 7], [0, 0, 0, 1]])
"""x runs to the left and is turned by 8.6 degrees, slices run downwards; 0.8 x 0.8 x 2 mm."""
VALUES = np.arange(60, dtype=np.int16).reshape(3, 4, 5) - 7


def write_scaled(
    path: Path, slope: float, intercept: float, affine: np.ndarray = OBLIQUE, values: np.ndarray = VALUES
) -> Path:
    """Write values as stored, with a slope and an intercept in the header."""
    image = nib.Nifti1Image(np.ascontiguousarray(values.transpose(2, 1, 0)), affine)
    content = bytearray(image.to_bytes())
    content[112:120] = np.array([slope, intercept], "<f4").tobytes()
    path.write_bytes(gzip.compress(bytes(content)) if path.suffix == ".gz" else bytes(content))
    return path


def as_in_the_file(scan: Any) -> np.ndarray:
    """Undo the turn to canonical axes of a scan that lies as OBLIQUE says."""
    return scan.values[0][::-1, :, ::-1]


@pytest.mark.parametrize("header", [(1, 0), (2, 5), (0, 0), (1, -1024)])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_rescale_takes_the_place_of_the_header_s(tmp_path: Path, header: tuple[float, float], name: str) -> None:
    path = write_scaled(tmp_path / name, *header)
    own = d3.read_source(d3.CaseSource("a", (path,)))
    slope, intercept = header if header[0] else (1, 0)
    np.testing.assert_array_equal(as_in_the_file(own), VALUES * slope + intercept)
    other = d3.read_source(d3.CaseSource("a", (path,), rescale=(0.5, -3.25)))
    np.testing.assert_array_equal(as_in_the_file(other), VALUES * 0.5 - 3.25)
    plain = d3.read_source(d3.CaseSource("a", (path,), rescale=(1, 0)))
    np.testing.assert_array_equal(as_in_the_file(plain), VALUES)


def test_rescale_of_every_frame_and_channel(tmp_path: Path) -> None:
    frames = np.stack([VALUES, VALUES * 2, VALUES + 4], axis=-1).transpose(2, 1, 0, 3)
    image = nib.Nifti1Image(np.ascontiguousarray(frames), OBLIQUE)
    nib.save(image, tmp_path / "b.nii.gz")
    path = write_scaled(tmp_path / "a.nii", 3, 3)
    source = d3.CaseSource("a", (tmp_path / "b.nii.gz", path), frame="mean", rescale=(2, 1))
    scan = d3.read_source(source)
    np.testing.assert_allclose(scan.values[0][::-1, :, ::-1], (VALUES * 4 + 4) / 3 * 2 + 1, rtol=1e-6)
    np.testing.assert_array_equal(scan.values[1][::-1, :, ::-1], VALUES * 2 + 1)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_rescale_and_spacing_of_other_formats(tmp_path: Path, suffix: str) -> None:
    d3.write_nifti(VALUES, tmp_path / "a.nii", affine=OBLIQUE)
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nii")), str(tmp_path / f"a{suffix}"))
    given: dict[str, Any] = {"rescale": (2, -1), "spacing_zyx_mm": (1.25, 0.5, 0.7)}
    one, other = (d3.read_source(d3.CaseSource("a", (tmp_path / name,), **given)) for name in ("a.nii", f"a{suffix}"))
    np.testing.assert_array_equal(as_in_the_file(other), VALUES * 2 - 1)
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_allclose(one.attrs["affine"], other.attrs["affine"], atol=1e-6)


def test_spacing_keeps_directions_and_the_first_voxel(tmp_path: Path) -> None:
    path = write_scaled(tmp_path / "a.nii", 1, 0)
    scan = d3.read_source(d3.CaseSource("a", (path,), spacing_zyx_mm=(1.25, 0.5, 0.7)))
    found = scan.attrs["source_affine"]
    lengths = np.linalg.norm(OBLIQUE[:3, :3], axis=0)
    np.testing.assert_allclose(np.linalg.norm(found[:3, :3], axis=0), (0.7, 0.5, 1.25), rtol=1e-6)
    np.testing.assert_allclose(found[:3, :3] / (0.7, 0.5, 1.25), OBLIQUE[:3, :3] / lengths, atol=1e-6)
    np.testing.assert_allclose(found[:3, 3], OBLIQUE[:3, 3], atol=1e-6)
    np.testing.assert_allclose(scan.attrs["spacing_zyx_mm"], (1.25, 0.5, 0.7), rtol=1e-6)
    np.testing.assert_allclose(scan.coords["z"], [0, 1.25, 2.5], rtol=1e-6)
    # voxel (2, 1, 4) of the file's array, by hand along the header's directions
    place = OBLIQUE[:3, 3] + (OBLIQUE[:3, :3] / lengths * (0.7, 0.5, 1.25)) @ (4, 1, 2)
    index = d3.world_to_voxel(scan.attrs["affine"], place[None])[0]
    np.testing.assert_allclose(index, (0, 1, 0), atol=1e-5)  # x and z are turned round
    assert scan.values[0][0, 1, 0] == VALUES[2, 1, 4]


@pytest.mark.parametrize("corrected", [False, True])
def test_labels_may_have_the_header_s_voxel_size_or_the_right_one(tmp_path: Path, corrected: bool) -> None:
    spacing = (1.25, 0.5, 0.7)
    affine = OBLIQUE.copy()
    if corrected:
        affine[:3, :3] *= np.array(spacing[::-1]) / np.linalg.norm(OBLIQUE[:3, :3], axis=0)
    labels = np.zeros(VALUES.shape, np.uint8)
    labels[1:3, 1:3, 2:5] = 1
    d3.write_nifti(labels, tmp_path / "l.nii", affine=affine)
    path = write_scaled(tmp_path / "a.nii", 1, 0)
    scan = d3.read_source(d3.CaseSource("a", (path,), spacing_zyx_mm=spacing))
    np.testing.assert_array_equal(d3.read_labels(tmp_path / "l.nii", like=scan)[::-1, :, ::-1], labels)
    d3.write_nifti(labels, tmp_path / "l.nii", affine=affine @ np.diag([1.1, 1, 1, 1]))
    with pytest.raises(d3.ScanError, match="canonical affine"):
        d3.read_labels(tmp_path / "l.nii", like=scan)


def test_a_broken_voxel_size_cannot_be_mended(tmp_path: Path) -> None:
    path = write_scaled(tmp_path / "a.nii", 1, 0)
    content = bytearray(path.read_bytes())
    content[280:328] = np.zeros(12, "<f4").tobytes()  # the rows of the sform
    path.write_bytes(bytes(content))
    with pytest.raises(d3.ScanError, match=r"a\.nii: voxel size"):
        d3.read_scan(path, spacing_zyx_mm=(1, 1, 1))
    with pytest.raises(d3.ScanError, match=r"a\.nii: voxel size"):
        d3.read_scan(write_scaled(path, 1, 0), spacing_zyx_mm=(80, 1, 1))


def test_a_dicom_series_keeps_its_slopes(tmp_path: Path, dicom_series: Callable[..., None]) -> None:
    dicom_series(tmp_path / "s", [0, 2, 4])
    with pytest.raises(d3.ScanError, match="a DICOM series has a rescale slope and intercept per slice"):
        d3.read_source(d3.CaseSource("a", (tmp_path / "s",), rescale=(1, 0)))
    scan = d3.read_source(d3.CaseSource("a", (tmp_path / "s",), spacing_zyx_mm=(3, 1, 1)))
    np.testing.assert_allclose(scan.attrs["spacing_zyx_mm"], (3, 1, 1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rescale": (0, 1)}, r"rescale is \(0, 1\), wanted a finite slope that is not 0"),
        ({"rescale": (float("nan"), 1)}, "rescale is"),
        ({"spacing_zyx_mm": (1, -1, 1)}, r"spacing_zyx_mm is \(1, -1, 1\), wanted three lengths above 0"),
        ({"spacing_zyx_mm": (1, float("inf"), 1)}, "wanted three lengths above 0 and below 50 mm"),
        ({"spacing_zyx_mm": (1, 1, 10**400)}, "wanted three lengths"),
        ({"rescale": (1, -(10**400))}, "wanted a finite slope"),
    ],
)
def test_numbers_out_of_range(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        d3.CaseSource("a", (Path("a.nii"),), **given)


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "<f4", "<f8", ">f2", "?"])
@pytest.mark.parametrize("lead", [(), (1,)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_without_a_header(tmp_path: Path, dtype: str, lead: tuple[int, ...], order: Any) -> None:
    values = (np.arange(60) % 7).reshape(*lead, 3, 4, 5).astype(dtype)
    np.save(tmp_path / "a.b.npy", np.asarray(values, order=order))
    scan = d3.read_scan(tmp_path / "a.b.npy", spacing_zyx_mm=(2, 0.5, 0.25))
    # inferior to superior, anterior to posterior, right to left: RAS turns the last two round
    np.testing.assert_array_equal(scan.values[0], values.reshape(3, 4, 5)[:, ::-1, ::-1].astype(np.float32))
    assert scan.attrs["case_id"] == "a.b"
    assert scan.attrs["source_shape_zyx"] == (3, 4, 5)
    np.testing.assert_array_equal(scan.attrs["source_affine"], np.diag([-0.25, -0.5, 2, 1]))
    np.testing.assert_allclose(scan.attrs["spacing_zyx_mm"], (2, 0.5, 0.25))


def test_an_array_as_a_case(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(24 * 20 * 16, dtype=np.uint8).reshape(1, 24, 20, 16))
    labels = np.zeros((24, 20, 16), np.uint8)
    labels[2:5, 3:9, 4:8] = 1
    np.save(tmp_path / "l.npy", labels)
    boxes = (d3.ObjectLabel(0, box_zyx=(2, 3, 4, 5, 9, 8)),)
    labelled: dict[str, Any] = {"boxes": {"objects": boxes}, "masks": {"instances": (tmp_path / "l.npy",)}}
    for name, more in labelled.items():
        source = d3.CaseSource(name, (tmp_path / "a.npy",), spacing_zyx_mm=(1, 1, 1), rescale=(2, -5), **more)
        d3.prepare_many(d3.Dataset("x", ("c",), (source,)), tmp_path / "out", d3.PrepareSpec(), workers=0)
        case = d3.Store.open(tmp_path / "out")[name]
        assert case.boxes.tolist() == [[2, 11, 8, 5, 17, 12]]
        assert case.truth is not None
        assert case.truth["boxes"] == [[2, 3, 4, 5, 9, 8]]
        assert case.source["spacing_zyx_mm"] == [1, 1, 1]


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def npz(array: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, array)
    return stream.getvalue()


def headed(shape: str) -> bytes:
    """Return VALUES behind a header that states another shape."""
    header = f"{{'descr': '<i2', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00v\x00" + header.encode() + VALUES.tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.array([{"a": 1}], object)), "a pickle is never loaded"),
        (pickle.dumps(VALUES), "not an array in numpy's format"),
        (npz(VALUES), "not an array in numpy's format"),
        (b"", "not an array in numpy's format"),
        (npy(VALUES)[:-1], "truncated"),
        (npy(VALUES)[:9], "truncated"),
        (npy(VALUES)[:60], "truncated"),
        (npy(VALUES.astype(complex)), "voxels of type complex128, wanted plain numbers"),
        (npy(np.array(["a"])), "wanted plain numbers"),
        (npy(np.zeros((2, 3, 4, 5))), r"shape \(2, 3, 4, 5\), wanted \(z, y, x\) or \(1, z, y, x\)"),
        (npy(np.zeros((4, 5))), r"shape \(4, 5\), wanted"),
        (npy(np.zeros((1, 1, 1, 4, 5))), "wanted"),
        (npy(np.zeros((3, 0, 5))), "has an empty axis"),
        (npy(np.full((3, 4, 5), np.nan)), "60 of 60 voxels are NaN or infinite"),
        (npy(VALUES).replace(b"(3, 4, 5)", b"(3, 4, 5"), "not an array in numpy's format"),
        (npy(VALUES).replace(b"'fortran_order'", b"0              "), "not an array in numpy's format"),
        (headed("(-3, 4, 5)"), "not an array in numpy's format"),
        (headed("(9999, 9999, 9999)"), "truncated"),
        (headed("(300, 400, 500)"), "truncated"),
        (headed("3"), "not an array in numpy's format"),
        (npy(VALUES).replace(b"NUMPY\x01", b"NUMPY\x07"), r"not an array in numpy's format .* \(7, 0\)"),
    ],
)
def test_arrays_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(d3.ScanError, match=rf"a\.npy: .*{message}"):
        d3.read_scan(tmp_path / "a.npy", spacing_zyx_mm=(1, 1, 1))


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(6, 127), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_damage_of_the_header_is_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(npy(VALUES))
    for place, value in changes:
        content[place] = value
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    path.write_bytes(bytes(content))
    with suppress(d3.ScanError):  # any other error is a failure
        d3.read_scan(path, spacing_zyx_mm=(1, 1, 1))


def test_an_array_needs_a_voxel_size(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", VALUES)
    with pytest.raises(d3.ScanError, match=r"a\.npy: does not say how large a voxel is, wanted spacing_zyx_mm"):
        d3.read_scan(tmp_path / "a.npy")
    with pytest.raises(d3.ScanError, match="no frame 3"):
        d3.read_scan(tmp_path / "a.npy", frame=3, spacing_zyx_mm=(1, 1, 1))
    with pytest.raises(d3.ManifestError, match=r"no dataset\.json, no scan file"):
        d3.read_manifest(tmp_path)


def test_a_case_source_holds_plain_numbers_and_a_bare_uid() -> None:
    numbers = (np.float64(0.5), 2, 3)
    source = d3.CaseSource("a", (Path("a.nii"),), spacing_zyx_mm=numbers, rescale=(1, -1024), series_uid=" 1.2.3\0")
    assert (source.spacing_zyx_mm, source.rescale, source.series_uid) == ((0.5, 2.0, 3.0), (1.0, -1024.0), "1.2.3")
    assert {type(n) for n in (*(source.spacing_zyx_mm or ()), *(source.rescale or ()))} == {float}
    assert d3.CaseSource("a", (Path("a.nii"),), series_uid=" ").series_uid is None


def test_ids_and_images_of_case_sources() -> None:
    with pytest.raises(ValueError, match="case_id 'a/b' cannot name a folder"):
        d3.CaseSource("a/b", (Path("a.nii"),))
    with pytest.raises(ValueError, match="case 'a': images is empty"):
        d3.CaseSource("a", ())
    twice = (d3.CaseSource("a", (Path("1.nii"),)), d3.CaseSource("A", (Path("2.nii"),)))
    with pytest.raises(ValueError, match=r"case 'A' is there twice: 1\.nii and 2\.nii"):
        d3.Dataset("x", (), twice)


def hash_of(path: Path, **more: Any) -> str | None:
    (channel,) = d3.read_scan(path, **more).values
    return channel_sha256(channel)


def test_a_scan_is_known_again_whatever_its_file(tmp_path: Path) -> None:
    affine = np.diag([0.8, 0.9, 2.0, 1])
    d3.write_nifti(VALUES, tmp_path / "a.nii", affine=affine)
    wanted = hash_of(tmp_path / "a.nii")
    d3.write_nifti(VALUES.astype(np.float64), tmp_path / "b.nii.gz", affine=affine)
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nii")), str(tmp_path / "c.nrrd"))
    flipped = affine @ np.diag([-1.0, 1, -1, 1])
    flipped[:3, 3] = 3, 4, 5
    d3.write_nifti(VALUES[::-1, :, ::-1], tmp_path / "d.nii", affine=flipped)
    turned = affine[:, [2, 0, 1, 3]]  # the array's axes as (y, x, z)
    d3.write_nifti(VALUES.transpose(1, 2, 0), tmp_path / "e.nii", affine=turned)
    for name in ("b.nii.gz", "c.nrrd", "d.nii", "e.nii"):
        assert hash_of(tmp_path / name) == wanted, name
    np.save(tmp_path / "f.npy", VALUES[:, ::-1, ::-1])
    assert hash_of(tmp_path / "f.npy", spacing_zyx_mm=(9, 1, 1)) == wanted
    assert hash_of(tmp_path / "a.nii", rescale=(0.1, -1024)) == wanted
    for other in (VALUES[:, ::-1], VALUES.reshape(4, 3, 5), VALUES + (VALUES == 3)):
        d3.write_nifti(other, tmp_path / "g.nii", affine=affine)
        assert hash_of(tmp_path / "g.nii") != wanted


def test_the_hash_by_hand() -> None:
    plane = np.array([[0.0, -0.0, 1.5], [2, -1, 3]], np.float32)
    bits = bytes([0b0101_0000, 0b0010_0000, 0b1010_0000, 0b0100_0000])  # along x: = < > <; along y: < > <
    assert channel_sha256(plane[None]) == hashlib.sha256(b"1 2 3\0" + bits).hexdigest()


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 4)])
def test_a_constant_channel_has_no_hash(shape: tuple[int, int, int]) -> None:
    assert channel_sha256(np.full(shape, 7, np.float32)) is None


@pytest.mark.parametrize(("slope", "intercept"), [("1.2210012", "0"), ("2.17313", "-3.3"), ("0.0003", "11.7")])
def test_a_slope_is_rounded_otherwise_in_dicom_and_in_nifti(
    tmp_path: Path, dicom_series: Callable[..., None], slope: str, intercept: str
) -> None:
    stored = np.random.default_rng(0).integers(-2000, 2000, (3, 4, 5)).astype(np.int16)
    dicom_series(tmp_path / "series", [0.0, 2.0, 4.0])
    for number, path in enumerate(sorted((tmp_path / "series").iterdir())):
        slice_ = pydicom.dcmread(path)
        slice_.RescaleSlope, slice_.RescaleIntercept, slice_.PixelData = slope, intercept, stored[number].tobytes()
        slice_.save_as(path)
    affine = np.diag([-0.8, -0.9, 2.0, 1])
    write_scaled(tmp_path / "same.nii.gz", float(slope), float(intercept), affine, stored)
    one, other = (d3.read_scan(tmp_path / name).values for name in ("series", "same.nii.gz"))
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    assert hash_of(tmp_path / "series") == hash_of(tmp_path / "same.nii.gz")
    stored[1] = stored[1, ::-1]
    write_scaled(tmp_path / "other.nii.gz", float(slope), float(intercept), affine, stored)
    assert hash_of(tmp_path / "series") != hash_of(tmp_path / "other.nii.gz")


@given(
    st.integers(0, 99),
    st.sampled_from([2, 300, 65536]),
    st.floats(1e-6, 1e6),
    st.floats(-(2.0**21), 2.0**21).map(round),
)
def test_the_rounding_of_slopes_does_not_count(seed: int, levels: int, slope: float, steps: int) -> None:
    stored = np.random.default_rng(seed).integers(-levels // 2, levels // 2, (3, 9, 9)).astype(np.float64)
    intercept = slope * steps
    text = stored * slope + intercept
    header = stored * np.float64(np.float32(slope)) + np.float64(np.float32(intercept))
    wanted = channel_sha256(stored.astype(np.float32))
    assert channel_sha256(text.astype(np.float32)) == channel_sha256(header.astype(np.float32)) == wanted


def test_each_plane_may_have_its_own_slope() -> None:
    stored = np.random.default_rng(1).integers(0, 999, (4, 9, 9)).astype(np.float32)
    slopes = np.array([1, 0.37, 5, 0.01], np.float32)[:, None, None]
    assert channel_sha256(stored * slopes) == channel_sha256(stored)


def test_every_channel_has_its_hash(tmp_path: Path) -> None:
    for name, values in {"a": VALUES, "b": VALUES**2, "c": np.full_like(VALUES, 3)}.items():
        d3.write_nifti(values, tmp_path / f"{name}.nii", affine=OBLIQUE)
    one = d3.CaseSource("one", (tmp_path / "a.nii", tmp_path / "b.nii"), series_uid="1.2.3", part="train")
    other = d3.CaseSource("other", (tmp_path / "b.nii", tmp_path / "c.nii"), part="val")
    dataset = d3.Dataset("x", (), (one, other))
    d3.prepare_many(dataset, tmp_path / "out", d3.PrepareSpec(target_zyx_mm=(1, 1, 1)), workers=0)
    store = d3.Store.open(tmp_path / "out")
    first, second = store.index.scan_sha256
    assert first is not None
    assert second == first[1:]  # the constant channel is no evidence
    assert first == (hash_of(tmp_path / "a.nii"), hash_of(tmp_path / "b.nii"))
    assert store.index.series_uids == ("1.2.3", None)
    assert store.index.parts == ("train", "val")
    case = store["one"]
    assert (case.series_uid, case.part, case.scan_sha256) == ("1.2.3", "train", list(first))
    assert (store["other"].series_uid, store["other"].notes) == (None, {"objects_clipped": 0, "found": {}})
