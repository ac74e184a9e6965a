"""Writing NIfTI: what is read back equals what was written, and a failure leaves nothing behind."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import girih_data3d as d3

AFFINE = np.array([[1.0, 0, 0, -3], [0, 0.8, -0.6, 4], [0, 0.6, 0.8, 5], [0, 0, 0, 1]])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int32, np.uint8, bool, np.int64, np.float16])
def test_round_trip(tmp_path: Path, suffix: str, dtype: type) -> None:
    array = (np.arange(60).reshape(3, 4, 5) % 2).astype(dtype)
    d3.write_nifti(array, tmp_path / f"a{suffix}", affine=AFFINE)
    scan = d3.read_scan(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(scan.values[0], array)
    np.testing.assert_allclose(scan.attrs["affine"], AFFINE, atol=1e-5)
    header = nib.load(tmp_path / f"a{suffix}").header
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]


def test_scan_carries_its_affine(tmp_path: Path) -> None:
    d3.write_nifti(np.ones((3, 4, 5), np.float32), tmp_path / "a.nii", affine=AFFINE)
    d3.write_nifti(d3.read_scan(tmp_path / "a.nii"), tmp_path / "b.nii.gz")
    np.testing.assert_allclose(d3.read_scan(tmp_path / "b.nii.gz").attrs["affine"], AFFINE, atol=1e-5)


def test_same_content_same_bytes(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        d3.write_nifti(np.ones((3, 4, 5), np.float32), tmp_path / name, affine=AFFINE)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize(
    ("array", "name", "affine", "message"),
    [
        (np.ones((3, 4, 5)), "a.mha", AFFINE, "ends in"),
        (np.ones((3, 4, 5)), "a.nii", None, "no affine"),
        (np.ones((2, 3, 4, 5)), "a.nii", AFFINE, r"\(2, 3, 4, 5\)"),
        (np.full((3, 4, 5), 2**40), "a.nii", AFFINE, "do not fit"),
        (np.ones((3, 4, 5), complex), "a.nii", AFFINE, "complex128"),
    ],
)
def test_refusals_leave_nothing(
    tmp_path: Path, array: np.ndarray, name: str, affine: np.ndarray | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        d3.write_nifti(array, tmp_path / name, affine=affine)
    assert list(tmp_path.iterdir()) == []
