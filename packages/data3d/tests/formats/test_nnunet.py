"""Raw datasets of nnU-Net, both versions: channels, labels, regions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import girih_data3d as d3
from girih_data3d.formats import read_format

UID = "1.2.840.Größe.7"
VERSION_2 = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "edema": 1, "core": 2, "whole": [1, 2]},
    "regions_class_order": [1, 2],
    "numTraining": 4,
    "file_ending": ".nrrd",
}


def labels_of(scan: Any) -> np.ndarray:
    """Return object 1 as edema, the others as core."""
    labels = scan.labels()
    return np.where(labels > 1, 2, labels).astype(np.uint8)


def rewrite(folder: Path, **changes: Any) -> None:
    content = {**VERSION_2, **changes}
    (folder / "dataset.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


@pytest.fixture
def root(tmp_path: Path, scans: dict[str, Any]) -> Path:
    folder = tmp_path / "nnUNet_raw" / "Dataset017_Lesions"
    for case_id, name in {"a": "plain", "b_0001": "flipped", "empty": "empty", UID: "touching"}.items():
        for channel in (0, 1):
            scans[name].write(folder / "imagesTr" / f"{case_id}_{channel:04}.nrrd")
        scans[name].write(folder / "labelsTr" / f"{case_id}.nrrd", labels_of(scans[name]))
    for channel in (0, 1):
        scans["turned"].write(folder / "imagesTs" / f"t_{channel:04}.nrrd")
    rewrite(folder)
    return folder


def test_labels_are_classes(
    root: Path, scans: dict[str, Any], prepare: Callable[..., d3.Store], assert_planted: Callable[..., None]
) -> None:
    dataset = read_format("nnunet", root, objects="core, edema")
    assert (dataset.name, dataset.classes) == ("Dataset017_Lesions", ("core", "edema"))
    store = prepare(dataset)
    for case_id, name in {"a": "plain", "b_0001": "flipped", "empty": "empty", UID: "touching"}.items():
        objects = [(0 if number > 1 else 1, box) for number, box in scans[name].boxes.items()]
        assert_planted(store, case_id, scans[name], objects)
        assert store[case_id].shape[0] == 2
        semantic = store[case_id].read_label_patch("semantic", (0, 0, 0), (12, 16, 20))
        np.testing.assert_array_equal(semantic, labels_of(scans[name]))
    assert store.index.parts == ("train",) * 4


def test_regions_are_unions_and_may_overlap(
    root: Path, scans: dict[str, Any], prepare: Callable[..., d3.Store], assert_planted: Callable[..., None]
) -> None:
    store = prepare(read_format("nnunet", root, objects="whole,core"))
    touching = scans["touching"]
    assert_planted(store, UID, touching, [(0, touching.hull(1, 2)), (1, touching.boxes[2])])


def test_without_objects_there_are_tissues_only(root: Path, prepare: Callable[..., d3.Store]) -> None:
    dataset = read_format("nnunet", root)
    assert dataset.classes == ()
    case = prepare(dataset)["a"]
    assert (case.label_kinds, case.truth) == (("semantic",), None)


def test_labelled_test_set(root: Path, scans: dict[str, Any]) -> None:
    dataset = read_format("nnunet", root)
    assert (len(dataset.sources), dataset.passed_over[0]) == (4, "imagesTs/t_0000.nrrd: no labelsTs")
    assert read_format("nnunet", root, unlabelled=True).sources[-1].semantic is None
    scans["turned"].write(root / "labelsTs" / "t.nrrd", labels_of(scans["turned"]))
    last = read_format("nnunet", root, objects="core").sources[-1]
    assert (last.case_id, last.part, last.semantic) == ("t", "test", root / "labelsTs" / "t.nrrd")


def test_version_1(tmp_path: Path, scans: dict[str, Any]) -> None:
    folder = tmp_path / "Task001_X"
    scans["plain"].write(folder / "imagesTr" / "a_0000.nii.gz")
    scans["plain"].write(folder / "labelsTr" / "a.nii.gz", labels_of(scans["plain"]))
    (folder / "imagesTr" / "._a_0000.nii.gz").touch()
    content = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "edema", "2": "core"}, "numTraining": 1}
    (folder / "dataset.json").write_text(json.dumps(content))
    dataset = read_format("nnunet", tmp_path, objects="core")
    assert (dataset.classes, dataset.sources[0].modality) == (("core",), "CT")
    content["labels"] = {"0": "background", "1": "core", "2": "core"}
    (folder / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(d3.ManifestError, match="label 'core' has the values 1 and 2, wanted one"):
        read_format("nnunet", tmp_path)


def test_label_outside_the_declared_ones(root: Path, scans: dict[str, Any], tmp_path: Path) -> None:
    scans["plain"].write(root / "labelsTr" / "a.nrrd", scans["plain"].labels() * 4)
    for objects in ("core", ""):
        dataset = read_format("nnunet", root, objects=objects)
        report = d3.prepare_many(dataset, tmp_path / f"o{objects}", d3.PrepareSpec(), workers=0)
        assert list(report.failed) == ["a"]
        assert "a.nrrd: label 4 (2 such labels), wanted 0 or one of [1, 2]" in report.failed["a"]


def test_missing_files(root: Path) -> None:
    (root / "labelsTr" / "a.nrrd").unlink()
    with pytest.raises(d3.ManifestError, match=r"labelsTr/a.nrrd: no such file, the label of case 'a'"):
        read_format("nnunet", root)
    (root / "imagesTr" / "a_0000.nrrd").unlink()
    with pytest.raises(d3.ManifestError, match=r"imagesTr/a_0000.nrrd: no such file, channel 0 of case 'a'"):
        read_format("nnunet", root)


def test_label_without_images(root: Path, scans: dict[str, Any]) -> None:
    scans["plain"].write(root / "labelsTr" / "z.nrrd", labels_of(scans["plain"]))
    with pytest.raises(d3.ManifestError, match=r"labelsTr/z.nrrd: a label without images \(1 such files\)"):
        read_format("nnunet", root)


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.nrrd", "wanted a name such as case_0000.nrrd"), ("a_0002.nrrd", "channel 2, but dataset.json has 2 channels")],
)
def test_names_that_are_none(root: Path, name: str, message: str) -> None:
    (root / "imagesTr" / name).touch()
    with pytest.raises(d3.ManifestError, match=message):
        read_format("nnunet", root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"numTraining": 5}, "numTraining is 5, but imagesTr has 4 cases; partial=true takes them"),
        ({"channel_names": {"1": "T1", "2": "T2"}}, r"channel_names has the numbers \['1', '2'\], wanted 0 to 1"),
        ({"channel_names": None}, "channel_names is None, wanted an object"),
        ({"labels": {"background": 0, "core": "two"}}, "label 'core' has the value 'two', wanted whole numbers"),
        ({"labels": ["core"]}, r"labels is \['core'\], wanted an object"),
        ({"file_ending": "nrrd"}, "file_ending is 'nrrd', wanted one such as '.nii.gz'"),
    ],
)
def test_records_that_cannot_be(root: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(root, **changes)
    with pytest.raises(d3.ManifestError, match=message):
        read_format("nnunet", root)


@pytest.mark.parametrize("objects", ["liver", "background", "core,,edema", "ignore", "all"])
def test_objects_that_are_no_labels(root: Path, objects: str) -> None:
    rewrite(root, labels={**VERSION_2["labels"], "ignore": 3, "all": [0, 1, 2]})  # type: ignore[dict-item]
    with pytest.raises(d3.ManifestError, match=r"objects names '.*', wanted labels from edema, core, whole"):
        read_format("nnunet", root, objects=objects)


def test_fewer_cases_than_stated(root: Path) -> None:
    rewrite(root, numTraining=100)
    assert len(read_format("nnunet", root, partial=True).sources) == 4
