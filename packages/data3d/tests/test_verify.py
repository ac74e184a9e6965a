"""verify: nothing wrong goes unnoticed at its level, and nothing right is called wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import girih_data3d as d3
from girih_data3d.sealed import seal

LEVELS = ("index", "checksum", "decode")


@pytest.mark.parametrize("level", LEVELS)
def test_sound_datasets(prepared: d3.Store, overlapping: d3.Store, level: Any) -> None:
    d3.update_index(prepared.root)
    assert d3.verify(prepared.root, level=level) == d3.Verification(ok=["case0", "case1", "free"])
    assert d3.verify(str(overlapping.root), level=level, workers=1) == d3.Verification(ok=["two"])


def test_only_deeper_levels_look_into_shards(overlapping: d3.Store) -> None:
    path = overlapping["two"].folder / "labels/instances-2/0/c/0/0/0"
    content = bytearray(path.read_bytes())
    content[100] ^= 4
    path.write_bytes(content)
    assert d3.verify(overlapping.root).ok == ["two"]
    for level in ("checksum", "decode"):
        assert d3.verify(overlapping.root, level=level).failed == {"two": f"{path}: fails its checksum"}
    path.write_bytes(content[:-1])
    assert "bytes, wanted" in d3.verify(overlapping.root).failed["two"]


def test_files_and_folders_that_do_not_belong(overlapping: d3.Store) -> None:
    folder = overlapping["two"].folder
    (folder / "0" / "notes.txt").write_text("mine")
    (overlapping.root / "cases" / "README").write_text("")
    (overlapping.root / "cases" / "00").mkdir()
    (overlapping.root / "cases" / "00" / "odd").mkdir()
    assert d3.verify(overlapping.root) == d3.Verification(
        failed={
            "two": f"{folder / '0' / 'notes.txt'}: not a file of this case (1 such files)",
            "cases/README": "not a case of this dataset",
            "cases/00/odd": "not a case of this dataset",
        }
    )


def test_index_and_folders(overlapping: d3.Store, small_case: Callable[..., Path]) -> None:
    root = overlapping.root
    volume = np.zeros((1, 3, 3, 3), np.float32)
    for case_id in ("gone", "again", "other spec"):
        small_case(root, case_id, volume)
    d3.update_index(root)
    shutil.rmtree(d3.Store.open(root)["gone"].folder)
    small_case(root, "later", volume)
    for case_id, spec in (("again", d3.PrepareSpec()), ("other spec", d3.PrepareSpec(crop=None))):
        shutil.rmtree(d3.Store.open(root)[case_id].folder)
        small_case(root, case_id, volume + 1, spec=spec)
    small_case(root, "new", volume)  # dataset.json is of the first spec again
    found = d3.verify(root)
    assert found.ok == ["two"]
    assert found.failed["gone"] == "in the index, but its folder is gone"
    assert "not in the index" in found.failed["later"]
    assert "prepared again since the index" in found.failed["again"]
    assert "prepared with spec" in found.failed["other spec"]
    d3.update_index(root, ["again"])
    assert d3.verify(root).ok == ["again", "later", "new", "two"]


def test_damaged_index_and_record_of_the_dataset(overlapping: d3.Store) -> None:
    (overlapping.root / "index.zarr" / "boxes" / "zarr.json").unlink()
    (overlapping.root / "dataset.json").write_text("{}")
    found = d3.verify(overlapping.root, level="decode")
    assert found.ok == ["two"]
    assert sorted(found.failed) == ["dataset.json", "index.zarr"]
    assert "boxes/zarr.json: not readable" in found.failed["index.zarr"]
    shutil.rmtree(overlapping.root / "index.zarr")
    assert "missing" in d3.verify(overlapping.root).failed["index.zarr"]


def change(case: d3.Case, **changes: Any) -> None:
    """Give a case other records under a checksum that is right."""
    import zarr

    attributes = zarr.open_group(case.folder, mode="r").attrs.asdict()
    (case.folder / "zarr.json").unlink()
    attributes["girih"] |= changes
    seal(case.folder, attributes)


@pytest.mark.parametrize(
    ("row", "field", "value", "message"),
    [
        (0, "voxels", 4334, "object 0 has 4335 voxels, 4334 are recorded"),
        (1, "box", [5, 6, 7, 9, 9, 12], "object 1 has the box"),
        (2, "layer", 1, "90 voxels belong to no recorded object"),
    ],
)
def test_labels_that_are_not_the_recorded_ones(
    overlapping: d3.Store, row: int, field: str, value: Any, message: str
) -> None:
    case = overlapping["two"]
    objects = [
        {"id": 5, "class": 1, "ignore": False, "box": [3, 4, 5, 20, 19, 22], "voxels": 17 * 15 * 17, "layer": 0},
        {"id": 9, "class": 0, "ignore": False, "box": [5, 6, 7, 9, 9, 11], "voxels": 4 * 3 * 4, "layer": 1},
        {"id": 2, "class": 0, "ignore": True, "box": [30, 30, 30, 33, 35, 36], "voxels": 3 * 5 * 6, "layer": 0},
    ]
    change(case, objects=objects)
    d3.update_index(overlapping.root, ["two"])
    assert d3.verify(overlapping.root, level="decode").ok == ["two"]
    objects[row][field] = value
    change(case, objects=objects)
    d3.update_index(overlapping.root, ["two"])
    assert d3.verify(overlapping.root, level="checksum").ok == ["two"]
    assert message in d3.verify(overlapping.root, level="decode").failed["two"]


def test_values_that_are_not_finite(small_case: Callable[..., Path], tmp_path: Path) -> None:
    volume = np.zeros((1, 70, 4, 4), np.float32)
    volume[0, 66, 1, 1] = np.nan
    small_case(tmp_path, "nan", volume, spec=d3.PrepareSpec(dtype="float32"))
    d3.update_index(tmp_path)
    assert d3.verify(tmp_path, level="checksum").ok == ["nan"]
    assert "1 values are not finite" in d3.verify(tmp_path, level="decode").failed["nan"]


def test_foreground_that_is_not_on_the_labels(
    small_case: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = np.array([[1, 0, 0, 0], [1, 69, 3, 3], [1, 70, 0, 0]], np.uint16)
    monkeypatch.setattr("girih_data3d.case_writer.sample_foreground", lambda *_, **__: wrong)
    labels = np.zeros((70, 4, 4), np.int16)
    labels[0, 0, 0] = 1
    small_case(tmp_path, "a", np.zeros((1, 70, 4, 4), np.float32), semantic=labels)
    d3.update_index(tmp_path)
    assert "2 rows do not agree with the labels, first [1, 69, 3, 3]" in d3.verify(tmp_path, level="decode").failed["a"]


def test_many_cases_in_other_processes(small_case: Callable[..., Path], tmp_path: Path) -> None:
    for n in range(5):
        small_case(tmp_path, str(n), np.full((1, 3, 3, 3), n, np.float32))
    d3.update_index(tmp_path)
    (d3.Store.open(tmp_path)["3"].folder / "0/zarr.json").write_text("{}")
    found = d3.verify(tmp_path, level="decode", workers=2)
    assert found.ok == ["0", "1", "2", "4"]
    assert "bytes, wanted" in found.failed["3"]


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers -1"):
        d3.verify(tmp_path, workers=-1)
