"""The store on disk: readable by others, exact, and loud about damage."""

import itertools
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaozarrs
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import girih_data3d as d3
from girih_data3d.case_writer import quantise


def test_files_of_a_case(prepared: d3.Store) -> None:
    folder = prepared["case0"].folder
    files = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
    assert len(files) == 12
    shards = ["0/c/0/0/0/0", "foreground/c/0/0", "labels/instances/0/c/0/0/0", "labels/semantic/0/c/0/0/0"]
    assert [f for f in files if "/c/" in f] == shards


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


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e5), st.sampled_from([1 / 512, 0.1, 1.0]))
def test_quantisation_error_is_half_a_step(seed: int, spread: float, step: float) -> None:
    values = np.random.default_rng(seed).normal(0, spread, (1, 3, 3, 3)).astype(np.float32)
    stored, scale = quantise(values, d3.PrepareSpec(quant_step=step))
    assert stored.dtype == np.int16
    assert np.abs(stored * scale - values.astype(np.float64)).max() <= scale / 2 * 1.001
    assert scale == step or np.abs(values).max() / scale > 2**14 - 1  # no coarser than needed


def test_float_storage(source: Path, tmp_path: Path) -> None:
    free = d3.read_manifest(source).sources[2]
    reference, _ = d3.prepare_scan(d3.read_scan(free.images[0]), d3.PrepareSpec())
    for dtype in ("float32", "float16"):
        spec = d3.PrepareSpec(dtype=dtype)
        d3.prepare_many(d3.Dataset("x", (), (free,)), tmp_path / dtype, spec)
        case = d3.Store.open(tmp_path / dtype)["free"]
        assert case.read_patch((0, 0, 0), (2, 2, 2), raw=True).dtype == np.dtype(dtype)
        np.testing.assert_array_equal(case.to_xarray().values, reference.values.astype(dtype))
    with pytest.raises(ValueError, match="does not fit into float16"):
        quantise(np.full((1, 1, 1, 1), 1e6, np.float32), d3.PrepareSpec(dtype="float16"))


@pytest.fixture
def damaged(prepared: d3.Store, tmp_path: Path) -> d3.Store:
    """A copy that the test may damage."""
    shutil.copytree(prepared.root, tmp_path / "copy")
    return d3.Store.open(tmp_path / "copy")


def read_all(case: d3.Case) -> None:
    case.read_patch((0, 0, 0), case.shape[1:])
    for kind in case.label_kinds:
        case.read_label_patch(kind, (0, 0, 0), case.shape[1:])


@pytest.mark.parametrize("relative", ["0/c/0/0/0/0", "labels/instances/0/c/0/0/0"])
def test_every_flipped_byte_of_a_shard_raises(damaged: d3.Store, relative: str) -> None:
    path = damaged["case0"].folder / relative
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for at, bit in zip(rng.integers(0, len(good), 100), rng.integers(0, 8, 100), strict=True):
        content = bytearray(good)
        content[at] ^= 1 << int(bit)
        path.write_bytes(content)
        with pytest.raises(d3.CorruptCaseError, match="case0"):
            read_all(damaged["case0"])
    path.write_bytes(good)
    read_all(damaged["case0"])


def test_truncated_or_missing_files_raise_on_opening(damaged: d3.Store) -> None:
    folder = damaged["case0"].folder
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        good = path.read_bytes()
        for damage in (good[:-1], good[: len(good) // 2], b""):
            path.write_bytes(damage)
            with pytest.raises(d3.CorruptCaseError) as caught:
                damaged["case0"]
            assert caught.value.case_id == "case0"
            assert caught.value.path == str(path)
        path.unlink()
        with pytest.raises(d3.CorruptCaseError, match="No such file"):
            damaged["case0"]
        path.write_bytes(good)


def test_shard_deleted_after_opening_raises(damaged: d3.Store) -> None:
    case = damaged["case0"]
    (case.folder / "0/c/0/0/0/0").unlink()
    with pytest.raises(d3.CorruptCaseError, match="not readable"):
        case.read_patch((0, 0, 0), (4, 4, 4))


def test_changed_metadata_raise(damaged: d3.Store) -> None:
    folder = damaged["case0"].folder
    for name, old, new in [
        ("zarr.json", '"case_id": "case0"', '"case_id": "case1"'),
        ("0/zarr.json", '"scale_factor": 0.001953125', '"scale_factor": 0.001953126'),
    ]:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))
        with pytest.raises(d3.CorruptCaseError, match="fails its checksum"):
            damaged["case0"]
        (folder / name).write_text(text)


def test_broken_dataset_record(damaged: d3.Store) -> None:
    path = damaged.root / "dataset.json"
    record = json.loads(path.read_text())
    for change, message in [({"schema": 9}, "schema"), ({"spec": {}}, None), ({"spec_hash": "0"}, "spec_hash 0")]:
        path.write_text(json.dumps({**record, **change}))
        if message is None:
            assert d3.Store.open(damaged.root).spec == d3.PrepareSpec()
        else:
            with pytest.raises(d3.ManifestError, match=message):
                d3.Store.open(damaged.root)
    with pytest.raises(d3.ManifestError, match="not a prepared dataset"):
        d3.Store.open(damaged.root / "cases")


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(d3.CorruptCaseError("a", "b", "c")))
    assert (error.case_id, error.path, error.reason) == ("a", "b", "c")
    assert str(error) == "case 'a': b: c"
    assert str(d3.CorruptCaseError("whole message")) == "whole message"


def test_same_patch_from_every_corner(prepared: d3.Store) -> None:
    case = prepared["case1"]
    volume = case.to_xarray().values
    n = np.array(case.shape[1:])
    for corner in itertools.product((0, 1), repeat=3):
        start = np.array(corner) * (n - 8) - (1 - np.array(corner)) * 3  # overhangs at the low sides only
        z, y, x = start.tolist()
        expected = np.zeros((1, 8, 8, 8), np.float32)
        low = np.maximum(start, 0)
        window = tuple(slice(int(a - s), 8) for a, s in zip(low, start, strict=True))
        expected[(slice(None), *window)] = volume[
            (slice(None), *(slice(int(a), int(s) + 8) for a, s in zip(low, start, strict=True)))
        ]
        np.testing.assert_array_equal(case.read_patch((z, y, x), (8, 8, 8)), expected)
