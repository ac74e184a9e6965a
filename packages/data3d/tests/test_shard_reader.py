"""The shard reader against zarr-python, bit for bit, in threads and in other processes."""

import json
import multiprocessing
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec

import girih_data3d as d3
from girih_data3d.folder import LocalFolder
from girih_data3d.open_files import OpenFiles
from girih_data3d.shard_reader import ShardReader
from girih_data3d.window import read_padded

ARRAYS: dict[str, dict[str, Any]] = {  # name -> shape, shards, dtype, codec
    "int16": {"shape": (3, 40, 33, 70), "shards": (3, 64, 64, 96), "codec": "lz4hc"},
    "float32": {"shape": (1, 31, 65, 32), "shards": (1, 32, 96, 32), "codec": "zstd"},
    "float16": {"shape": (2, 1, 5, 100), "shards": (1, 32, 32, 64), "codec": "lz4hc"},
    "uint8": {"shape": (50, 40, 130), "shards": (32, 32, 64), "codec": "zstd"},  # 2 x 2 x 3 shards
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("arrays")
    group = zarr.create_group(root)
    rng = np.random.default_rng(0)
    for dtype, layout in ARRAYS.items():
        shape = layout["shape"]
        values = (rng.normal(0, 50, shape) * (rng.random(shape) < 0.5)).astype(dtype)
        values[..., :20] = 0
        values[..., :40, :32] = 0  # some chunks hold zeros only: zarr leaves them out
        array = group.create_array(
            dtype,
            shape=shape,
            dtype=dtype,
            chunks=(1,) * (len(shape) - 3) + (32, 32, 32),
            shards=layout["shards"],
            compressors=[BloscCodec(cname=layout["codec"], clevel=5, shuffle="shuffle"), Crc32cCodec()],
            fill_value=0,
        )
        array[...] = values
    return root


def open_reader(folder: Path, files: OpenFiles | None = None) -> ShardReader:
    where = LocalFolder(folder, files or OpenFiles())
    where.sizes([path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()])
    return where.array("", json.loads((folder / "zarr.json").read_text()), "x")


def read(reader: ShardReader, start: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
    out = np.empty(size, reader.dtype)
    reader.read_into(out, start)
    return out


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(sorted(ARRAYS)), st.booleans())
def test_every_window_equals_zarr(folder: Path, data: st.DataObject, dtype: str, mapped: bool) -> None:
    reader = open_reader(folder / dtype, OpenFiles(mapped=mapped))
    window = [sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in reader.shape]
    ours = read(reader, tuple(a for a, _ in window), tuple(b - a for a, b in window))
    theirs = zarr.open_group(folder, mode="r")[dtype][tuple(slice(a, b) for a, b in window)]
    assert ours.dtype == theirs.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from(["int16", "float16", "uint8"]))
def test_windows_that_leave_the_array(folder: Path, data: st.DataObject, dtype: str) -> None:
    reader = open_reader(folder / dtype)
    whole = zarr.open_group(folder, mode="r")[dtype][...].astype(np.float32) * np.float32(0.25) + np.float32(3)
    start = tuple(data.draw(st.integers(-40, n + 40)) for n in reader.shape[-3:])
    size = tuple(data.draw(st.integers(1, 50)) for _ in range(3))
    found = read_padded(reader, start, size, padding=-7, dtype=np.float32, scale=0.25, offset=3)
    pad = [(0, 0)] * (whole.ndim - 3) + [(max(0, -a), max(0, a + s - n)) for a, s, n in _triples(start, size, whole)]
    padded = np.pad(whole, pad, constant_values=-7)
    window = tuple(slice(max(a, 0), max(a, 0) + s) for a, s in zip(start, size, strict=True))
    np.testing.assert_array_equal(found, padded[(..., *window)])


def _triples(start: tuple[int, ...], size: tuple[int, ...], whole: np.ndarray) -> list[tuple[int, int, int]]:
    return list(zip(start, size, whole.shape[-3:], strict=True))


def test_windows_outside_are_refused(folder: Path) -> None:
    reader = open_reader(folder / "uint8")
    for start, size in [((-1, 0, 0), (1, 1, 1)), ((0, 0, 0), (51, 1, 1)), ((0, 0, 0), (0, 1, 1))]:
        with pytest.raises(ValueError, match="leaves the array"):
            read(reader, start, size)
    with pytest.raises(ValueError, match=r"patch size \(0, 1, 1\)"):
        read_padded(reader, (0, 0, 0), (0, 1, 1), padding=0)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files through /proc")
@pytest.mark.parametrize("mapped", [False, True])
def test_no_more_files_stay_open_than_the_limit(folder: Path, mapped: bool) -> None:
    files, before = OpenFiles(3, mapped=mapped), open_files()
    readers = [open_reader(folder / dtype, files) for dtype in ARRAYS]
    for _ in range(3):
        for reader in readers:  # 12 + 2 + 4 + 1 shards
            read(reader, (0,) * len(reader.shape), reader.shape)
            assert open_files() <= before + (6 if mapped else 3)  # a map holds a second handle
    del files, readers, reader
    assert open_files() == before


def test_threads_that_push_out_each_others_files(folder: Path) -> None:
    reader = open_reader(folder / "uint8", OpenFiles(1))
    whole = zarr.open_group(folder, mode="r")["uint8"][...]

    def equal(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        start = [int(rng.integers(0, n - 20)) for n in reader.shape]
        window = tuple(slice(a, a + 20) for a in start)
        return np.array_equal(read(reader, tuple(start), (20, 20, 20)), whole[window])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(equal, range(200)))


def test_copies_in_other_processes_read_the_same(folder: Path) -> None:
    reader = open_reader(folder / "int16")
    whole = read(reader, (0, 0, 0, 0), reader.shape)
    np.testing.assert_array_equal(read(pickle.loads(pickle.dumps(reader)), (0, 0, 0, 0), reader.shape), whole)
    child = os.fork()
    if child == 0:  # the handle and the index came along
        same = np.array_equal(read(reader, (0, 0, 0, 0), reader.shape), whole)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(read, (reader, (0, 0, 0, 0), reader.shape)), whole)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_missing_shard_is_not_zeros(folder: Path, tmp_path: Path, mapped: bool) -> None:
    copy = shutil.copytree(folder / "uint8", tmp_path / "uint8")
    reader = open_reader(copy, OpenFiles(mapped=mapped))
    (copy / "c/1/1/2").unlink()
    for found in (reader, open_reader(copy, OpenFiles(mapped=mapped))):
        with pytest.raises(d3.CorruptCaseError, match="c/1/1/2"):
            read(found, (0, 0, 0), found.shape)
    (copy / "c/1/1/2").touch()
    with pytest.raises(d3.CorruptCaseError, match="index is truncated: 0 bytes"):
        read(open_reader(copy, OpenFiles(mapped=mapped)), (0, 0, 0), reader.shape)


def test_other_layouts_are_refused(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "plain", shape=(4, 4, 4), chunks=(2, 2, 2), dtype="int16")
    with pytest.raises(d3.CorruptCaseError, match=r"plain/zarr\.json"):
        open_reader(tmp_path / "plain")
    zarr.create_array(tmp_path / "gzip", shape=(8, 4, 4), chunks=(2, 2, 2), shards=(4, 4, 4), dtype="int16")
    with pytest.raises(d3.CorruptCaseError, match="unknown array layout"):
        open_reader(tmp_path / "gzip")
