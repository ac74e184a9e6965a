"""The record of a split: what it refuses, its file, and whether it fits a dataset."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import girih_data3d as d3
from girih_data3d.splits import Fold, Split, members, read_split

SPLIT = Split("toy", "by hand", 3, (Fold(("a", "b"), ("c",)), Fold(("c",), ("a", "b"), ("Müller 王",))), ("z",))
IMAGE = (Path("image.nii.gz"),)


def toy(**patients: str) -> d3.Dataset:
    return d3.Dataset("toy", ("x",), tuple(d3.CaseSource(c, IMAGE, patient_id=p) for c, p in patients.items()))


def test_parts_of_a_fold() -> None:
    assert SPLIT.parts() == {"train": ("a", "b"), "val": ("c",), "test": ("z",)}
    assert SPLIT.parts(1)["test"] == ("z", "Müller 王")
    with pytest.raises(ValueError, match="fold is 2, wanted 0 to 1"):
        SPLIT.parts(2)


def test_written_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "made" / "split.json"
    SPLIT.write(path)
    path.write_text("an older one")
    SPLIT.write(path)
    assert read_split(path) == SPLIT
    assert list(path.parent.iterdir()) == [path]
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["folds"][0] == {"train": ["a", "b"], "val": ["c"]}
    assert {key: record[key] for key in ("schema", "dataset", "seed", "test")} == {
        "schema": 1,
        "dataset": "toy",
        "seed": 3,
        "test": ["z"],
    }
    assert '  "a",\n' in path.read_text(encoding="utf-8")  # one id a line: diffable


def test_a_failed_write_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "split.json"
    SPLIT.write(path)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        Split("other", "by hand", 0, (Fold(("a",), ()),)).write(path)
    assert read_split(path) == SPLIT
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("folds", "test", "message"),
    [
        ((), (), "folds is empty"),
        ((Fold((), ("a",)),), (), "folds[0]: train is empty"),
        ((Fold(("a",), ()), Fold(("a", "b"), ("b",))), (), "folds[1]: case 'b' is in train and in val"),
        ((Fold(("a",), ("b",)),), ("b",), "folds[0]: case 'b' is in val and in test"),
        ((Fold(("a",), ("b",), ("c",)),), ("c",), "folds[0]: case 'c' is twice in test"),
        ((Fold(("a", "a"), ("b",)),), (), "folds[0]: case 'a' is twice in train"),
    ],
)
def test_what_a_split_refuses(folds: tuple[Fold, ...], test: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Split("toy", "by hand", 0, folds, test)
    path = tmp_path / "split.json"  # and the same words for a file that somebody edited
    record = {"schema": 1, "dataset": "toy", "rule": "by hand", "seed": 0, "test": list(test)}
    path.write_text(json.dumps({**record, "folds": [vars(fold) for fold in folds]}))
    with pytest.raises(d3.ManifestError, match=re.escape(f"{path}: {message}")):
        read_split(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema is 2, wanted 1"),
        ({"seed": -1}, "seed is -1, wanted a whole number"),
        ({"seed": True}, "seed is True"),
        ({"folds": {}}, "folds is {}, wanted a list"),
        ({"folds": [{"train": ["a"]}]}, "folds[0]: key 'val' is missing"),
        ({"folds": [{"train": ["a"], "val": [1]}]}, "folds[0]: val is [1], wanted a list of texts"),
        ({"folds": [{"train": ["a"], "val": [], "valid": []}]}, "folds[0]: unknown key 'valid'"),
        ({"test": "z"}, "test is 'z', wanted a list of texts"),
        ({"rule": ""}, "rule is '', wanted text"),
        ({"fold": 0}, "unknown key 'fold'"),
    ],
)
def test_files_that_are_no_split(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    record = {"schema": 1, "dataset": "toy", "rule": "r", "seed": 0, "folds": [{"train": ["a"], "val": []}]}
    path.write_text(json.dumps(record | change))
    with pytest.raises(d3.ManifestError, match=re.escape(f"{path}: {message}")):
        read_split(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(d3.ManifestError, match=r"not a readable split\.json"):
        read_split(tmp_path / "split.json")


def test_fits_a_dataset() -> None:
    split = Split("toy", "by hand", 0, (Fold(("a", "b"), ("c",)),), ("z",))
    split.check(toy(a="1", b="1", c="2", z="3", left_out="1"))
    with pytest.raises(ValueError, match=r"folds\[0\]: val names case 'c', which dataset 'toy' with its 2 cases lacks"):
        split.check(toy(a="1", b="1"))
    with pytest.raises(ValueError, match="the split is of dataset 'toy', found dataset 'other'"):
        split.check(replace(toy(a="1", b="1", c="2", z="3"), name="other"))
    found = r"folds\[0\]: patient '1' is in train \(case 'b'\) and in test \(case 'z'\)"
    with pytest.raises(ValueError, match=found):
        split.check(toy(a="2", b="1", c="3", z="1"))


def test_a_patient_may_train_in_one_fold_and_validate_in_another() -> None:
    Split("toy", "by hand", 0, (Fold(("a",), ("b",)), Fold(("b",), ("a",)))).check(toy(a="1", b="2"))


def test_members_of_a_prepared_dataset(prepared: d3.Store, source: Path) -> None:
    found = {member.case_id: member for member in members(prepared)}
    assert {key: (m.patient_id, m.annotated, m.objects) for key, m in found.items()} == {
        "case0": ("p0", True, 2),  # the third is to be ignored
        "case1": ("p1", True, 2),
        "free": ("free", False, None),
    }
    before = members(d3.read_manifest(source))
    assert [(m.case_id, m.patient_id, m.annotated) for m in before] == [
        (m.case_id, m.patient_id, m.annotated) for m in found.values()
    ]


def test_members_of_a_dataset_still_to_prepare() -> None:
    sphere = d3.ObjectLabel(0, center_ras_mm=(0, 0, 0), diameter_mm=3)
    ignored = d3.ObjectLabel(0, center_ras_mm=(0, 0, 0), diameter_mm=3, ignore=True)
    sources = (
        d3.CaseSource("c", IMAGE, objects=(sphere, ignored), part="train"),
        d3.CaseSource("b", IMAGE, objects=()),
        d3.CaseSource("a", IMAGE, instances=IMAGE),
    )
    found = members(d3.Dataset("toy", ("x",), sources))
    assert [(m.case_id, m.part, m.annotated, m.objects) for m in found] == [
        ("a", None, True, None),
        ("b", None, True, 0),
        ("c", "train", True, 1),
    ]


@pytest.mark.parametrize(
    ("part", "known"),
    [("Training", "train"), ("VALID", "val"), ("validation", "val"), ("Testing", "test"), ("Extern", "Extern")],
)
def test_official_parts_however_they_are_spelt(part: str, known: str) -> None:
    (found,) = members(d3.Dataset("toy", (), (d3.CaseSource("a", IMAGE, part=part),)))
    assert found.part == known
