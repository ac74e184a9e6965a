"""Whatever byte of a case or of the index changes, reading raises; nothing is ever made up."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import girih_data3d as d3
from girih_data3d.folder import LocalFolder
from girih_data3d.layout import case_folder


def read_all(store: d3.Store) -> None:
    """Read every byte of case "two"."""
    case = store["two"]
    case.read_patch((0, 0, 0), case.shape[1:])
    case.read_label_patch("instances", (0, 0, 0), case.shape[1:])
    case.read_label_patch("semantic", (0, 0, 0), case.shape[1:])
    assert len(case.foreground)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("io", "flips"), [("pread", 200), ("mmap", 30)])
def test_flipped_bytes_of_all_files(overlapping: d3.Store, io: Literal["pread", "mmap"], flips: int) -> None:
    store = d3.Store.open(overlapping.root, io=io)
    files = files_of(store["two"].folder)
    assert len(files) == 15
    rng = np.random.default_rng(0)
    for turn in range(flips):
        path = files[turn % len(files)]
        good = path.read_bytes()
        content = bytearray(good)
        content[int(rng.integers(len(good)))] ^= int(rng.integers(1, 256))
        path.write_bytes(content)
        with pytest.raises(d3.CorruptCaseError) as caught:
            read_all(store)
        assert (caught.value.case_id, caught.value.path) == ("two", str(path))
        path.write_bytes(good)
    read_all(store)


def test_truncated_or_missing_files(overlapping: d3.Store) -> None:
    for path in files_of(overlapping["two"].folder):
        good = path.read_bytes()
        for damage in (good[:-1], good[: len(good) // 2], b"", good + b"\0"):
            path.write_bytes(damage)
            with pytest.raises(d3.CorruptCaseError) as caught:
                overlapping["two"]
            assert (caught.value.case_id, caught.value.path) == ("two", str(path))
        path.unlink()
        with pytest.raises(d3.CorruptCaseError, match="No such file") as caught:
            overlapping["two"]
        assert caught.value.path == str(path)
        path.write_bytes(good)
    read_all(overlapping)


def test_shard_that_vanishes_after_opening(overlapping: d3.Store) -> None:
    case = overlapping["two"]
    for name in ("0/c/0/0/0/0", "labels/instances-2/0/c/0/0/0", "foreground/c/0/0"):
        (case.folder / name).unlink()
    for read in (
        lambda: case.read_patch((0, 0, 0), (4, 4, 4)),
        lambda: case.read_label_patch("instances", (0, 0, 0), (4, 4, 4)),
        lambda: case.foreground,
    ):
        with pytest.raises(d3.CorruptCaseError, match="not readable"):
            read()


@pytest.mark.parametrize("io", ["pread", "mmap"])
def test_case_that_is_replaced_after_opening(
    small_case: Callable[..., Path], tmp_path: Path, io: Literal["pread", "mmap"]
) -> None:
    first = np.ones((1, 40, 40, 40), np.float32)
    small_case(tmp_path, "a", first)
    store = d3.Store.open(tmp_path, io=io)
    unread, begun = d3.Store.open(tmp_path, io=io)["a"], store["a"]
    np.testing.assert_array_equal(begun.read_patch((0, 0, 0), (40, 40, 40)), first)
    shutil.rmtree(unread.folder)
    second = first + 1
    folder = small_case(tmp_path, "a", second)
    assert [unread.files[name]["bytes"] for name in unread.files] == [
        (folder / name).stat().st_size for name in unread.files
    ]
    for case in (unread, pickle.loads(pickle.dumps(unread)), pickle.loads(pickle.dumps(begun))):
        with pytest.raises(d3.StaleCaseError, match="0/c/0/0/0/0: replaced since case 'a' was opened"):
            case.read_patch((0, 0, 0), (40, 40, 40))
    np.testing.assert_array_equal(begun.read_patch((0, 0, 0), (40, 40, 40)), first)  # its file is open still
    found = d3.Case(LocalFolder(folder, store.files), "a")  # not given the old file that the store keeps open
    np.testing.assert_array_equal(found.read_patch((0, 0, 0), (40, 40, 40)), second)


def test_case_in_the_place_of_another(overlapping: d3.Store) -> None:
    folder = overlapping["two"].folder
    other = case_folder(overlapping.root, "other")
    shutil.copytree(folder, other)
    with pytest.raises(d3.CorruptCaseError, match="holds case 'two' of schema 1, wanted 'other'"):
        d3.Store.open(overlapping.root)


def test_case_that_vanished(overlapping: d3.Store) -> None:
    shutil.rmtree(overlapping["two"].folder)
    with pytest.raises(d3.CorruptCaseError, match="No such file"):
        overlapping["two"]
    with pytest.raises(KeyError, match="no case 'two'"):
        d3.Store.open(overlapping.root)["two"]


def test_no_byte_of_the_index_can_change(overlapping: d3.Store) -> None:
    rng = np.random.default_rng(0)
    good_files = {path: path.read_bytes() for path in files_of(overlapping.root / "index.zarr")}
    assert len(good_files) > 30
    for path, good in good_files.items():
        flipped = bytearray(good)
        flipped[int(rng.integers(len(good)))] ^= int(rng.integers(1, 256))
        for damage in (flipped, good[:-1], None):
            path.unlink()
            if damage is not None:
                path.write_bytes(damage)
            with pytest.raises(d3.ManifestError, match="derived: remove") as caught:
                d3.Store.open(overlapping.root)
            assert str(path) in str(caught.value)
            path.write_bytes(good)
    path = overlapping.root / "index.zarr" / "zarr.json"
    path.write_bytes(b"{}")
    assert d3.update_index(overlapping.root).case_ids == ("two",)
    assert {path: path.read_bytes() for path in files_of(overlapping.root / "index.zarr")} == good_files


def test_damaged_record_stops_opening_but_not_the_index(overlapping: d3.Store) -> None:
    path = overlapping["two"].folder / "zarr.json"
    path.write_bytes(path.read_bytes()[:-1])
    assert d3.Store.open(overlapping.root).case_ids == ("two",)  # not looked at: the index has it
    assert d3.update_index(overlapping.root, ["two"]).case_ids == ()
    with pytest.raises(d3.CorruptCaseError, match="'two'"):
        d3.Store.open(overlapping.root)


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(d3.CorruptCaseError("a", "b", "c")))
    assert (error.case_id, error.path, error.reason) == ("a", "b", "c")
    assert str(error) == "case 'a': b: c"
    assert str(d3.CorruptCaseError("whole message")) == "whole message"


def test_unreadable_file(overlapping: d3.Store) -> None:
    path = overlapping["two"].folder / "0" / "zarr.json"
    path.unlink()
    path.mkdir()
    with pytest.raises(d3.CorruptCaseError, match="not readable") as caught:
        overlapping["two"]
    assert caught.value.path == str(path)
