"""Tasks of nnDetection, and the checks that it makes itself."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import girih_data3d as d3
from girih_data3d.formats import read_format

RECORD = {
    "task": "Task017_Lesions",
    "dim": 3,
    "labels": {"0": "benign", "1": "malignant"},
    "modalities": {"0": "CT"},
    "target_class": None,
    "test_labels": True,
    "min_size": 3,
}
CASES = {"a": "plain", "b.c_ö": "flipped", "empty": "empty", "t": "touching"}


def rewrite(root: Path, **changes: Any) -> None:
    content = {key: value for key, value in {**RECORD, **changes}.items() if value != "absent"}
    (root / "dataset.json").write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path: Path, scans: dict[str, Any]) -> Path:
    folder = tmp_path / "det_data" / "Task017_Lesions"
    for suffix, cases in (("Tr", CASES), ("Ts", {"test1": "turned"})):
        for case_id, name in cases.items():
            raw = folder / "raw_splitted"
            scans[name].write(raw / f"images{suffix}" / f"{case_id}_0000.nii.gz")
            scans[name].write(raw / f"labels{suffix}" / f"{case_id}.nii.gz", scans[name].labels())
            instances = {str(number): number - 1 for number in scans[name].boxes}
            record = {"instances": instances, "age": 40}
            (raw / f"labels{suffix}" / f"{case_id}.json").write_text(json.dumps(record))
    (folder / "preprocessed").mkdir()
    (folder / "preprocessed" / "splits_final.pkl").write_bytes(b"never opened")
    rewrite(folder)
    return folder


def test_what_was_planted_comes_out(
    root: Path, scans: dict[str, Any], prepare: Callable[..., d3.Store], assert_planted: Callable[..., None]
) -> None:
    dataset = read_format("nndetection", root)
    assert (dataset.name, dataset.classes) == ("Task017_Lesions", ("benign", "malignant"))
    store = prepare(dataset)
    for case_id, name in {**CASES, "test1": "turned"}.items():
        assert_planted(store, case_id, scans[name], [(n - 1, box) for n, box in scans[name].boxes.items()])
    assert dict(zip(store.index.case_ids, store.index.parts, strict=True)) == {
        **dict.fromkeys(CASES, "train"),
        "test1": "test",
    }
    assert len(store["t"].boxes) == 2  # they touch, and stay apart
    assert store.index.instances.all()  # the case without objects too: samples of all have masks


def test_three_hundred_objects(tmp_path: Path, scans: dict[str, Any], prepare: Callable[..., d3.Store]) -> None:
    raw = tmp_path / "Task001_Many" / "raw_splitted"
    labels = np.zeros(scans["empty"].volume.shape, np.uint16)
    labels[::2, ::2, :9] = np.arange(1, 6 * 8 * 9 + 1).reshape(6, 8, 9)
    scans["empty"].write(raw / "imagesTr" / "a_0000.nii.gz")
    scans["empty"].write(raw / "labelsTr" / "a.nii.gz", labels)
    instances = {str(number): 0 for number in range(1, 433)}
    (raw / "labelsTr" / "a.json").write_text(json.dumps({"instances": instances}))
    rewrite(raw.parent, task="Task001_Many", labels={"0": "dot"})
    assert len(prepare(read_format("nndetection", raw.parent))["a"].boxes) == 432


@pytest.mark.parametrize("given", ["..", "raw_splitted"])
def test_another_level(root: Path, given: str) -> None:
    assert len(read_format("nndetection", root / given).sources) == 5


def test_yaml_with_numbers_as_keys(root: Path) -> None:
    pytest.importorskip("yaml")
    before = read_format("nndetection", root)
    (root / "dataset.json").unlink()
    lines = ["task: Task017_Lesions", "dim: 3", "labels:", "  0: benign", "  1: malignant", "modalities:", "  0: CT"]
    (root / "dataset.yaml").write_text("\n".join([*lines, "test_labels: true"]))
    assert read_format("nndetection", root) == before
    (root / "dataset.yaml").write_text("labels: [")
    with pytest.raises(d3.ManifestError, match=r"dataset.yaml: not a readable dataset.yaml"):
        read_format("nndetection", root)


def test_images_without_labels_are_an_option(root: Path) -> None:
    shutil.rmtree(root / "raw_splitted" / "labelsTs")
    rewrite(root, test_labels=False)
    dataset = read_format("nndetection", root)
    assert (len(dataset.sources), dataset.passed_over) == (4, ("imagesTs/test1_0000.nii.gz: no labels",))
    assert read_format("nndetection", root, unlabelled=True).sources[-1].instances == ()


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        ({"1": 0, "3": 0}, r"a.json: the instances are \['1', '3'\], wanted '1' to '2'"),
        ({"0": 0, "1": 0}, r"the instances are \['0', '1'\]"),
        ({"1": 0, "2": 2}, "instance 2 has class 2, wanted 0 to 1"),
        ({"1": 0, "2": "1"}, "instance 2 has class '1', wanted 0 to 1"),
        ([0, 1], r"instances is \[0, 1\], wanted an object"),
    ],
)
def test_instances_that_cannot_be(root: Path, instances: Any, message: str) -> None:
    (root / "raw_splitted" / "labelsTr" / "a.json").write_text(json.dumps({"instances": instances}))
    with pytest.raises(d3.ManifestError, match=message):
        read_format("nndetection", root)


def test_numbers_of_mask_and_record_differ(root: Path, scans: dict[str, Any], tmp_path: Path) -> None:
    scans["plain"].write(root / "raw_splitted" / "labelsTr" / "a.nii.gz", scans["plain"].labels() * 3)
    report = d3.prepare_many(read_format("nndetection", root), tmp_path / "o", d3.PrepareSpec(), workers=0)
    assert list(report.failed) == ["a"]
    assert "object 3 has no class" in report.failed["a"]


def test_mask_of_a_case_without_objects_is_empty(root: Path, scans: dict[str, Any], tmp_path: Path) -> None:
    scans["empty"].write(root / "raw_splitted" / "labelsTr" / "empty.nii.gz", scans["plain"].labels())
    report = d3.prepare_many(read_format("nndetection", root), tmp_path / "o", d3.PrepareSpec(), workers=0)
    assert list(report.failed) == ["empty"]
    assert "object 1 has no class in instance_classes (2 such objects)" in report.failed["empty"]


def test_labels_without_images_are_passed_over(root: Path) -> None:
    (root / "raw_splitted/labelsTr/z.nii.gz").touch()
    assert read_format("nndetection", root).passed_over == ("labelsTr/z.nii.gz: no images of it",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "Task018_X"}, "task is 'Task018_X', wanted the folder's name, 'Task017_Lesions'"),
        ({"dim": 2}, "dim is 2, wanted 3"),
        ({"labels": {"1": "benign", "2": "malignant"}}, "labels is .*, wanted an object with the keys 0, 1"),
        ({"labels": {}}, "labels is {}, wanted"),
        ({"modalities": {"1": "CT"}}, r"modalities has the numbers \['1'\], wanted 0 to 0"),
        ({"modalities": "absent"}, "channel_names is None"),
    ],
)
def test_records_that_cannot_be(root: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(root, **changes)
    with pytest.raises(d3.ManifestError, match=message):
        read_format("nndetection", root)


@pytest.mark.parametrize("name", ["labelsTr/a.nii.gz", "labelsTr/a.json", "labelsTs/test1.json"])
def test_missing_file(root: Path, name: str) -> None:
    (root / "raw_splitted" / name).unlink()
    with pytest.raises(d3.ManifestError, match=rf"{name}: no such file"):
        read_format("nndetection", root)
