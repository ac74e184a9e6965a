"""The shard reader against zarr-python, bit for bit, and in other processes."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import girih_data3d as d3
from girih_data3d.case_writer import _write_array
from girih_data3d.open_files import OpenFiles
from girih_data3d.shard_reader import ShardReader

SHAPES = {"int16": (3, 40, 33, 70), "float32": (1, 31, 65, 32), "float16": (2, 1, 5, 100), "uint8": (50, 40, 30)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("arrays")
    group = zarr.create_group(root)
    rng = np.random.default_rng(0)
    for dtype, shape in SHAPES.items():
        array = (rng.normal(0, 50, shape) * (rng.random(shape) < 0.5)).astype(dtype)
        array[..., :20] = 0  # some chunks hold zeros only
        _write_array(group, dtype, array, "czyx"[-len(shape) :], {})
    return root


@settings(max_examples=120, deadline=None)
@given(st.data(), st.sampled_from(sorted(SHAPES)))
def test_every_window_equals_zarr(folder: Path, data: st.DataObject, dtype: str) -> None:
    reader = ShardReader(folder / dtype, "x", OpenFiles())
    window = [sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in reader.shape]
    ours = reader.read(tuple(a for a, _ in window), tuple(b - a for a, b in window))
    theirs = zarr.open_group(folder, mode="r")[dtype][tuple(slice(a, b) for a, b in window)]
    assert ours.dtype == theirs.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(ours, theirs)


def test_windows_outside_are_refused(folder: Path) -> None:
    reader = ShardReader(folder / "uint8", "x", OpenFiles())
    for start, size in [((-1, 0, 0), (1, 1, 1)), ((0, 0, 0), (51, 1, 1)), ((0, 0, 0), (0, 1, 1))]:
        with pytest.raises(ValueError, match="leaves the array"):
            reader.read(start, size)


def test_copies_in_other_processes_read_the_same(folder: Path) -> None:
    reader = ShardReader(folder / "int16", "x", OpenFiles())
    whole = reader.read((0, 0, 0, 0), reader.shape)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader)).read((0, 0, 0, 0), reader.shape), whole)
    child = os.fork()
    if child == 0:  # the handle and the index came along
        same = np.array_equal(reader.read((0, 0, 0, 0), reader.shape), whole)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_other_layouts_are_refused(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "plain", shape=(4, 4, 4), chunks=(2, 2, 2), dtype="int16")
    with pytest.raises(d3.CorruptCaseError, match=r"plain/zarr\.json"):
        ShardReader(tmp_path / "plain", "x", OpenFiles())
