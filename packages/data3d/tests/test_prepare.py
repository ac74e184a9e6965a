"""Preparing: places survive crop and resampling, objects too, and the ground truth is the source file's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import girih_data3d as d3

UNIT = d3.PrepareSpec(normalisation="none", dtype="float32")


def write(folder: Path, array: np.ndarray, name: str, affine: np.ndarray | None = None) -> Path:
    d3.write_nifti(array, folder / name, affine=np.diag([0.8, 1.0, 2.5, 1]) if affine is None else affine)
    return folder / name


def blob() -> np.ndarray:
    """Smooth bump whose centre of mass is known: at (z, y, x) = (6, 14, 13)."""
    index = np.stack(np.meshgrid(np.arange(14), np.arange(30), np.arange(26), indexing="ij"), axis=-1)
    mm = (index - (6, 14, 13)) * (2.5, 1.0, 0.8)
    return np.exp(-(mm**2).sum(axis=-1) / (2 * 2.5**2)).astype(np.float32)


def test_a_place_keeps_its_world_position(tmp_path: Path) -> None:
    scan = d3.read_scan(write(tmp_path, np.where(blob() > 1e-3, blob(), 0), "a.nii"))
    out, prepared = d3.prepare_scan(scan, UNIT)
    assert min(prepared["crop_start_zyx"]) > 0
    assert out.attrs["spacing_zyx_mm"] == pytest.approx((1, 1, 1), rel=0.05)

    def centre(volume: Any) -> np.ndarray:
        weight = volume.values[0].astype(np.float64)
        index = np.argwhere(np.ones_like(weight))
        middle = (index * weight.reshape(-1, 1)).sum(axis=0) / weight.sum()
        return d3.voxel_to_world(volume.attrs["affine"], middle[None])[0]

    np.testing.assert_allclose(centre(out), centre(scan), atol=0.02)
    assert prepared["affine"] == out.attrs["affine"].tolist()


def test_record_of_the_prepared_grid(tmp_path: Path) -> None:
    array = np.zeros((4, 5, 6), np.float32)
    array[1:3, 2:4, 3:6] = 2
    scan = d3.read_scan(write(tmp_path, array, "a.nii", np.diag([-1.0, 1, 1, 1])))  # x runs to the left
    out, prepared = d3.prepare_scan(scan, UNIT)
    assert prepared["source_shape_zyx"] == [4, 5, 6]
    assert prepared["crop_start_zyx"] == [1, 2, 0]  # canonical: x 3..5 becomes 0..2
    assert prepared["shape_zyx"] == [2, 2, 3]
    assert prepared["normalisation"] == {"scheme": "none", "clip": None, "mean": None, "std": None}
    assert out.shape == (1, 2, 2, 3)
    assert (out.values == 2).all()
    box = np.array([[0.0, 0, 0, 1, 2, 3]])
    back = d3.move_boxes(box, np.array(prepared["affine"]), np.array(prepared["source_affine"]))
    np.testing.assert_allclose(back, [[1, 2, 3, 2, 4, 6]], atol=1e-9)


def prepared_case(folder: Path, source: d3.CaseSource, spec: d3.PrepareSpec, classes: tuple[str, ...]) -> d3.Case:
    d3.prepare_many(d3.Dataset("x", classes, (source,)), folder / "out", spec, workers=0)
    return d3.Store.open(folder / "out")[source.case_id]


def test_two_channels_lie_on_one_grid(tmp_path: Path) -> None:
    a, b = write(tmp_path, blob() + 1, "a.nii"), write(tmp_path, blob() * 5 + 1, "b.nii")
    case = prepared_case(tmp_path, d3.CaseSource("a", (a, b)), UNIT, ())
    assert case.shape[0] == 2
    first, second = case.to_xarray().values
    np.testing.assert_allclose((first - 1) * 5, second - 1, atol=1e-4)
    moved = write(tmp_path, blob(), "moved.nii", np.diag([0.8, 1.0, 2.6, 1]))
    with pytest.raises(d3.ScanError, match=r"moved\.nii: affine"):
        d3.prepare_case(d3.CaseSource("m", (a, moved)), tmp_path, UNIT)
    small = write(tmp_path, blob()[1:], "small.nii")
    with pytest.raises(d3.ScanError, match=r"small\.nii: shape \(13, 30, 26\)"):
        d3.prepare_case(d3.CaseSource("s", (a, small)), tmp_path, UNIT)


@pytest.mark.parametrize("scheme", ["zscore", "zscore_mask"])
def test_normalised_after_resampling(tmp_path: Path, scheme: Any) -> None:
    image = np.random.default_rng(0).normal(50, 10, (14, 30, 26)).astype(np.float32)
    image[:2] = 0
    scan = d3.read_scan(write(tmp_path, image, "a.nii"))
    out, prepared = d3.prepare_scan(scan, d3.PrepareSpec(normalisation=scheme, crop=None))
    inside = out.values[0] if scheme == "zscore" else out.values[0, 5:]
    assert inside.mean() == pytest.approx(0, abs=1e-4)
    assert inside.std() == pytest.approx(1, abs=1e-4)
    assert (out.values[0, :5] == 0).all() == (scheme == "zscore_mask")
    assert prepared["normalisation"] == {"scheme": scheme, "clip": None, "mean": None, "std": None}
    moments = prepared["moments"]
    assert moments is not None
    back = inside * moments["std"][0] + moments["mean"][0]  # to the scan's own intensities
    plain = d3.resample(image, spacing_zyx_mm=scan.attrs["spacing_zyx_mm"], target_zyx_mm=(1, 1, 1))
    np.testing.assert_allclose(back, plain if scheme == "zscore" else plain[5:], atol=1e-3)


def test_nothing_is_recorded_where_nothing_was_normalised(tmp_path: Path) -> None:
    scan = d3.read_scan(write(tmp_path, np.ones((4, 5, 6), np.float32), "a.nii"))
    assert d3.prepare_scan(scan, d3.PrepareSpec(normalisation="none"))[1]["moments"] is None


def test_absurd_target_is_refused(tmp_path: Path) -> None:
    scan = d3.read_scan(write(tmp_path, blob() + 1, "a.nii"))
    with pytest.raises(d3.ScanError, match=r"case 'a': \(3500, 3000, 2080\) voxels"):
        d3.prepare_scan(scan, d3.PrepareSpec(target_zyx_mm=(0.01, 0.01, 0.01)))
