"""What write_case puts on disk: shards, layers, the foreground table, storage types, and the same bytes again."""

from collections.abc import Callable
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
from girih_data3d.foreground import sample_foreground

MakeCase = Callable[..., Path]


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_large_arrays_are_split_into_shards_of_one_channel(small_case: MakeCase, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    volume = rng.normal(0, 1, (2, 33, 40, 540)).astype(np.float32)
    layer = (rng.random(volume.shape[1:]) < 0.1).astype(np.int32)
    record = {
        "id": 1,
        "class": 0,
        "ignore": False,
        "box": [0, 0, 0, 33, 40, 540],
        "voxels": int(layer.sum()),
        "layer": 0,
    }
    small_case(tmp_path, "one", volume)
    folder = small_case(tmp_path, "many", volume, instances=[layer], objects=[record], one_shard_bytes=10**6)
    shards = [name for name in files_of(folder) if name.startswith("0/c/")]
    assert shards == [f"0/c/{channel}/0/0/{x}" for channel in (0, 1) for x in (0, 1)]
    assert "labels/instances/0/c/0/0/0" in files_of(folder)  # 0.7 MB as uint8
    theirs = zarr.open_array(folder / "0", mode="r")
    assert theirs.shards == (1, 64, 64, 512)
    store = d3.Store.open(tmp_path)
    start, size = (0, 0, 0), volume.shape[1:]
    whole = store["many"].read_patch(start, size, raw=True)
    np.testing.assert_array_equal(whole, theirs[:])
    np.testing.assert_array_equal(whole, store["one"].read_patch(start, size, raw=True))
    np.testing.assert_array_equal(
        store["many"].read_patch((3, 30, 505), (40, 20, 30), raw=True)[:, :30, :10], whole[:, 3:, 30:, 505:535]
    )
    assert d3.verify(tmp_path, level="decode").ok == ["many", "one"]


def test_same_input_gives_the_same_bytes(small_case: MakeCase, overlapping: d3.Store, tmp_path: Path) -> None:
    case = overlapping["two"]
    again = {
        "instances": case.read_instance_layers((0, 0, 0), case.shape[1:]),
        "semantic": case.read_label_patch("semantic", (0, 0, 0), case.shape[1:]),
        "objects": [],
    }
    volume = case.to_xarray().values
    first, second = (files_of(small_case(tmp_path / name, "two", volume, **again)) for name in ("a", "b"))
    assert first == second
    assert first["0/c/0/0/0/0"] == (case.folder / "0/c/0/0/0/0").read_bytes()
    other = files_of(small_case(tmp_path / "c", "two", volume, spec=d3.PrepareSpec(compression="zstd"), **again))
    assert len(other["0/c/0/0/0/0"]) < len(first["0/c/0/0/0/0"])


def test_record(overlapping: d3.Store) -> None:
    case = overlapping["two"]
    record = zarr.open_group(case.folder, mode="r").attrs["girih"]
    assert record["shape"] == [2, 37, 40, 45]
    assert sorted(record["versions"]) == ["girih-data3d", "numcodecs", "numpy", "scipy", "zarr"]
    assert set(record["files"]) == set(files_of(case.folder)) - {"zarr.json"}
    assert int(record["checksum"], 16) == case.checksum
    assert yaozarrs.validate_zarr_store(str(case.folder)) is not None
    with xr.open_datatree(case.folder, engine="zarr", consolidated=False) as tree:
        assert tree["labels/instances-2/0"].shape == case.shape[1:]
        np.testing.assert_array_equal(tree["foreground"].values, case.foreground)


def test_layers_and_objects(overlapping: d3.Store) -> None:
    case = overlapping["two"]
    assert case.label_kinds == ("instances", "semantic")
    assert case.labels.tolist() == [1, 0]
    assert case.voxels.tolist() == [4335, 48]
    assert case.objects.ignore.tolist() == [False, False, True]
    assert case.objects.layer.tolist() == [0, 1, 0]
    assert case.boxes.tolist() == [[3, 4, 5, 20, 19, 22], [5, 6, 7, 9, 9, 11]]
    large, small = case.read_instance_layers((-2, 0, 0), case.shape[1:])
    assert [np.unique(layer).tolist() for layer in (large, small)] == [[0, 1, 3], [0, 2]]
    assert large.dtype == small.dtype == np.int32
    assert np.count_nonzero(large == 1) == 4335
    both = case.read_label_patch("instances", (-2, 0, 0), case.shape[1:])
    np.testing.assert_array_equal(both, np.where(small > 0, small, large))
    row = overlapping.index
    assert (row.instances.tolist(), row.semantic.tolist(), row.annotated.tolist()) == ([True], [True], [True])


def test_foreground_of_tissues(overlapping: d3.Store) -> None:
    case = overlapping["two"]
    semantic = case.read_label_patch("semantic", (0, 0, 0), case.shape[1:])
    found = case.foreground
    assert found.dtype == np.uint16
    assert found.tolist() == [[3, *place] for place in np.argwhere(semantic == 3).tolist()]  # fewer than 10,000


def test_foreground_is_shared_between_classes_and_drawn_from_the_case_id() -> None:
    labels = np.zeros((30, 40, 50), np.int32)
    labels[:20] = 1
    labels[20:28] = 2
    labels[29, 0, :3] = 3
    objects = [{"class": 4, "ignore": False}, {"class": 0, "ignore": False}, {"class": 0, "ignore": False}]

    def sample(case_id: str) -> np.ndarray:
        return sample_foreground(case_id, semantic=None, instances=[labels], objects=objects)

    found = sample("a")
    assert np.unique(found[:, 0], return_counts=True)[1].tolist() == [5000, 5000]
    assert np.unique(found, axis=0).tolist() == found.tolist()  # sorted, none twice
    assert {labels[z, y, x] for c, z, y, x in found.tolist() if c == 4} == {1}
    assert {labels[z, y, x] for c, z, y, x in found.tolist() if c == 0} <= {2, 3}
    np.testing.assert_array_equal(found, sample("a"))
    assert not np.array_equal(found, sample("b"))


def test_foreground_leaves_out_what_is_to_be_ignored_and_counts_overlaps_once() -> None:
    layers = np.zeros((2, 4, 5, 6), np.int32)
    layers[0, 1, 1, 1:4] = 1
    layers[1, 1, 1, 2:5] = 2
    layers[0, 3] = 3
    objects = [{"class": 0, "ignore": False}] * 2 + [{"class": 0, "ignore": True}]
    found = sample_foreground("a", semantic=None, instances=list(layers), objects=objects)
    assert found.tolist() == [[0, 1, 1, x] for x in (1, 2, 3, 4)]
    empty = sample_foreground("a", semantic=None, instances=[np.zeros((2, 2, 2), np.int32)], objects=[])
    assert empty.shape == (0, 4)
    with pytest.raises(ValueError, match="axes of at most 65536"):
        sample_foreground("a", semantic=np.ones((1, 1, 2**16 + 1), np.int16), instances=(), objects=[])


def test_case_without_masks_has_no_foreground(small_case: MakeCase, tmp_path: Path) -> None:
    box = [{"id": 1, "class": 0, "ignore": False, "box": [1, 1, 1, 3, 4, 5]}]
    folder = small_case(tmp_path, "boxes", np.ones((1, 8, 8, 8), np.float32), objects=box)
    case = d3.Store.open(tmp_path)["boxes"]
    assert sorted(files_of(folder)) == ["0/c/0/0/0/0", "0/zarr.json", "zarr.json"]
    assert case.foreground.shape == (0, 4)
    assert case.read_instance_layers((0, 0, 0), (1, 1, 1)) == []
    assert case.label_kinds == ()
    assert case.boxes.tolist() == [[1, 1, 1, 3, 4, 5]]
    assert case.voxels.tolist() == [0]


def test_most_files_of_a_case(prepared: d3.Store) -> None:
    for case_id in prepared:
        assert len(files_of(prepared[case_id].folder)) <= 12


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e5), st.sampled_from([1 / 512, 0.1, 1.0]))
def test_quantisation_error_is_half_a_step(seed: int, spread: float, step: float) -> None:
    values = np.random.default_rng(seed).normal(0, spread, (1, 3, 3, 3)).astype(np.float32)
    stored, scale = quantise(values, d3.PrepareSpec(quant_step=step))
    assert stored.dtype == np.int16
    assert np.abs(stored * scale - values.astype(np.float64)).max() <= scale / 2 * 1.001
    assert scale == step or np.abs(values).max() / scale > 2**14 - 1  # no coarser than needed


@pytest.mark.parametrize("step", [1 / 512, 0.01, 0.7])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_value_of_a_step_does_not_wrap(step: float, sign: int) -> None:
    spec = d3.PrepareSpec(quant_step=step)
    for steps in np.linspace(32767.49, 32767.4999999, 300):  # rounds down in float64, but up in float32
        values = np.full((1, 1, 1, 1), sign * steps * step, np.float32)
        stored, scale = quantise(values, spec)
        assert abs(float(stored[0, 0, 0, 0]) * scale - float(values[0, 0, 0, 0])) <= scale / 2 * 1.001


def test_values_that_are_hardly_finite() -> None:
    stored, scale = quantise(np.full((1, 1, 1, 1), 3e38, np.float32), d3.PrepareSpec())
    assert stored[0, 0, 0, 0] * scale == pytest.approx(3e38, rel=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_float_storage(small_case: MakeCase, tmp_path: Path, dtype: str) -> None:
    volume = np.random.default_rng(0).normal(0, 100, (1, 20, 30, 35)).astype(np.float32)
    small_case(tmp_path, "a", volume, spec=d3.PrepareSpec(dtype=dtype))
    case = d3.Store.open(tmp_path)["a"]
    assert case.read_patch((0, 0, 0), (2, 2, 2), raw=True).dtype == np.dtype(dtype)
    np.testing.assert_array_equal(case.to_xarray().values, volume.astype(dtype))
    with pytest.raises(ValueError, match="does not fit into float16"):
        quantise(np.full((1, 1, 1, 1), 1e6, np.float32), d3.PrepareSpec(dtype="float16"))
