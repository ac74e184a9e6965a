"""Samples: exact keys and types, boxes that agree with masks, places that agree with the affine."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

import girih_data3d as d3

PATCH = (24, 32, 28)


def dataset(
    store: d3.Store, *, patch: tuple[int, int, int] = PATCH, labelled: bool = True, **kwargs: Any
) -> d3.PatchDataset:
    own = {k: kwargs.pop(k) for k in ("raw", "transform", "case_ids") if k in kwargs}
    ids = own.pop("case_ids", ("case0", "case1") if labelled else ("free",))
    if not labelled:
        kwargs["object_fraction"] = 0
    return d3.PatchDataset(store, d3.PatchSampler(patch, **kwargs), case_ids=ids, n_per_epoch=12, **own)


TURNED = d3.Geometry(p_rotation=1, p_scale=1)


@pytest.mark.parametrize("geometry", [None, TURNED, d3.Geometry(p_rotation=0, p_scale=0)])
def test_sample_has_the_agreed_form(prepared: d3.Store, geometry: d3.Geometry | None) -> None:
    for sample in dataset(prepared, geometry=geometry):
        assert sample["image"].shape == (1, *PATCH)
        n = len(sample["boxes"])
        kinds = {k: (v.dtype, v.shape) for k, v in sample.items() if not isinstance(v, str)}
        assert kinds == {
            "image": (np.float32, (1, *PATCH)),
            "boxes": (np.float32, (n, 6)),
            "labels": (np.int64, (n,)),
            "instances": (np.int32, PATCH),
            "semantic": (np.int16, PATCH),
            "valid": (bool, PATCH),
            "start": (np.int64, (3,)),
            "affine": (np.float64, (4, 4)),
            "index": (np.int64, ()),
            "seed": (np.int64, ()),
        }
        assert sample["dataset"] == "toy"
        assert sample["case_id"] in ("case0", "case1")
        assert sample["instances"].max() == n
        assert not (sample["instances"] * ~sample["valid"]).any()
        for row, box in enumerate(sample["boxes"]):
            inside = np.argwhere(sample["instances"] == row + 1)
            assert [*inside.min(axis=0), *inside.max(axis=0) + 1] == box.tolist()


def test_plain_patch_equals_the_volume(prepared: d3.Store) -> None:
    for sample in dataset(prepared, patch=(60, 20, 30)):  # deeper than either case: padded
        case = prepared[sample["case_id"]]
        start = tuple(int(v) for v in sample["start"])
        np.testing.assert_array_equal(sample["image"], case.read_patch(start, (60, 20, 30)))
        whole = np.zeros((60, 20, 30), bool)
        whole[tuple(slice(max(0, -a), min(60, n - a)) for a, n in zip(start, case.shape[1:], strict=True))] = True
        ids = case.read_label_patch("instances", start, (60, 20, 30))
        np.testing.assert_array_equal(sample["valid"], whole & (ids != 3))  # object 3 is to be ignored
        assert set(np.unique(ids)) - {0, 3} == {i + 1 for i in range(2) if (ids == i + 1).any()}
        assert sample["labels"].tolist() == [case.labels[i] for i in range(2) if (ids == i + 1).any()]


def test_ignored_object_is_neither_object_nor_background(prepared: d3.Store) -> None:
    case = prepared["case0"]
    seen = False
    for sample in dataset(prepared, case_ids=("case0",)):
        ids = case.read_label_patch("instances", tuple(int(v) for v in sample["start"]), PATCH)
        assert (sample["instances"][ids == 3] == 0).all()
        assert not sample["valid"][ids == 3].any()
        seen |= bool((ids == 3).any())
    assert seen


@pytest.mark.parametrize("p_rotation", [0, 1])
@pytest.mark.parametrize("order", [1, 3])
def test_turned_patch_equals_interpolation_of_the_whole_case(prepared: d3.Store, order: Any, p_rotation: float) -> None:
    geometry = d3.Geometry(p_rotation=p_rotation, p_scale=1, order=order)
    samples = dataset(prepared, geometry=geometry, case_ids=("case0",))
    case = prepared["case0"]
    margin = 40
    start, size = (-margin,) * 3, tuple(n + 2 * margin for n in case.shape[1:])
    whole = case.read_patch(start, size)[0].astype(np.float64)
    objects, tissue = (case.read_label_patch(kind, start, size) for kind in ("instances", "semantic"))
    for g in range(4):
        sample = samples[g]
        index = np.argwhere(np.ones(PATCH, bool)).astype(float)
        at = d3.world_to_voxel(case.affine, d3.voxel_to_world(sample["affine"], index)) + margin
        expected = ndimage.map_coordinates(whole, at.T, order=order, mode="nearest").reshape(PATCH)
        np.testing.assert_allclose(sample["image"][0], expected, atol=2e-3)
        near = np.rint(at).astype(int)
        sure = (np.abs(at % 1 - 0.5) > 1e-6).all(axis=1).reshape(PATCH)
        z, y, x = near.T
        inside = ((near >= margin) & (near < np.array(case.shape[1:]) + margin)).all(axis=1).reshape(PATCH)
        found = objects[z, y, x].reshape(PATCH)
        np.testing.assert_array_equal(sample["semantic"][sure], tissue[z, y, x].reshape(PATCH)[sure])
        np.testing.assert_array_equal(sample["valid"][sure], (inside & (found != 3))[sure])
        np.testing.assert_array_equal((sample["instances"] > 0)[sure], ((found == 1) | (found == 2))[sure])


@pytest.mark.parametrize("dtype", ["int16", "float16", "float32"])
def test_every_channel_is_turned_whatever_its_type_on_disk(source: Path, tmp_path: Path, dtype: Any) -> None:
    images = (source / "free.nii.gz", source / "free.nii.gz")
    raw = d3.Dataset("two", (), (d3.CaseSource("a", images),))
    d3.prepare_many(raw, tmp_path, d3.PrepareSpec(dtype=dtype), workers=0)
    store = d3.Store.open(tmp_path)
    whole = store["a"].read_patch((-40,) * 3, (110,) * 3)[0].astype(np.float64)
    for p_rotation in (0, 1):
        geometry = d3.Geometry(p_rotation=p_rotation, p_scale=1)
        sample = dataset(store, geometry=geometry, case_ids=("a",), object_fraction=0)[1]
        index = np.argwhere(np.ones(PATCH, bool)).astype(float)
        at = d3.world_to_voxel(store["a"].affine, d3.voxel_to_world(sample["affine"], index)) + 40
        expected = ndimage.map_coordinates(whole, at.T, order=1).reshape(PATCH)
        for channel in sample["image"]:
            np.testing.assert_allclose(channel, expected, atol=1e-4)


def test_mirrored_patch_is_the_flipped_volume(prepared: d3.Store) -> None:
    samples = dataset(prepared, geometry=d3.Geometry(p_rotation=0, p_scale=0))
    plain = dataset(prepared)
    flips = set()
    for g in range(12):
        sample = samples[g]
        case = prepared[sample["case_id"]]
        volume = case.read_patch(tuple(int(v) for v in sample["start"]), PATCH)
        signs = np.sign(np.diag(np.linalg.inv(case.affine) @ sample["affine"])[:3][::-1])
        axes = [axis + 1 for axis in range(3) if signs[axis] < 0]
        flips.add(tuple(axes))
        np.testing.assert_array_equal(sample["image"], np.flip(volume, axes))
        assert sample["case_id"] == plain[g]["case_id"]
    assert len(flips) > 3


def test_whole_object_survives_turning(prepared: d3.Store) -> None:
    samples = dataset(prepared, patch=(40, 40, 40), geometry=TURNED, object_fraction=1.0)
    for g in range(12):
        sample = samples[g]
        assert len(sample["boxes"]) >= 1
        volume_ratio = abs(np.linalg.det(np.linalg.inv(prepared[sample["case_id"]].affine) @ sample["affine"]))
        case = prepared[sample["case_id"]]
        counts = np.bincount(sample["instances"].ravel())[1:] * volume_ratio
        wanted = [case.voxels[list(case.labels).index(label)] for label in sample["labels"]]
        assert max(counts / wanted) == pytest.approx(1, abs=0.25)  # nearest-voxel labels of small objects


def test_min_visible_turns_slivers_invalid(prepared: d3.Store) -> None:
    keep, drop = dataset(prepared, object_fraction=0), dataset(prepared, object_fraction=0, min_visible=0.9)
    dropped = 0
    for g in range(12):
        a, b = keep[g], drop[g]
        gone = (a["instances"] > 0) & (b["instances"] == 0)
        np.testing.assert_array_equal(b["valid"], a["valid"] & ~gone)
        assert len(a["boxes"]) - len(b["boxes"]) == len(np.unique(a["instances"][gone]))
        dropped += bool(gone.any())
    assert dropped


def test_raw_values(prepared: d3.Store) -> None:
    for raw, plain in zip(dataset(prepared, raw=True), dataset(prepared), strict=True):
        assert raw["image"].dtype == np.int16
        assert raw["scale"].dtype == raw["offset"].dtype == np.float32
        np.testing.assert_array_equal(raw["image"] * raw["scale"][:, None, None, None], plain["image"])
        np.testing.assert_array_equal(raw["instances"], plain["instances"])


def test_unlabelled_cases_have_no_label_keys(prepared: d3.Store) -> None:
    sample = dataset(prepared, labelled=False)[0]
    assert "instances" not in sample
    assert "semantic" not in sample
    assert sample["boxes"].shape == (0, 6)
    assert sample["labels"].shape == (0,)


def test_unlabelled_cases_are_for_pretraining_only(prepared: d3.Store) -> None:
    with pytest.raises(ValueError, match=r"dataset 'toy': case 'free' is unlabelled \(1 of all 3 cases are\)"):
        dataset(prepared, case_ids=None)
    index = prepared.index
    labelled = [case_id for case_id, known in zip(index.case_ids, index.annotated, strict=True) if known]
    assert dataset(prepared, case_ids=labelled).table.case_ids == ("case0", "case1")
    assert "free" in dataset(prepared, case_ids=None, object_fraction=0).table.case_ids


def test_samples_depend_on_nothing_but_g(prepared: d3.Store) -> None:
    first = dataset(prepared, geometry=d3.Geometry(p_rotation=0.5))
    copy = pickle.loads(pickle.dumps(first))
    for g in (7, 0, 10**9, 7):
        for key, value in first[g].items():
            np.testing.assert_array_equal(copy[g][key], value)
    assert len(first) == len(list(first)) == 12
    with pytest.raises(IndexError, match="item -1"):
        first[-1]


def test_transform_has_the_last_word(prepared: d3.Store) -> None:
    sample = dataset(prepared, transform=lambda s: {"seed": s["seed"]})[3]
    assert sample.keys() == {"seed"}


def test_refusals(prepared: d3.Store) -> None:
    with pytest.raises(ValueError, match="raw=True"):
        dataset(prepared, raw=True, geometry=TURNED)
    with pytest.raises(ValueError, match="raw=True"):
        dataset(prepared, raw=True, transform=dict)
    with pytest.raises(ValueError, match="none of the cases has an object"):
        dataset(prepared, case_ids=("free",))
    with pytest.raises(KeyError, match="nobody"):
        dataset(prepared, case_ids=("nobody",))
    with pytest.raises(ValueError, match="n_per_epoch is 0"):
        d3.PatchDataset(prepared, d3.PatchSampler(PATCH), n_per_epoch=0)
