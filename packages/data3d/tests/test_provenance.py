"""A source that did not change is not read again; one that did is noticed, whatever its time says."""

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import girih_data3d as d3
from girih_data3d.layout import case_folder
from girih_data3d.object_rules import Components, ObjectRule, Votes
from girih_data3d.provenance import is_origin, origin_of
from girih_data3d.sealed import seal
from girih_data3d.source import read_source

EYE = np.eye(4)


@pytest.fixture
def made(tmp_path: Path) -> d3.CaseSource:
    (tmp_path / "t1").mkdir()
    (tmp_path / "t2").mkdir()
    for name in ("t1/a.nii", "t2/a.nii", "objects.nii"):
        (tmp_path / name).write_bytes(name.encode())
        os.utime(tmp_path / name, ns=(1, 10**18))
    images = (tmp_path / "t1/a.nii", tmp_path / "t2/a.nii")
    return d3.CaseSource("x", images, instances=(tmp_path / "objects.nii",), instance_classes={3: 0, 2: 1}, ignore=(2,))


def test_what_is_recorded(made: d3.CaseSource) -> None:
    origin = origin_of(made)
    digest = hashlib.sha256(b"t1/a.nii").hexdigest()
    assert origin["images"][0] == {"name": "a.nii", "folder": "t1", "size": 8, "mtime_ns": [10**18], "sha256": digest}
    assert origin["instance_classes"] == {"2": 1, "3": 0}
    assert {"case_id", "images", "instances", "semantic", "objects", "frame"} - set(origin) == {"case_id"}
    labels = (
        d3.ObjectLabel(0, box_zyx=(0, 0, 0, 1, 1, 1.5)),
        d3.ObjectLabel(1, center_ras_mm=(1, 2, 3), diameter_mm=4),
    )
    boxes = origin_of(d3.CaseSource("x", made.images, objects=labels))
    assert boxes["objects"][0]["box_zyx"] == [0, 0, 0, 1, 1, 1.5]
    assert origin_of(d3.CaseSource("x", made.images, objects=()))["objects"] == []


def test_unchanged_files_are_not_read(made: d3.CaseSource) -> None:
    origin = origin_of(made)
    origin["images"][0]["sha256"] = "taken as it is"
    assert origin_of(made, origin) == origin
    assert is_origin(made, origin)


def test_the_hash_decides_when_the_time_differs(made: d3.CaseSource) -> None:
    origin = origin_of(made)
    os.utime(made.images[0])
    assert is_origin(made, origin)
    made.images[0].write_bytes(b"T1/a.nii")
    assert not is_origin(made, origin)


def test_files_of_one_name_are_not_mixed_up(made: d3.CaseSource) -> None:
    assert not is_origin(replace(made, images=made.images[::-1]), origin_of(made))


@pytest.mark.parametrize(
    "change", [{"ignore": ()}, {"instance_classes": {3: 1, 2: 1}}, {"frame": 2}, {"modality": "MR"}, {"semantic": None}]
)
def test_every_field_counts(made: d3.CaseSource, change: dict[str, object]) -> None:
    origin = origin_of(replace(made, semantic=made.images[0]))
    changed = {"semantic": made.images[0], **change}
    assert not is_origin(replace(made, **changed), origin)
    assert not is_origin(made, None)
    assert not is_origin(made, {"images": 3})


def ruled(made: d3.CaseSource, rule: ObjectRule) -> d3.CaseSource:
    return d3.CaseSource("x", made.images, rule=rule)


@dataclass(frozen=True)
class Other:
    """A rule with the fields of `Components`."""

    file: Any
    groups: Any
    min_voxels: int = 3
    known: tuple[int, ...] | None = None

    def find(self, scan: Any) -> Any:
        raise NotImplementedError


def test_a_rule_is_its_name_its_values_and_its_files(made: d3.CaseSource) -> None:
    path = made.instances[0]
    rule = Components(path, ((0, (2,)), (1, (1,))))
    origin = origin_of(ruled(made, rule))
    assert origin["rule"]["name"] == "Components"
    assert origin["rule"]["values"]["groups"] == [[0, [2]], [1, [1]]]
    assert origin["rule"]["values"]["file"]["sha256"] == hashlib.sha256(b"objects.nii").hexdigest()
    assert json.loads(json.dumps(origin)) == origin
    assert is_origin(ruled(made, rule), json.loads(json.dumps(origin)))
    others = [replace(rule, min_voxels=4), replace(rule, groups=((0, (2,)),)), replace(rule, known=(5,))]
    for other in (*others, Other(path, rule.groups), Votes(((0, (path,)),))):
        assert not is_origin(ruled(made, other), origin)
    assert not is_origin(d3.CaseSource("x", made.images), origin)
    path.write_bytes(b"OBJECTS.nii")
    assert not is_origin(ruled(made, rule), origin)


def test_files_deep_inside_a_rule_count(made: d3.CaseSource) -> None:
    rule = Votes(((0, made.images), (1, made.instances)), readers=4)
    origin = origin_of(ruled(made, rule))
    assert is_origin(ruled(made, rule), origin)
    os.utime(made.images[1])
    assert is_origin(ruled(made, rule), origin)
    made.images[1].write_bytes(b"T2/a.nii")
    assert not is_origin(ruled(made, rule), origin)


def test_what_a_rule_cannot_hold(made: d3.CaseSource) -> None:
    with pytest.raises(ValueError, match="of type set cannot be recorded, wanted a plain value or a path"):
        origin_of(ruled(made, Other(made.images, {1: {2}})))


@pytest.mark.parametrize(
    "change",
    [
        {"rescale": (1, -1024)},
        {"spacing_zyx_mm": (1, 1, 1)},
        {"series_uid": "1.2"},
        {"part": "val"},
        {"defaced": Path("t1/a.nii")},
        {"paint": "box", "instances": (), "instance_classes": None, "ignore": ()},
        {"semantic_values": (1, 2)},
    ],
)
def test_every_later_field_counts(made: d3.CaseSource, change: dict[str, Any]) -> None:
    more = {**change, **({"defaced": made.images[0]} if "defaced" in change else {})}
    origin = origin_of(made)
    assert is_origin(made, origin)
    assert not is_origin(replace(made, **more), origin)
    assert is_origin(replace(made, **more), origin_of(replace(made, **more)))


def test_a_record_from_before_a_field_was_known(made: d3.CaseSource) -> None:
    old = origin_of(made)
    for name in ("rule", "paint", "defaced", "rescale", "spacing_zyx_mm", "series_uid", "part", "semantic_values"):
        del old[name]
    assert is_origin(made, old)
    assert is_origin(replace(made, series_uid="1.2"), old)  # says nothing about the content
    assert not is_origin(replace(made, rescale=(1, 2)), old)


def test_members_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "1.dcm").write_bytes(b"one")
    for path in (folder / "1.dcm", folder):  # well before what follows
        os.utime(path, ns=(1, 10**18))
    source = d3.CaseSource("x", (folder,))
    origin = origin_of(source)
    (folder / "2.dcm").write_bytes(b"")
    assert not is_origin(source, origin)
    (folder / "2.dcm").unlink()
    assert is_origin(source, origin)
    (folder / "1.dcm").rename(folder / "0.dcm")
    assert not is_origin(source, origin)
    (folder / "0.dcm").rename(folder / "1.dcm")
    origin = origin_of(source)
    (folder / "1.dcm").write_bytes(b"two")
    os.utime(folder / "1.dcm", ns=(1, 10**17))  # older than the folder
    assert not is_origin(source, origin)


def test_file_that_changes_while_it_is_read(own_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, spec = d3.read_manifest(own_source), d3.PrepareSpec()

    def read(source: d3.CaseSource) -> Any:
        scan = read_source(source)
        d3.write_nifti(np.ones((30, 30, 30), np.float32), source.images[0], affine=np.eye(4))
        return scan

    monkeypatch.setattr("girih_data3d.case_preparation.read_source", read)
    with pytest.raises(d3.ScanError, match=r"'free': one of its files changed while it was read"):
        d3.prepare_case(dataset.sources[2], tmp_path / "out", spec)
    monkeypatch.undo()
    assert d3.prepare_case(dataset.sources[2], tmp_path / "out", spec) == "done"


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_voxels_beside_their_header(tmp_path: Path, suffix: str) -> None:
    import SimpleITK as sitk  # noqa: N813

    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5), np.int16)), str(path))
    (voxels,) = (p for p in tmp_path.iterdir() if p != path)
    origin = origin_of(d3.CaseSource("x", (path,)))
    content = bytearray(voxels.read_bytes())
    content[-1] ^= 1
    voxels.write_bytes(content)
    assert not is_origin(d3.CaseSource("x", (path,)), origin)
    os.utime(voxels, ns=(1, 10**18))  # older than its header: copies keep the time of what they are copies of
    assert not is_origin(d3.CaseSource("x", (path,)), origin)


def test_resumed_preparation_reads_no_source(own_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, spec = d3.read_manifest(own_source), d3.PrepareSpec()
    d3.prepare_case(dataset.sources[0], tmp_path / "out", spec, classes=dataset.classes)
    monkeypatch.setattr("girih_data3d.provenance.hashlib", None)
    assert d3.prepare_case(dataset.sources[0], tmp_path / "out", spec, classes=dataset.classes) == "skipped"


def test_missing_file(made: d3.CaseSource) -> None:
    made.images[1].unlink()
    with pytest.raises(d3.ScanError, match=r"a\.nii: not readable"):
        origin_of(made)


def test_a_record_from_when_no_classes_were_an_empty_mapping(made: d3.CaseSource) -> None:
    unsaid = replace(made, instance_classes=None, ignore=())
    assert is_origin(unsaid, {**origin_of(unsaid), "instance_classes": {}})
    none = replace(unsaid, instance_classes={})
    assert is_origin(none, origin_of(none))
    assert not is_origin(none, origin_of(unsaid))


def test_overwrite_adds_what_an_older_version_did_not_record(tmp_path: Path) -> None:
    d3.write_nifti(np.random.default_rng(0).normal(0, 1, (4, 5, 6)).astype(np.float32), tmp_path / "a.nii", affine=EYE)
    nameless = d3.CaseSource("a", (tmp_path / "a.nii",))
    named, root, spec = replace(nameless, series_uid="1.2", part="train"), tmp_path / "out", d3.PrepareSpec()
    d3.prepare_case(nameless, root, spec)
    folder = case_folder(root, "a")
    attributes = json.loads((folder / "zarr.json").read_text())["attributes"]
    record = attributes["girih"]
    for old, keys in ((record, ("scan_sha256", "series_uid", "part")), (record["source"], ("series_uid", "part"))):
        for key in keys:
            del old[key]
    seal(folder, attributes)
    assert d3.prepare_case(nameless, root, spec) == "skipped"
    assert d3.prepare_case(replace(nameless, series_uid="1.2"), root, spec) == "skipped"  # it is the same scan
    with pytest.raises(d3.StaleCaseError, match="from other source files or annotations; pass overwrite=True"):
        d3.prepare_case(named, root, spec)
    assert d3.prepare_case(named, root, spec, overwrite=True) == "done"
    index = d3.update_index(root)
    assert (index.series_uids, index.parts) == (("1.2",), ("train",))
    assert index.scan_sha256[0]
    assert d3.prepare_case(named, root, spec, overwrite=True) == "skipped"
    assert d3.prepare_case(nameless, root, spec, overwrite=True) == "done"


def test_overwrite_takes_the_hash_that_an_older_version_did_not(tmp_path: Path) -> None:
    d3.write_nifti(np.random.default_rng(0).normal(0, 1, (4, 5, 6)).astype(np.float32), tmp_path / "a.nii", affine=EYE)
    source, spec = d3.CaseSource("a", (tmp_path / "a.nii",)), d3.PrepareSpec()
    d3.prepare_case(source, tmp_path, spec)
    folder = case_folder(tmp_path, "a")
    attributes = json.loads((folder / "zarr.json").read_text())["attributes"]
    del attributes["girih"]["scan_sha256"]
    seal(folder, attributes)
    assert d3.prepare_case(source, tmp_path, spec) == "skipped"
    assert d3.prepare_case(source, tmp_path, spec, overwrite=True) == "done"
    assert d3.prepare_case(source, tmp_path, spec, overwrite=True) == "skipped"
