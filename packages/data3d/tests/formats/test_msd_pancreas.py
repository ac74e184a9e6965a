"""MSD Pancreas in its true layout: pairs of dataset.json, components of the cancer, what macOS leaves behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import girih_data3d as d3
from girih_data3d.formats import read_format

Prepare = Callable[[d3.Dataset], d3.Store]


def classes_of(scan: Any) -> np.ndarray:
    """Return cancer in the place of all objects, in one plane of pancreas."""
    labels = (scan.labels() > 0).astype(np.uint8) * 2
    labels[11] = 1
    return labels


def write(folder: Path, scans: dict[str, Any]) -> dict[str, Any]:
    training = []
    for name in ("plain", "flipped", "empty", "touching"):
        path = f"pancreas_{name}.nii.gz"
        scans[name].write(folder / "imagesTr" / path)
        scans[name].write(folder / "labelsTr" / path, classes_of(scans[name]))
        training.append({"image": f"./imagesTr/{path}", "label": f"./labelsTr/{path}"})
    scans["plain"].write(folder / "imagesTs" / "pancreas_002.nii.gz")
    for junk in ("imagesTr/._pancreas_plain.nii.gz", "labelsTr/._pancreas_plain.nii.gz", "imagesTs/._a.nii.gz"):
        (folder / junk).write_bytes(b"\0\5\26\7")
    content = {
        "name": "Pancreas",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "pancreas", "2": "cancer"},
        "numTraining": 4,
        "numTest": 1,
        "training": training,
        "test": ["./imagesTs/pancreas_002.nii.gz"],
    }
    return rewrite(folder, content)


def rewrite(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    (folder / "dataset.json").write_text(json.dumps(content))
    return content


@pytest.fixture
def root(tmp_path: Path, scans: dict[str, Any]) -> Path:
    folder = tmp_path / "raw" / "Task07_Pancreas"
    write(folder, scans)
    return folder


def test_what_was_planted_comes_out(
    root: Path, scans: dict[str, Any], prepare: Prepare, assert_planted: Callable[..., None]
) -> None:
    dataset = read_format("msd-pancreas", root)
    assert (dataset.name, dataset.classes) == ("msd-pancreas", ("cancer",))
    store = prepare(dataset)
    for name, boxes in {
        "plain": [scans["plain"].hull(1), scans["plain"].hull(2)],
        "flipped": [scans["flipped"].hull(1), scans["flipped"].hull(2)],
        "empty": [],
        "touching": [scans["touching"].hull(1, 2)],
    }.items():
        case_id = f"pancreas_{name}"
        assert_planted(store, case_id, scans[name], [(0, box) for box in boxes])
        semantic = store[case_id].read_label_patch("semantic", (0, 0, 0), store[case_id].shape[1:])
        np.testing.assert_array_equal(semantic, classes_of(scans[name]))
        assert store[case_id].modality == "CT"
    assert store.index.parts == ("train",) * 4


def test_small_components_are_dropped(root: Path, scans: dict[str, Any], prepare: Prepare) -> None:
    labels = classes_of(scans["empty"])
    labels[0, 0, :2], labels[0, 8, :3] = 2, 2
    scans["empty"].write(root / "labelsTr" / "pancreas_empty.nii.gz", labels)
    store = prepare(read_format("msd-pancreas", root))
    assert store["pancreas_empty"].boxes.tolist() == [[0, 8, 0, 1, 9, 3]]


def test_images_without_labels_are_an_option(root: Path) -> None:
    sources = {source.case_id: source for source in read_format("msd-pancreas", root, unlabelled=True).sources}
    assert len(sources) == 5
    assert sources["pancreas_002"].rule is None
    assert sources["pancreas_002"].part == "test"


@pytest.mark.parametrize("given", ["..", "imagesTr"])
def test_another_level(root: Path, given: str) -> None:
    assert len(read_format("msd-pancreas", root / given).sources) == 4


def test_wrong_count(root: Path) -> None:
    content = json.loads((root / "dataset.json").read_text())
    rewrite(root, {**content, "numTraining": 281})
    with pytest.raises(d3.ManifestError, match=r"numTraining is 281, but 4 pairs are listed; partial=true"):
        read_format("msd-pancreas", root)
    assert len(read_format("msd-pancreas", root, partial=True).sources) == 4


@pytest.mark.parametrize(("folder", "what"), [("imagesTr", "image"), ("labelsTr", "label")])
def test_missing_file_of_a_pair(root: Path, folder: str, what: str) -> None:
    (root / folder / "pancreas_plain.nii.gz").unlink()
    with pytest.raises(
        d3.ManifestError, match=rf"{folder}/pancreas_plain\.nii\.gz: no such file, the {what} of case 'pancreas_plain'"
    ):
        read_format("msd-pancreas", root)
    if what == "image":
        dataset = read_format("msd-pancreas", root, partial=True)
        assert len(dataset.sources) == 3
        assert dataset.passed_over[0] == "imagesTr/pancreas_plain.nii.gz: no such file"
    else:
        with pytest.raises(d3.ManifestError, match="the label of case 'pancreas_plain'"):
            read_format("msd-pancreas", root, partial=True)


def test_label_outside_the_declared_ones(root: Path, scans: dict[str, Any], tmp_path: Path) -> None:
    scans["plain"].write(root / "labelsTr" / "pancreas_plain.nii.gz", scans["plain"].labels() * 3)
    report = d3.prepare_many(read_format("msd-pancreas", root), tmp_path / "out", d3.PrepareSpec(), workers=0)
    assert list(report.failed) == ["pancreas_plain"]
    assert "label 3 (2 such labels), wanted 0 or one of [1, 2]" in report.failed["pancreas_plain"]


def test_images_that_are_not_listed(root: Path, scans: dict[str, Any]) -> None:
    scans["plain"].write(root / "imagesTr" / "pancreas_999.nii.gz")
    dataset = read_format("msd-pancreas", root)
    told = (
        "imagesTr/pancreas_999.nii.gz: not in dataset.json",
        "imagesTs/pancreas_002.nii.gz: its labels are not public",
    )
    assert (len(dataset.sources), dataset.passed_over) == (4, told)
    assert read_format("msd-pancreas", root, unlabelled=True).passed_over == told[:1]


def test_image_and_label_of_other_cases(root: Path) -> None:
    content = json.loads((root / "dataset.json").read_text())
    content["training"][0]["label"] = content["training"][1]["label"]
    rewrite(root, content)
    with pytest.raises(d3.ManifestError, match=r"training\[0\]: image is 'pancreas_plain.*, label 'pancreas_flipped"):
        read_format("msd-pancreas", root)


def test_listed_twice(root: Path) -> None:
    content = json.loads((root / "dataset.json").read_text())
    rewrite(root, {**content, "numTraining": 5, "training": [*content["training"], content["training"][0]]})
    with pytest.raises(d3.ManifestError, match=r"training\[4\]: case 'pancreas_plain' is listed twice"):
        read_format("msd-pancreas", root)


@pytest.mark.parametrize("name", ["/imagesTr/a.nii.gz", "../imagesTr/a.nii.gz", "imagesTs/a.nii.gz", "a.nii.gz", 3])
def test_listed_elsewhere(root: Path, name: Any) -> None:
    content = json.loads((root / "dataset.json").read_text())
    content["training"][1]["image"] = name
    rewrite(root, content)
    with pytest.raises(d3.ManifestError, match=r"training\[1\]: image is .*, wanted ./imagesTr/<file>"):
        read_format("msd-pancreas", root)


def test_another_task_of_the_decathlon(root: Path) -> None:
    content = json.loads((root / "dataset.json").read_text())
    rewrite(root, {**content, "labels": {"0": "background", "1": "lung"}})
    with pytest.raises(d3.ManifestError, match=r"labels are .*'lung'.*, wanted .*'cancer'"):
        read_format("msd-pancreas", root)


def test_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "Task07_Pancreas.tar").touch()
    with pytest.raises(
        d3.ManifestError, match=r"looked for dataset.json, imagesTr and labelsTr.*unpack Task07_Pancreas"
    ):
        read_format("msd-pancreas", tmp_path)
    with pytest.raises(d3.ManifestError, match=r"Task07_Pancreas.tar: a file; unpack it and give the folder"):
        read_format("msd-pancreas", tmp_path / "Task07_Pancreas.tar")
