"""dataset.json: what is read, and what is refused with the key and the value found."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import girih_data3d as d3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "set"
    inside.mkdir()
    for name in ("a.nii.gz", "b.nii.gz", "../outside.nii.gz"):
        d3.write_nifti(np.ones((2, 3, 4), np.float32), inside / name, affine=np.eye(4))
    return inside


def manifest(**changes: Any) -> dict[str, Any]:
    return {"schema": 1, "name": "n", "classes": ["c"], "cases": [{"case_id": "a", "images": ["a.nii.gz"]}], **changes}


def read(folder: Path, record: Any) -> d3.Dataset:
    (folder / "dataset.json").write_text(record if isinstance(record, str) else json.dumps(record))
    return d3.read_manifest(folder)


def test_everything_is_read(source: Path) -> None:
    dataset = d3.read_manifest(source)
    assert dataset == d3.read_manifest(source / "dataset.json")
    assert (dataset.name, dataset.classes, len(dataset.sources)) == ("toy", ("small", "large"), 3)
    assert dataset.sources[0] == d3.CaseSource(
        case_id="case0",
        images=(source / "0.nii.gz",),
        instances=source / "0_objects.nii.gz",
        instance_classes={7: 1, 2: 0, 4: 0},
        ignore=(2,),
        semantic=source / "0_tissue.nii.gz",
        patient_id="p0",
        modality="CT",
    )


def test_folder_without_manifest_is_unlabelled_scans(folder: Path) -> None:
    (folder / "notes.txt").write_text("")
    dataset = d3.read_manifest(folder)
    assert (dataset.name, dataset.classes) == ("set", ())
    assert [s.case_id for s in dataset.sources] == ["a", "b"]
    assert dataset.sources[1].images == (folder / "b.nii.gz",)


def test_single_scan(folder: Path) -> None:
    dataset = d3.read_manifest(folder / "b.nii.gz")
    assert dataset == d3.Dataset("set", (), (d3.CaseSource("b", (folder / "b.nii.gz",)),))


def test_dicom_folders(tmp_path: Path, dicom_series: Callable[..., None]) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes").mkdir()
    for name in ("one", "two"):
        dicom_series(tmp_path / "set" / name, [0, 2, 4])
    assert [s.case_id for s in d3.read_manifest(tmp_path / "set").sources] == ["one", "two"]
    (source,) = d3.read_manifest(tmp_path / "set" / "two").sources
    assert source == d3.CaseSource("two", (tmp_path / "set" / "two",))
    assert d3.read_source(source).shape == (1, 3, 4, 5)


def test_folder_without_scans(tmp_path: Path) -> None:
    with pytest.raises(d3.ManifestError, match=r"no dataset\.json, no scan file and no DICOM series"):
        d3.read_manifest(tmp_path)
    with pytest.raises(d3.ManifestError, match="no such file or folder"):
        d3.read_manifest(tmp_path / "nothing.json")


def test_same_name_with_two_extensions(folder: Path) -> None:
    d3.write_nifti(np.ones((2, 3, 4), np.float32), folder / "A.nii", affine=np.eye(4))
    with pytest.raises(d3.ManifestError, match="'a' is given twice"):
        d3.read_manifest(folder)


def case(**changes: Any) -> dict[str, Any]:
    return manifest(cases=[{"case_id": "a", "images": ["a.nii.gz"], **changes}])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "not a readable"),
        ([], "found list, wanted an object"),
        (manifest(schema=2), "schema is 2, wanted 1"),
        (manifest(extra=1), "unknown key 'extra'"),
        ({"schema": 1, "name": "n", "classes": []}, "key 'cases' is missing"),
        (manifest(classes=["c", "c"]), "repeated name"),
        (manifest(classes="c"), "classes is 'c', wanted a list of texts"),
        (manifest(name=3), "name is 3, wanted text"),
        (manifest(cases=[]), "at least one case"),
        (manifest(cases=[{"case_id": "a", "images": ["a.nii.gz"]}] * 2), "'a' is given twice"),
        (case(images=[]), "images is empty"),
        (case(label="a.nii.gz"), r"cases\[0\]: unknown key 'label'"),
        (case(case_id="../a"), "case_id '../a' cannot name a folder"),
        (case(case_id=".a"), "cannot name"),
        (case(case_id=""), "case_id is '', wanted text"),
        (case(images=["c.nii.gz"]), r"'c\.nii\.gz': no such file"),
        (case(images=["../outside.nii.gz"]), "outside the dataset's folder"),
        (case(images=["/etc/hostname"]), "outside the dataset's folder"),
        (case(instances="../outside.nii.gz"), "instances: .* outside the dataset's folder"),
        (case(instances="b.nii.gz", instance_classes={"x": 0}), "object 'x', wanted a whole number above 0"),
        (case(instances="b.nii.gz", instance_classes={"1": 1}), "class 1 of object 1, wanted 0 to 0"),
        (case(instances="b.nii.gz", instance_classes=[0]), r"instance_classes is \[0\]"),
        (case(instances="b.nii.gz", ignore=["1"]), r"ignore is \['1'\]"),
        (case(ignore=[1]), "no instances file"),
    ],
)
def test_refusals(folder: Path, record: Any, message: str) -> None:
    with pytest.raises(d3.ManifestError, match=message) as caught:
        read(folder, record)
    assert "dataset.json" in str(caught.value)


def test_link_to_the_outside_is_refused(folder: Path) -> None:
    (folder / "link.nii.gz").symlink_to(folder.parent / "outside.nii.gz")
    with pytest.raises(d3.ManifestError, match="outside the dataset's folder"):
        read(folder, case(images=["link.nii.gz"]))
