"""The store on disk: readable by others, exact, and loud about damage."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import yaozarrs
import zarr

import girih_data3d as d3
from girih_data3d.checksum import BLANK, checked_text


def test_files_of_a_case(prepared: d3.Store) -> None:
    folder = prepared["case0"].folder
    files = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
    assert len(files) == 12
    shards = ["0/c/0/0/0/0", "foreground/c/0/0", "labels/instances/0/c/0/0/0", "labels/semantic/0/c/0/0/0"]
    assert [f for f in files if "/c/" in f] == shards


def test_a_prepared_dataset_is_told_from_a_folder_of_scans(prepared: d3.Store, source: Path, tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    assert [d3.Store.is_at(folder) for folder in (prepared.root, source, tmp_path)] == [True, False, False]


def test_contents(prepared: d3.Store) -> None:
    assert prepared.case_ids == ("case0", "case1", "free")
    assert (prepared.name, prepared.classes, len(prepared)) == ("toy", ("small", "large"), 3)
    case = prepared["case0"]
    assert case.shape == (1, 40, 48, 40)
    assert case.spacing_zyx_mm == pytest.approx((1, 1, 1), rel=0.01)
    assert case.patient_id == "p0"
    assert case.modality == "CT"
    assert case.labels.tolist() == [0, 1]  # objects 4 and 7; 2 is to be ignored
    assert case.boxes.dtype == np.float32
    instances = case.read_label_patch("instances", (0, 0, 0), case.shape[1:])
    for row, box in enumerate(case.boxes.astype(int)):
        inside = np.argwhere(instances == row + 1)
        assert [*inside.min(axis=0), *inside.max(axis=0) + 1] == box.tolist()
        assert len(inside) == case.voxels[row]
    assert instances.max() == 3
    assert case.truth is not None
    assert case.truth["boxes"] == [[12, 5, 30, 14, 9, 40], [3, 10, 10, 6, 22, 20], [9, 30, 24, 12, 36, 34]]
    assert case.truth["labels"] == [0, 1, 0]
    assert case.truth["ignore"] == [False, False, True]
    free = prepared["free"]
    assert free.truth is None
    assert free.label_kinds == ()
    assert free.patient_id == "free"
    with pytest.raises(ValueError, match="has no 'instances' labels"):
        free.read_label_patch("instances", (0, 0, 0), (1, 1, 1))
    with pytest.raises(KeyError, match="no case 'other'"):
        prepared["other"]


def test_others_can_read_it(prepared: d3.Store) -> None:
    case = prepared["case0"]
    assert yaozarrs.validate_zarr_store(str(case.folder)) is not None
    with xr.open_zarr(case.folder, consolidated=False) as opened:
        assert opened["0"].dims == ("c", "z", "y", "x")
        np.testing.assert_allclose(opened["0"].values, case.to_xarray().values)
    with xr.open_datatree(case.folder, engine="zarr", consolidated=False) as tree:
        assert tree["labels/instances/0"].shape == case.shape[1:]
    group = zarr.open_group(case.folder, mode="r")
    image = group.attrs["ome"]["multiscales"][0]
    assert [a["orientation"]["value"].split("-")[0] for a in image["axes"][1:]] == ["inferior", "posterior", "left"]
    scale, translation = image["datasets"][0]["coordinateTransformations"]
    assert scale["scale"][1:] == list(case.spacing_zyx_mm)
    assert translation["translation"][:0:-1] == case.affine[:3, 3].tolist()


def test_prepared_scan_equals_the_stored_one(prepared: d3.Store, source: Path) -> None:
    scan, record = d3.prepare_scan(d3.read_scan(source / "free.nii.gz"), prepared.spec)
    case = prepared["free"]
    assert record == case.prepared
    stored = case.to_xarray()
    assert np.abs(stored.values - scan.values).max() <= case.scale / 2 * 1.001
    xr.testing.assert_allclose(stored.z, scan.z)
    assert stored.attrs.keys() == scan.attrs.keys()


def test_patches_inside_and_outside(prepared: d3.Store) -> None:
    case = prepared["case0"]
    volume = case.to_xarray().values
    np.testing.assert_array_equal(case.read_patch((5, 6, 7), (8, 9, 10)), volume[:, 5:13, 6:15, 7:17])
    patch = case.read_patch((-2, 40, 0), (4, 20, 5))
    assert (patch[:, :2] == 0).all()
    assert (patch[:, :, 8:] == 0).all()
    np.testing.assert_array_equal(patch[:, 2:, :8], volume[:, :2, 40:, :5])
    assert (case.read_patch((900, 0, 0), (2, 2, 2), pad_value=-3) == -3).all()
    raw = case.read_patch((5, 6, 7), (8, 9, 10), raw=True)
    assert raw.dtype == np.int16
    np.testing.assert_array_equal(raw * np.float32(case.scale), volume[:, 5:13, 6:15, 7:17])
    assert (case.read_label_patch("semantic", (-1, 0, 0), (1, 2, 2)) == -1).all()
    assert case.read_label_patch("semantic", (0, 0, 0), (1, 2, 2)).dtype == np.int16
    assert (case.read_label_patch("instances", (-1, 0, 0), (1, 2, 2)) == 0).all()
    with pytest.raises(ValueError, match=r"patch size \(0, 1, 1\)"):
        case.read_patch((0, 0, 0), (0, 1, 1))


def test_lazy_volume(prepared: d3.Store) -> None:
    case = prepared["case0"]
    lazy, volume = case.lazy(), case.to_xarray().values
    assert lazy.shape == case.shape
    assert lazy.dtype == np.float32
    np.testing.assert_array_equal(lazy[:, 3:9, :, 30:], volume[:, 3:9, :, 30:])
    np.testing.assert_array_equal(lazy[0:1, -5:, :10, 3:4], volume[:, -5:, :10, 3:4])
    for window in ((0, 0, 0, 0), (slice(None),) * 3, (slice(None, None, 2),) * 4, (slice(5, 5),) * 4):
        with pytest.raises(IndexError, match="four slices"):
            lazy[window]


def test_export_lies_in_the_patient(prepared: d3.Store, tmp_path: Path) -> None:
    case = prepared["case0"]
    case.export_nifti(tmp_path / "a.nii.gz")
    scan = d3.read_scan(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(scan.values, case.to_xarray().values)
    np.testing.assert_allclose(scan.attrs["affine"], case.affine, atol=1e-4)


@pytest.fixture
def damaged(prepared: d3.Store, tmp_path: Path) -> d3.Store:
    """A copy that the test may damage."""
    shutil.copytree(prepared.root, tmp_path / "copy")
    return d3.Store.open(tmp_path / "copy")


def test_no_byte_of_the_dataset_record_can_change(damaged: d3.Store) -> None:
    path = damaged.root / "dataset.json"
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(d3.ManifestError, match=r"dataset\.json: not a prepared dataset, or damaged"):
            d3.Store.open(damaged.root)
    assert next(iter(d3.verify(damaged.root).failed)) == "dataset.json"
    path.write_bytes(good)
    assert d3.Store.open(damaged.root).classes == ("small", "large")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 9}, "of schema 1"),
        ({"spec_hash": "0"}, "spec_hash 0"),
        ({"spec": {"quant_step": -1}}, "spec: quant_step is -1"),
        ({"spec": {"dtypes": "int16"}}, "spec: unknown field 'dtypes'"),
        ({"spec": None}, "spec: "),
    ],
)
def test_broken_dataset_record(damaged: d3.Store, change: dict[str, Any], message: str) -> None:
    path = damaged.root / "dataset.json"
    path.write_bytes(checked_text({**json.loads(path.read_text()), **change, "checksum": BLANK}))
    with pytest.raises(d3.ManifestError, match=message):
        d3.Store.open(damaged.root)
    with pytest.raises(d3.ManifestError, match="not a prepared dataset"):
        d3.Store.open(damaged.root / "cases")


def test_the_folder_of_scans_is_not_taken_for_a_damaged_dataset(tmp_path):
    (tmp_path / "dataset.json").write_text('{"schema": 1, "name": "a", "classes": [], "cases": []}')
    with pytest.raises(d3.ManifestError, match=r"describes scans to prepare, wanted the folder of a prepared dataset"):
        d3.Store.open(tmp_path)
