"""dataset.json: what is read, and what is refused with the key and the value found."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import girih_data3d as d3
from girih_data3d.info import as_text, describe_case
from girih_data3d.object_rules import Components


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "set"
    inside.mkdir()
    for name in ("a.nii.gz", "b.nii.gz", "../outside.nii.gz"):
        d3.write_nifti(np.ones((2, 3, 4), np.float32), inside / name, affine=np.eye(4))
    return inside


def manifest(**changes: Any) -> dict[str, Any]:
    return {"schema": 1, "name": "n", "classes": ["c"], "cases": [{"case_id": "a", "images": ["a.nii.gz"]}], **changes}


def write(folder: Path, record: Any) -> Path:
    (folder / "dataset.json").write_text(record if isinstance(record, str) else json.dumps(record))
    return folder


def read(folder: Path, record: Any) -> d3.Dataset:
    return d3.read_manifest(write(folder, record))


def test_everything_is_read(source: Path) -> None:
    dataset = d3.read_manifest(source)
    assert dataset == d3.read_manifest(source / "dataset.json")
    assert (dataset.name, dataset.classes, len(dataset.sources)) == ("toy", ("small", "large"), 3)
    assert dataset.sources[0] == d3.CaseSource(
        case_id="case0",
        images=(source / "0.nii.gz",),
        instances=(source / "0_objects.nii.gz",),
        instance_classes={7: 1, 2: 0, 4: 0},
        ignore=(2,),
        semantic=source / "0_tissue.nii.gz",
        patient_id="p0",
        modality="CT",
    )


def test_longest_case_ids(folder: Path, tmp_path: Path) -> None:
    for case_id in ("a" * 200, "王" * 66):
        dataset = read(folder, manifest(cases=[{"case_id": case_id, "images": ["a.nii.gz"]}]))
        assert d3.prepare_many(dataset, tmp_path / "out", d3.PrepareSpec(), workers=0).done == [case_id]
        d3.Store.open(tmp_path / "out")[case_id].export_nifti(tmp_path / f"{case_id}_instances-2.nii.gz")


def test_folder_without_manifest_is_unlabelled_scans(folder: Path) -> None:
    (folder / "notes.txt").write_text("")
    (folder / "gone.nii.gz").symlink_to("nowhere")
    dataset = d3.read_manifest(folder)
    assert (dataset.name, dataset.classes) == ("set", ())
    assert [s.case_id for s in dataset.sources] == ["a", "b", "gone"]
    assert dataset.passed_over == ("notes.txt",)
    with pytest.raises(d3.ScanError, match=r"gone\.nii\.gz: no such file"):
        d3.read_source(dataset.sources[2])
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
    assert source == d3.CaseSource("two", (tmp_path / "set" / "two",), modality="CT", series_uid="1.2.3")
    assert d3.read_source(source).shape == (1, 3, 4, 5)


def test_modality_of_a_dicom_series(tmp_path: Path, dicom_series: Callable[..., None]) -> None:
    (tmp_path / "set").mkdir()
    dicom_series(tmp_path / "set" / "one", [0, 2, 4])
    cases = [{"case_id": "one", "images": ["one"]}]
    for stated, wanted in (({}, "CT"), ({"modality": "MR"}, "MR")):
        record = manifest(cases=cases, **stated)
        assert d3.read_manifest(write(tmp_path / "set", record)).sources[0].modality == wanted
    (tmp_path / "set" / "one" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")  # no image
    assert d3.read_manifest(tmp_path / "set" / "one").sources[0].modality == "CT"


def test_folder_without_scans(tmp_path: Path) -> None:
    with pytest.raises(d3.ManifestError, match=r"no dataset\.json, no scan file and no DICOM series"):
        d3.read_manifest(tmp_path)
    with pytest.raises(d3.ManifestError, match="no such file or folder"):
        d3.read_manifest(tmp_path / "nothing.json")


def test_same_name_with_two_extensions(folder: Path) -> None:
    d3.write_nifti(np.ones((2, 3, 4), np.float32), folder / "A.nii", affine=np.eye(4))
    with pytest.raises(d3.ManifestError, match="'a' is there twice"):
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
        ({"channel_names": {"0": "CT"}, "labels": {}}, "layouts of public datasets are read with --format NAME"),
        ({"schema": 1, "spec_hash": "0"}, "of a prepared dataset, wanted the scans"),
        ({"schema": 1, "name": "n", "classes": []}, "key 'cases' is missing"),
        (manifest(classes=["c", "c"]), "repeated name"),
        (manifest(classes="c"), "classes is 'c', wanted a list of texts"),
        (manifest(name=3), "name is 3, wanted text"),
        (manifest(cases=[]), "at least one case"),
        (manifest(cases=[{"case_id": "a", "images": ["a.nii.gz"]}] * 2), "'a' is there twice"),
        (case(images=[]), r"images is \[\], wanted at least one file"),
        (case(label="a.nii.gz"), r"cases\[0\]: unknown key 'label'"),
        (case(case_id="../a"), "case_id '../a' cannot name a folder"),
        (case(case_id=".a"), "cannot name"),
        (case(case_id=""), "case_id is '', wanted text"),
        (case(case_id="a" * 201), "cannot name a folder"),
        (case(case_id="王" * 67), "at most 200 bytes"),  # 201 bytes
        (case(case_id="a\ud800"), "cannot name a folder"),
        (case(images=["c.nii.gz"]), r"'c\.nii\.gz': no such file"),
        (case(images=["../outside.nii.gz"]), "outside the dataset's folder"),
        (case(images=["/etc/hostname"]), "outside the dataset's folder"),
        (case(instances="../outside.nii.gz"), "instances: .* outside the dataset's folder"),
        (case(instances="b.nii.gz", instance_classes={"x": 0}), "object 'x', wanted a whole number above 0"),
        (case(instances="b.nii.gz", instance_classes={"1": 1}), "class 1 of object 1, wanted 0 to 0"),
        (case(instances="b.nii.gz", instance_classes=[0]), r"instance_classes is \[0\]"),
        (case(instances="b.nii.gz", ignore=["1"]), r"ignore is \['1'\]"),
        (case(ignore=[1]), "no instances file"),
        (case(instances="b.nii.gz", ignore=[0]), r"ignore is \[0\]"),
        (case(instances="b.nii.gz", ignore=[10**30]), "ignore is .*, wanted a list of object numbers"),
        (case(instances="b.nii.gz", instance_classes={"01": 0}), "object '01', wanted a whole number"),
        (case(instances="b.nii.gz", instance_classes={"9" * 5000: 0}), "wanted a whole number above 0"),
        (case(instances=[]), r"instances is \[\], wanted at least one file"),
        (case(instances=["b.nii.gz", "b.nii.gz"]), "wanted every file once"),
        (case(instances=["b.nii.gz", 3]), "wanted a list of texts"),
        (case(instances=["b.nii.gz", "../outside.nii.gz"]), "outside the dataset's folder"),
        (case(instances="b.nii.gz", objects=[]), "both instances and objects are given"),
        (case(objects={}), "objects is {}, wanted a list"),
        (case(semantic=["b.nii.gz"]), "wanted text"),
        (case(frame="first"), "frame is 'first', wanted 'mean' or the number of a frame"),
        (case(frame=-1), "frame is -1"),
        (case(frame=True), "frame is True"),
        (manifest(frame=1.5), r"frame is 1\.5"),
        (case(components={"2": 0}), "components are given, but no semantic file to find them in"),
        (case(semantic="b.nii.gz", components={}), "components is {}, wanted at least one label"),
        (case(semantic="b.nii.gz", components={"0": 0}), "components: label '0', wanted a whole number above 0"),
        (case(semantic="b.nii.gz", components={"2": 1}), "components: class 1 of label 2, wanted 0 to 0"),
        (case(semantic="b.nii.gz", components=[2]), r"components is \[2\], wanted an object"),
        (case(semantic="b.nii.gz", components={"2": 0}, objects=[]), "both objects and rule are given"),
        (case(objects=[], paint="star"), "paint is 'star', wanted 'ellipsoid' or 'box'"),
        (case(objects=[], paint=["box"]), r"paint is \['box'\], wanted"),
        (case(instances="b.nii.gz", paint="box"), "paint is for objects without masks, but instances is given"),
        (case(series_uid=3), "series_uid is 3, wanted text"),
        (case(part=""), "part is '', wanted text"),
        (case(defaced=["b.nii.gz"]), "defaced is .*, wanted text"),
        (case(defaced="../outside.nii.gz"), "defaced: .* outside the dataset's folder"),
        (case(defaced="missing.nii.gz"), "defaced: .*: no such file"),
        (case(spacing_zyx_mm=[1, 1]), r"spacing_zyx_mm is \[1, 1\], wanted a list of 3 numbers"),
        (case(spacing_zyx_mm=[1, 1, "1"]), "wanted a list of 3 numbers"),
        (case(spacing_zyx_mm=[1, 1, True]), "wanted a list of 3 numbers"),
        (case(spacing_zyx_mm=[1, 1, 0]), "wanted three lengths above 0 and below 50 mm"),
        (case(spacing_zyx_mm=[1, 1, 10**400]), "wanted three lengths above 0"),
        (case(rescale=1), "rescale is 1, wanted a list of 2 numbers"),
        (case(rescale=[0, 5]), r"rescale is \(0, 5\), wanted a finite slope that is not 0"),
        (case(rescale=[1, math.inf]), "wanted a finite slope"),
        (manifest(name=None), "key 'name' is missing"),
        ("[" * 100_000, "not a readable"),
        ("9" * 10_000, "not a readable"),
        ('{"schema": 1, "schema": 1}', "key 'schema' is given twice"),
    ],
)
def test_refusals(folder: Path, record: Any, message: str) -> None:
    with pytest.raises(d3.ManifestError, match=message) as caught:
        read(folder, record)
    assert "dataset.json" in str(caught.value)


BOX = {"class": 0, "box_zyx": [0, 0, 0, 1, 2, 3]}
POINT = {"class": 0, "center_ras_mm": [1.5, -2, 3], "diameter_mm": 7.5}


def test_three_ways_to_label_objects(folder: Path) -> None:
    masks = d3.read_manifest(write(folder, case(instances=["a.nii.gz", "b.nii.gz"], ignore=[3]))).sources[0]
    assert masks.instances == (folder / "a.nii.gz", folder / "b.nii.gz")
    assert (masks.ignore, masks.objects) == ((3,), None)
    labels = [BOX, {**POINT, "ignore": True}, {"class": 0, "box_ras_mm": [-1.0, -2, -3, 1, 2, 3]}]
    assert d3.read_manifest(write(folder, case(objects=labels))).sources[0].objects == (
        d3.ObjectLabel(0, box_zyx=(0, 0, 0, 1, 2, 3)),
        d3.ObjectLabel(0, ignore=True, center_ras_mm=(1.5, -2, 3), diameter_mm=7.5),
        d3.ObjectLabel(0, box_ras_mm=(-1, -2, -3, 1, 2, 3)),
    )


def test_what_else_is_said_of_a_case(folder: Path) -> None:
    said = {"series_uid": "1.2.3", "part": "val", "spacing_zyx_mm": [2.5, 1, 1], "rescale": [1, -1024]}
    files = {"semantic": "b.nii.gz", "defaced": "a.nii.gz"}
    source = d3.read_manifest(write(folder, case(**said, **files, components={"2": 0, "10": 0}))).sources[0]
    assert source == d3.CaseSource(
        "a",
        (folder / "a.nii.gz",),
        semantic=folder / "b.nii.gz",
        rule=Components(folder / "b.nii.gz", ((0, (2,)), (0, (10,)))),
        defaced=folder / "a.nii.gz",
        series_uid="1.2.3",
        part="val",
        spacing_zyx_mm=(2.5, 1, 1),
        rescale=(1, -1024),
    )
    painted = d3.read_manifest(write(folder, case(objects=[BOX], paint="ellipsoid"))).sources[0]
    assert painted.paint == "ellipsoid"


def test_components_without_code(folder: Path, tmp_path: Path) -> None:
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[1:3, 1:3, 1:3], labels[4:6, 5, 5:8], labels[0, 0, 0] = 2, 2, 1
    affine = np.diag([1.0, 1, 2, 1])
    d3.write_nifti(labels, folder / "b.nii.gz", affine=affine)
    d3.write_nifti(np.ones((6, 7, 8), np.float32), folder / "a.nii.gz", affine=affine)
    dataset = d3.read_manifest(write(folder, case(semantic="b.nii.gz", components={"2": 0})))
    d3.prepare_many(dataset, tmp_path / "out", d3.PrepareSpec(target_zyx_mm=None), workers=0)
    made = d3.Store.open(tmp_path / "out")["a"]
    assert made.boxes.tolist() == [[1, 1, 1, 3, 3, 3], [4, 5, 5, 6, 6, 8]]
    assert made.label_kinds == ("instances", "semantic")
    described = as_text(describe_case(made))
    assert "found:\n    components: 2\n    dropped below 3 voxels: 0\n" in described


def test_series_of_a_dicom_folder(tmp_path: Path, dicom_series: Callable[..., None]) -> None:
    (tmp_path / "set").mkdir()
    dicom_series(tmp_path / "set" / "one", [0, 2, 4], series="1.2.840.113619")
    for more, wanted in (({}, "1.2.840.113619"), ({"series_uid": "9.9"}, "9.9")):
        record = manifest(cases=[{"case_id": "one", "images": ["one"], **more}], modality="CT")
        source = d3.read_manifest(write(tmp_path / "set", record)).sources[0]
        assert (source.series_uid, source.modality) == (wanted, "CT")


def test_no_object_is_not_no_label(folder: Path) -> None:
    assert d3.read_manifest(write(folder, case(objects=[]))).sources[0].objects == ()
    assert d3.read_manifest(write(folder, case())).sources[0].objects is None
    assert d3.read_manifest(write(folder, case(objects=None))).sources[0].objects is None


def test_frame_of_a_case_goes_before_that_of_the_dataset(folder: Path) -> None:
    cases = [{"case_id": "a", "images": ["a.nii.gz"]}, {"case_id": "b", "images": ["b.nii.gz"], "frame": 3}]
    dataset = d3.read_manifest(write(folder, manifest(cases=cases, frame="mean")))
    assert [source.frame for source in dataset.sources] == ["mean", 3]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"class": 0}, "nothing given and diameter_mm None, wanted exactly one of box_zyx"),
        ({**BOX, "box_ras_mm": [0, 0, 0, 1, 1, 1]}, "box_zyx, box_ras_mm given"),
        ({**BOX, **POINT}, "box_zyx, center_ras_mm given"),
        ({**BOX, "diameter_mm": 3}, "box_zyx given and diameter_mm 3"),
        ({"class": 0, "center_ras_mm": [0, 0, 0]}, "center_ras_mm given and diameter_mm None"),
        ({**BOX, "box_zyx": [0, 0, 0, 1, 2]}, "box_zyx has 5 values, wanted 6"),
        ({**BOX, "box_zyx": [0, 0, 0, 1, 2, "3"]}, "box_zyx is .*, wanted a list of numbers"),
        ({**BOX, "box_zyx": [0, 0, 5, 1, 2, 3]}, "wanted every low edge below its high edge"),
        ({**BOX, "box_zyx": [0, 0, 3, 1, 2, 3]}, "wanted every low edge below its high edge"),
        ({**BOX, "box_zyx": [0, 0, 0, 1, 2, math.nan]}, "box_zyx is .*nan.*, wanted finite numbers"),
        ({**BOX, "box_zyx": [0, 0, 0, 1, 2, math.inf]}, "box_zyx is .*, wanted finite numbers"),
        ({**BOX, "box_zyx": [0, 0, 0, 1, 2, 10**400]}, "box_zyx is .*, wanted finite numbers of at most 1e"),
        ({**BOX, "box_zyx": [0, 0, 0, 1, 2, True]}, "wanted a list of numbers"),
        ({**POINT, "diameter_mm": -1}, "diameter_mm is -1, wanted a positive length"),
        ({**POINT, "diameter_mm": 0}, "diameter_mm is 0, wanted a positive length"),
        ({**POINT, "diameter_mm": "7"}, "diameter_mm is '7', wanted a number"),
        ({**POINT, "center_ras_mm": [0, 0]}, "center_ras_mm has 2 values, wanted 3"),
        ({**BOX, "class": 1}, "class is 1, wanted 0 to 0"),
        ({**BOX, "class": -1}, "class is -1, wanted 0 to 0"),
        ({**BOX, "class": 0.0}, r"class is 0\.0, wanted 0 to 0"),
        ({**BOX, "class": True}, "class is True, wanted 0 to 0"),
        ({**BOX, "ignore": 1}, "ignore is 1, wanted true or false"),
        ({**BOX, "label": "x"}, "unknown key 'label'"),
        ({"box_zyx": [0, 0, 0, 1, 1, 1]}, "key 'class' is missing"),
        ([0, 0, 0, 1, 1, 1], "found list, wanted an object"),
    ],
)
def test_refused_objects(folder: Path, label: Any, message: str) -> None:
    with pytest.raises(d3.ManifestError, match=rf"dataset\.json: cases\[0\] \(a\): objects\[1\]: .*{message}"):
        read(folder, case(objects=[BOX, label]))


def test_link_to_the_outside_is_refused(folder: Path) -> None:
    (folder / "link.nii.gz").symlink_to(folder.parent / "outside.nii.gz")
    with pytest.raises(d3.ManifestError, match="outside the dataset's folder"):
        read(folder, case(images=["link.nii.gz"]))
