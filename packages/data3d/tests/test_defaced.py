"""Voxels that show no patient: where they lie after resampling, and that no patch takes them for valid."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaozarrs
from hypothesis import given
from hypothesis import strategies as st

import girih_data3d as d3
from girih_data3d.layout import case_folder
from girih_data3d.prepare import Grid, valid_on_grid

SHAPE = (12, 14, 16)
AFFINE = np.diag([-0.8, 0.9, 2.5, 1.0])
"""x runs to the left."""


def hidden_voxels() -> np.ndarray:
    hidden = np.zeros(SHAPE, np.uint8)
    hidden[2:6, 3:9, 12:] = 1
    hidden[9, 10, 2] = 7
    return hidden


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., d3.Store]:
    """Prepares a case that was defaced, and one that was not."""

    def make(spec: d3.PrepareSpec, hidden: np.ndarray, affine: np.ndarray = AFFINE, **more: Any) -> d3.Store:
        image = np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.float32)
        d3.write_nifti(image, tmp_path / "a.nii", affine=affine)
        d3.write_nifti(hidden, tmp_path / "d.nii.gz", affine=affine)
        whole = d3.CaseSource("whole", (tmp_path / "a.nii",), **more)
        sources = (d3.CaseSource("a", (tmp_path / "a.nii",), defaced=tmp_path / "d.nii.gz", **more), whole)
        report = d3.prepare_many(d3.Dataset("x", ("c",), sources), tmp_path / "out", spec, workers=0)
        assert not report.failed, report.failed
        return d3.Store.open(tmp_path / "out")

    return make


def test_at_the_scan_s_own_voxel_size(made: Callable[..., d3.Store]) -> None:
    store = made(d3.PrepareSpec(target_zyx_mm=None, crop=None), hidden_voxels())
    case = store["a"]
    assert (case.label_kinds, store["whole"].label_kinds) == (("valid",), ())
    assert store.index.valid.tolist() == [True, False]
    valid = case.read_label_patch("valid", (0, 0, 0), SHAPE)
    assert valid.dtype == bool
    np.testing.assert_array_equal(valid, hidden_voxels()[:, :, ::-1] == 0)  # x runs to the right here
    outside = case.read_label_patch("valid", (-2, -3, -4), (20, 20, 24))
    np.testing.assert_array_equal(outside[2:14, 3:17, 4:20], valid)
    assert np.count_nonzero(outside) == np.count_nonzero(valid)
    yaozarrs.validate_zarr_store(str(case_folder(store.root, "a")))
    assert not d3.verify(store.root, level="decode").failed


@given(st.tuples(*[st.integers(1, 7)] * 3), st.tuples(*[st.integers(1, 9)] * 3), st.integers(0, 2**32))
def test_a_voxel_is_valid_if_it_overlaps_nothing_hidden(
    old: tuple[int, int, int], new: tuple[int, int, int], seed: int
) -> None:
    hidden = np.random.default_rng(seed).random(old) < 0.2
    grid = Grid((0, 0, 0), old, new, np.eye(4), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    found = valid_on_grid(hidden, grid)
    for voxel in np.ndindex(new):
        overlap = True
        for axis, i in enumerate(voxel):  # in 1 / (old * new) of the extent
            n, m = old[axis], new[axis]
            j = np.arange(n)
            near = (j * m < (i + 1) * n) & ((j + 1) * m > i * n)
            overlap = overlap & near.reshape([-1 if k == axis else 1 for k in range(3)])
        assert found[voxel] == (not (hidden & overlap).any())


def test_no_hidden_voxel_becomes_valid_in_a_crop(made: Callable[..., d3.Store], tmp_path: Path) -> None:
    hidden = hidden_voxels()
    case = made(d3.PrepareSpec(target_zyx_mm=(1.7, 1.1, 0.7)), hidden)["a"]
    valid = case.read_label_patch("valid", (0, 0, 0), case.shape[1:])
    place = d3.voxel_to_world(AFFINE, np.argwhere(hidden))
    near = np.floor(d3.world_to_voxel(case.affine, place) + 0.5).astype(int)
    assert not valid[tuple(near.T)].any()
    assert 0.6 < valid.mean() < 0.95


def test_patches_plain_turned_and_raw(made: Callable[..., d3.Store]) -> None:
    store = made(d3.PrepareSpec(target_zyx_mm=(1, 1, 1), crop=None), hidden_voxels())
    case = store["a"]
    stored = case.read_label_patch("valid", (0, 0, 0), case.shape[1:])
    seen = 0
    for geometry, raw in ((None, False), (None, True), (d3.Geometry(p_rotation=1, p_scale=1, p_mirror=0.5), False)):
        sampler = d3.PatchSampler((16, 12, 12), object_fraction=0, geometry=geometry)
        for sample in d3.PatchDataset(store, sampler, n_per_epoch=12, raw=raw):
            index = np.moveaxis(np.indices(sample["valid"].shape), 0, -1).reshape(-1, 3)
            place = d3.world_to_voxel(case.affine, d3.voxel_to_world(sample["affine"], index))
            near = np.floor(place + 0.5).astype(int)
            inside = ((place > -0.5 + 1e-6) & (place < np.array(stored.shape) - 0.5 - 1e-6)).all(axis=1)
            clear = (np.abs(place - np.floor(place) - 0.5) > 1e-6).all(axis=1) & inside
            wanted = np.ones(len(near), bool)
            if sample["case_id"] == "a":
                wanted[clear] = stored[tuple(near[clear].T)]
                seen += np.count_nonzero(~wanted)
            np.testing.assert_array_equal(sample["valid"].ravel()[clear], wanted[clear])
            assert sample["valid"].dtype == bool
    assert seen > 1000


def test_objects_and_hidden_voxels_do_not_disturb_each_other(made: Callable[..., d3.Store]) -> None:
    objects = (
        d3.ObjectLabel(0, box_zyx=(3, 4, 4, 6, 8, 15)),
        d3.ObjectLabel(0, box_zyx=(8, 1, 1, 10, 4, 4), ignore=True),
    )
    store = made(d3.PrepareSpec(target_zyx_mm=None, crop=None), hidden_voxels(), objects=objects, paint="box")
    sampler = d3.PatchSampler(SHAPE, object_fraction=0, case_weights={"whole": 0})
    sample = d3.PatchDataset(store, sampler, n_per_epoch=1)[0]
    wanted = hidden_voxels()[:, :, ::-1] == 0
    wanted[8:10, 1:4, 12:15] = False  # the object to ignore
    assert sample["start"].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(sample["valid"], wanted)
    assert sample["boxes"].tolist() == [[3, 4, 1, 6, 8, 12]]


def test_nothing_hidden(made: Callable[..., d3.Store]) -> None:
    store = made(d3.PrepareSpec(), np.zeros(SHAPE, np.uint8))
    assert store["a"].label_kinds == ("valid",)
    assert store["a"].read_label_patch("valid", (0, 0, 0), store["a"].shape[1:]).all()


def test_a_file_on_another_grid(made: Callable[..., d3.Store], tmp_path: Path) -> None:
    made(d3.PrepareSpec(), hidden_voxels())
    source = d3.CaseSource("b", (tmp_path / "a.nii",), defaced=tmp_path / "d.nii.gz")
    d3.write_nifti(hidden_voxels(), tmp_path / "d.nii.gz", affine=np.eye(4))
    with pytest.raises(d3.ScanError, match=r"d\.nii\.gz: canonical affine"):
        d3.prepare_case(source, tmp_path / "other", d3.PrepareSpec())
