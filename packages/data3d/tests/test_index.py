"""The index: what it says, how it follows the cases, and that a hundred thousand of them are no burden."""

import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import girih_data3d as d3
import girih_data3d.index
from girih_data3d.checksum import BLANK, checked_text
from girih_data3d.folder import DamageError
from girih_data3d.index import table_of, write_index
from girih_data3d.layout import SCHEMA, case_folder, case_key
from girih_data3d.sealed import seal

MakeCase = Callable[..., Path]


def add(make: MakeCase, root: Path, case_id: str, boxes: list[list[float]], ignored: int = 0) -> None:
    objects = [
        {"id": k, "class": k % 2, "ignore": k >= len(boxes) - ignored, "box": box} for k, box in enumerate(boxes)
    ]
    volume = np.random.default_rng(len(boxes)).normal(0, 1, (1 + len(boxes), 4, 5, 6)).astype(np.float32)
    make(root, case_id, volume, objects=objects)


@pytest.fixture
def root(small_case: MakeCase, tmp_path: Path) -> Path:
    add(small_case, tmp_path, "b", [[0, 0, 0, 1, 1, 1], [1, 1, 1, 2, 3, 4], [0, 0, 0, 4, 5, 6]], ignored=1)
    add(small_case, tmp_path, "Müller 王", [])
    add(small_case, tmp_path, "a", [[1.5, 1, 1, 2, 2, 2]])
    return tmp_path


def assert_same(one: d3.CaseIndex, other: d3.CaseIndex) -> None:
    for name, column in vars(one).items():
        assert type(vars(other)[name]) is type(column)
        if isinstance(column, tuple):
            assert vars(other)[name] == column
        else:
            assert vars(other)[name].dtype == column.dtype
            np.testing.assert_array_equal(vars(other)[name], column, strict=True)


def test_columns(root: Path) -> None:
    index = d3.Store.open(root).index
    assert index.case_ids == ("Müller 王", "a", "b")
    assert index.patient_ids == ("p-Müller 王", "p-a", "p-b")
    assert index.modalities == ("CT",) * 3
    assert index.channels.tolist() == [1, 2, 4]
    assert index.shapes.tolist() == [[4, 5, 6]] * 3
    np.testing.assert_allclose(index.spacings_mm, [[2, 0.9, 0.8]] * 3)
    assert index.labels.tolist() == [0, 0, 1]
    assert index.box_case.tolist() == [1, 2, 2]
    assert index.boxes.tolist() == [[1.5, 1, 1, 2, 2, 2], [0, 0, 0, 1, 1, 1], [1, 1, 1, 2, 3, 4]]
    assert index.boxes.dtype == np.float32
    for row, case_id in enumerate(index.case_ids):
        folder = case_folder(root, case_id)
        assert index.bytes[row] == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    assert [index.row(case_id) for case_id in ("Müller 王", "a", "aa", "b", "c", "")] == [0, 1, None, 2, None, None]


def test_written_and_read_again(root: Path) -> None:
    fresh = d3.Store.open(root).index  # from the cases
    assert_same(d3.update_index(root), fresh)
    store = d3.Store.open(root)
    assert_same(store.index, fresh)
    assert_same(pickle.loads(pickle.dumps(store)).index, fresh)
    assert all(index is not None for index in map(store.index.row, store))
    columns = zarr.open_group(root / "index.zarr", mode="r")
    ends = columns["case_ids_ends"][:]
    assert columns["case_ids"][: ends[0]].tobytes().decode() == "Müller 王"


def test_rows_taken_in_any_order(root: Path) -> None:
    index = d3.Store.open(root).index
    some = index.take([2, 0, 2])
    assert some.case_ids == ("b", "Müller 王", "b")
    assert some.box_case.tolist() == [0, 0, 2, 2]
    assert some.boxes.tolist() == index.boxes[[1, 2, 1, 2]].tolist()
    assert len(index.take([])) == len(index.take([]).boxes) == 0


def test_empty_dataset(root: Path) -> None:
    shutil.rmtree(root / "cases")
    assert len(d3.update_index(root)) == 0
    assert d3.Store.open(root).case_ids == ()


def test_contents_do_not_depend_on_the_copy_of_the_source(own_source: Path, tmp_path: Path) -> None:
    dataset, spec = d3.read_manifest(own_source), d3.PrepareSpec()
    one, other = (tmp_path / name for name in ("one", "other"))
    d3.prepare_many(dataset, one, spec, workers=0)
    for path in own_source.iterdir():
        os.utime(path)
    d3.prepare_many(dataset, other, spec, workers=0)
    before, after = d3.Store.open(one).index, d3.Store.open(other).index
    assert (before.checksums != after.checksums).all()
    np.testing.assert_array_equal(before.contents, after.contents)
    assert len(set(before.contents.tolist())) == 3


def test_follows_what_happens_to_the_cases(root: Path, small_case: MakeCase) -> None:
    d3.update_index(root)
    add(small_case, root, "ab", [[0, 0, 0, 1, 1, 1]])
    shutil.rmtree(case_folder(root, "a"))
    shutil.rmtree(case_folder(root, "b"))
    add(small_case, root, "b", [])
    store = d3.Store.open(root)
    assert store.case_ids == ("Müller 王", "ab", "b")
    assert store["ab"].boxes.tolist() == [[0, 0, 0, 1, 1, 1]]
    with pytest.raises(d3.StaleCaseError, match=r"prepared again since the index was written; call update_index"):
        store["b"]
    assert d3.update_index(root, ["ab"]).labels.tolist() == [0, 0, 1]  # nobody said that b changed
    assert d3.update_index(root).labels.tolist() == [0]
    assert d3.Store.open(root)["b"].boxes.tolist() == []


def test_nothing_is_written_if_nothing_changed(root: Path) -> None:
    d3.update_index(root)
    before = (root / "index.zarr").stat().st_ino
    d3.update_index(root, ["a", "b"])
    assert (root / "index.zarr").stat().st_ino == before
    shutil.rmtree(root / "index.zarr")
    d3.update_index(str(root))
    assert (root / "index.zarr").is_dir()
    assert list((root / ".tmp").iterdir()) == []


def test_writers_that_overtake_each_other(root: Path, small_case: MakeCase, monkeypatch: pytest.MonkeyPatch) -> None:
    d3.update_index(root)
    real, calls = girih_data3d.index.write_index, []

    def replace(case_id: str) -> None:
        shutil.rmtree(case_folder(root, case_id))
        add(small_case, root, case_id, [])

    def write(folder: Path, index: d3.CaseIndex) -> None:
        if not calls:
            calls.append(folder)
            replace("a")
            d3.update_index(root, ["a"])
        real(folder, index)

    monkeypatch.setattr("girih_data3d.index.write_index", write)
    replace("b")
    assert len(d3.update_index(root, ["b"]).labels) == 0
    assert d3.verify(root).failed == {}


def test_index_that_is_replaced_while_it_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = d3.update_index(root)
    shutil.rmtree(case_folder(root, "a"))
    real, calls = girih_data3d.index.read_index, []

    def read(folder: Any) -> d3.CaseIndex:
        if not calls:
            calls.append(folder)
            d3.update_index(root)
            raise DamageError(folder.locate("boxes"), "missing")
        return real(folder)

    monkeypatch.setattr("girih_data3d.index.read_index", read)
    assert d3.Store.open(root).case_ids == ("Müller 王", "b")
    assert len(before) == 3


def test_an_index_without_the_later_columns(root: Path, small_case: MakeCase) -> None:
    d3.update_index(root)
    folder = root / "index.zarr"
    for name in ("series_uids", "parts", "scan_sha256"):
        shutil.rmtree(folder / name)
        shutil.rmtree(folder / f"{name}_ends")
    shutil.rmtree(folder / "valid")
    seal(folder, {"girih": {"schema": SCHEMA}})
    index = d3.Store.open(root).index
    assert index.series_uids == index.parts == index.scan_sha256 == (None,) * 3
    assert index.valid.tolist() == [False] * 3
    assert index.patient_ids == ("p-Müller 王", "p-a", "p-b")
    add(small_case, root, "ab", [])
    assert d3.update_index(root).case_ids == ("Müller 王", "a", "ab", "b")
    assert d3.Store.open(root).index.parts == (None,) * 4
    assert d3.verify(root).failed == {}


def test_what_leaks_is_in_the_index(tmp_path: Path) -> None:
    for n in range(3):
        values = np.zeros((3, 4, 5), np.int16)
        values[n, :, :n] = 1  # nothing where n is 0
        d3.write_nifti(values, tmp_path / f"{n}.nii", affine=np.eye(4))
    images = [(tmp_path / "0.nii", tmp_path / "1.nii"), (tmp_path / "0.nii",), (tmp_path / "2.nii",)]
    uids, parts = ("1.2", None, "1.3 with a blank"), ("train", "val", None)
    sources = tuple(
        d3.CaseSource(str(n), images[n], series_uid=uids[n], part=parts[n], modality="MR") for n in range(3)
    )
    d3.prepare_many(d3.Dataset("x", (), sources), tmp_path / "out", d3.PrepareSpec(), workers=0)
    for index in (d3.Store.open(tmp_path / "out").index, d3.update_index(tmp_path / "out")):
        assert (index.series_uids, index.parts) == (uids, parts)
        first, second, third = index.scan_sha256
        assert second == ()  # of a constant scan: known, and no evidence
        assert [len(one or ()) for one in (first, third)] == [1, 1]
        assert first != third
        assert index.take([2, 0]).scan_sha256 == (third, first)


def test_index_of_another_schema(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    d3.update_index(root)
    monkeypatch.setattr("girih_data3d.index.SCHEMA", 9)
    with pytest.raises(d3.ManifestError, match="schema 1, wanted 9"):
        d3.Store.open(root)


def test_a_hundred_thousand_cases() -> None:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        root, count = Path(folder), 100_000
        rows: list[dict[str, Any]] = [
            {
                "case_ids": f"1.3.6.1.4.{n:06d}",
                "patient_ids": f"patient-{n // 2}",
                "modalities": ("CT", None)[n % 2],
                "series_uids": (f"1.2.840.{n}", None)[n % 2],
                "parts": ("train", "val", None)[n % 3],
                "scan_sha256": ((f"{n:064x}",), (f"{n:064x}", f"{n + 1:064x}"), None)[n % 3],
                "checksums": n,
                "contents": n // 2,
                "bytes": 65_000_000 + n,
                "channels": 1,
                "shapes": [n, 410, 410],
                "spacings_mm": (1.0, 1.0, 1.0),
                "annotated": True,
                "instances": False,
                "semantic": n % 3 == 0,
                "valid": n % 5 == 0,
                "boxes": [[n, 1, 2, 3, 4, 5]] * (n % 3),
                "labels": [0] * (n % 3),
            }
            for n in range(count)
        ]
        spec = d3.PrepareSpec()
        record = {"schema": SCHEMA, "name": "many", "classes": ["a"], "spec": spec.to_json(), "spec_hash": spec.sha256}
        (root / "dataset.json").write_bytes(checked_text({**record, "checksum": BLANK}))
        written = table_of(rows)
        write_index(root / "index.zarr", written)
        for k in range(256):
            (root / "cases" / f"{k:02x}").mkdir(parents=True)
        folders = [f"{root}/{case_key(case_id)}" for case_id in written.case_ids]
        for path in folders:
            os.mkdir(path)  # noqa: PTH102 - a Path for each takes longer than the folder
        assert_same(d3.Store.open(root).index, written)
        for row in (7, count - 1):
            Path(folders[row]).rmdir()
        index = d3.Store.open(root).index
        assert len(index) == count - 2
        kept = np.delete(np.arange(count), [7, count - 1])
        np.testing.assert_array_equal(index.shapes[:, 0], kept)
        np.testing.assert_array_equal(index.boxes[:, 0], np.repeat(kept, kept % 3))
        for row in kept.tolist():  # much faster than the removal of a tree
            os.rmdir(folders[row])  # noqa: PTH106
