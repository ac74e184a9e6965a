"""prepare_many: resumable, atomic, and honest about what it did."""

import hashlib
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import girih_data3d as d3

SPEC = d3.PrepareSpec()


def prepare(dataset: d3.Dataset, root: Path, *, spec: d3.PrepareSpec = SPEC, **how: Any) -> d3.Report:
    return d3.prepare_many(dataset, root, spec, workers=0, **how)


def tree_hash(root: Path) -> str:
    """Hash of every visible file's path and content."""
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file() and ".tmp" not in p.parts):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def test_second_run_skips_everything(own_source: Path, tmp_path: Path) -> None:
    dataset = d3.read_manifest(own_source)
    seen: list[tuple[str, str]] = []
    first = prepare(dataset, tmp_path / "out", on_progress=lambda *event: seen.append(event))
    assert first == d3.Report(done=["case0", "case1", "free"])
    before = tree_hash(tmp_path / "out")
    second = prepare(dataset, tmp_path / "out", on_progress=lambda *event: seen.append(event))
    assert second == d3.Report(skipped=["case0", "case1", "free"])
    assert seen == [(c, o) for o in ("done", "skipped") for c in ("case0", "case1", "free")]
    assert tree_hash(tmp_path / "out") == before
    assert list((tmp_path / "out" / ".tmp").iterdir()) == []


def test_changed_source_is_noticed(own_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(d3.read_manifest(own_source), out)
    d3.write_nifti(np.ones((30, 30, 30), np.float32), own_source / "free.nii.gz", affine=np.eye(4))
    dataset = d3.read_manifest(own_source)
    with pytest.raises(d3.StaleCaseError, match="other source files"):
        d3.prepare_case(dataset.sources[2], out, SPEC, classes=dataset.classes)
    report = prepare(dataset, out)
    assert report.skipped == ["case0", "case1"]
    assert "StaleCaseError" in report.failed["free"]
    assert prepare(dataset, out, overwrite=True).done == ["free"]
    assert not d3.Store.open(out)["free"].to_xarray().values.any()


@pytest.mark.parametrize(
    "change",
    [
        {"instance_classes": {"7": 0, "2": 0, "4": 0}},
        {"ignore": [2]},
        {"patient_id": "p"},
        {"semantic": "0_tissue.nii.gz"},
    ],
)
def test_changed_annotation_is_noticed(
    own_source: Path, tmp_path: Path, manifest_of: Callable[..., None], change: dict[str, Any]
) -> None:
    case: dict[str, Any] = {"case_id": "case0", "images": ["0.nii.gz"], "instances": "0_objects.nii.gz"}
    case["instance_classes"] = {"7": 1, "2": 0, "4": 0}
    manifest_of(own_source, [case])
    prepare(d3.read_manifest(own_source), tmp_path / "out")
    manifest_of(own_source, [{**case, **change}])
    dataset = d3.read_manifest(own_source)
    assert list(prepare(dataset, tmp_path / "out").failed) == ["case0"]
    assert prepare(dataset, tmp_path / "out", overwrite=True).done == ["case0"]
    assert list((tmp_path / "out" / ".tmp").iterdir()) == []


def test_changed_spec_is_refused_before_any_work(own_source: Path, tmp_path: Path) -> None:
    dataset, out = d3.read_manifest(own_source), tmp_path / "out"
    prepare(dataset, out)
    before = tree_hash(out)
    other = d3.PrepareSpec(target_zyx_mm=(2, 2, 2))
    with pytest.raises(d3.StaleCaseError, match="spec_hash"):
        prepare(dataset, out, spec=other)
    assert tree_hash(out) == before
    assert prepare(dataset, out, spec=other, overwrite=True).done == ["case0", "case1", "free"]
    assert d3.Store.open(out)["free"].spacing_zyx_mm == (2, 2, 2)


def test_case_of_another_spec_is_not_opened(own_source: Path, tmp_path: Path) -> None:
    dataset, out = d3.read_manifest(own_source), tmp_path / "out"
    prepare(dataset, out)
    other = d3.PrepareSpec(crop=None)
    prepare(d3.Dataset("toy", dataset.classes, dataset.sources[:1]), out, spec=other, overwrite=True)
    store = d3.Store.open(out)
    assert store["case0"].shape[0] == 1
    with pytest.raises(d3.StaleCaseError, match="prepared with spec"):
        store["case1"]


def test_case_of_other_classes_is_not_opened(own_source: Path, tmp_path: Path) -> None:
    dataset, out = d3.read_manifest(own_source), tmp_path / "out"
    prepare(dataset, out)
    renamed = replace(dataset, classes=("large", "small"))
    with pytest.raises(d3.StaleCaseError, match="classes"):
        prepare(renamed, out)
    report = prepare(renamed, out, overwrite=True, shard=(0, 2))
    assert report == d3.Report(done=["case0"], skipped=["free"])  # nothing is known of the objects of "free"
    store = d3.Store.open(out)
    assert store["case0"].truth is not None
    assert store["free"].truth is None
    message = r"prepared with the classes \['small', 'large'\], the dataset's are \['large', 'small'\]"
    with pytest.raises(d3.StaleCaseError, match=message):
        store["case1"]
    assert list(d3.verify(out).failed) == ["case1"]
    with pytest.raises(d3.StaleCaseError, match="was prepared with other classes; pass overwrite=True"):
        d3.prepare_case(dataset.sources[0], out, SPEC, classes=dataset.classes)
    assert prepare(renamed, out).failed.keys() == {"case1"}
    assert prepare(renamed, out, overwrite=True) == d3.Report(done=["case1"], skipped=["case0", "free"])
    assert d3.verify(out).failed == {}


def test_damaged_case_is_prepared_again(own_source: Path, tmp_path: Path) -> None:
    dataset, out = d3.read_manifest(own_source), tmp_path / "out"
    prepare(dataset, out)
    before = tree_hash(out)
    folder = d3.Store.open(out)["free"].folder
    shard = "0/c/0/0/0/0"
    for name, content in ((shard, None), (shard, b"short"), ("0/zarr.json", None), ("zarr.json", b"")):
        path = folder / name
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        report = prepare(dataset, out)
        assert report.skipped == ["case0", "case1"]
        assert "is damaged" in report.failed["free"]
        assert "pass overwrite=True" in report.failed["free"]
        assert prepare(dataset, out, overwrite=True) == d3.Report(done=["free"], skipped=["case0", "case1"])
        assert tree_hash(out) == before


def test_flipped_byte_is_found_by_overwrite(own_source: Path, tmp_path: Path) -> None:
    dataset, out = d3.read_manifest(own_source), tmp_path / "out"
    prepare(dataset, out)
    before = tree_hash(out)
    path = d3.Store.open(out)["case1"].folder / "labels/instances/0/c/0/0/0"
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)
    assert prepare(dataset, out).done == []  # sizes only
    assert prepare(dataset, out, overwrite=True) == d3.Report(done=["case1"], skipped=["case0", "free"])
    assert tree_hash(out) == before


def test_one_bad_file_does_not_stop_the_others(own_source: Path, tmp_path: Path) -> None:
    (own_source / "0.nii.gz").write_bytes((own_source / "0.nii.gz").read_bytes()[:1000])
    report = prepare(d3.read_manifest(own_source), tmp_path / "out")
    assert report.done == ["case1", "free"]
    assert "0.nii.gz: truncated" in report.failed["case0"]
    assert d3.Store.open(tmp_path / "out").case_ids == ("case1", "free")
    assert list((tmp_path / "out" / ".tmp").iterdir()) == []


def test_shards_together_are_the_whole(own_source: Path, prepared: d3.Store, tmp_path: Path) -> None:
    dataset, out = d3.read_manifest(own_source), tmp_path / "out"
    assert prepare(dataset, out, shard=(1, 2)) == d3.Report(done=["case1"])
    assert d3.Store.open(out).case_ids == ("case1",)
    assert prepare(dataset, out, shard=(0, 2)) == d3.Report(done=["case0", "free"])
    assert prepare(dataset, out, shard=(4, 5)) == d3.Report()
    assert tree_hash(out) == tree_hash(prepared.root)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"shard": (2, 2)}, r"shard is \(2, 2\), wanted \(i, n\)"),
        ({"shard": (-1, 2)}, "from 0 to n - 1"),
        ({"shard": (0, 0)}, "from 0 to n - 1"),
        ({"workers": -1}, "workers is -1, wanted 0 or more"),
        ({"workers": 1, "executor": ThreadPoolExecutor(1)}, "none beside an executor"),
    ],
)
def test_impossible_splits_are_refused_before_any_write(
    own_source: Path, tmp_path: Path, how: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        d3.prepare_many(d3.read_manifest(own_source), tmp_path / "out", SPEC, **how)
    assert not (tmp_path / "out").exists()


def test_interrupted_between_cases_goes_on_where_it_was(own_source: Path, prepared: d3.Store, tmp_path: Path) -> None:
    def stop(*_: str) -> None:
        raise KeyboardInterrupt

    dataset, out = d3.read_manifest(own_source), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prepare(dataset, out, on_progress=stop)
    assert list((out / ".tmp").iterdir()) == []
    assert d3.Store.open(out).case_ids == ("case0",)
    assert prepare(dataset, out) == d3.Report(done=["case1", "free"], skipped=["case0"])
    assert tree_hash(out) == tree_hash(prepared.root)


def test_index_is_right_after_a_killed_run_that_replaced_cases(own_source: Path, tmp_path: Path) -> None:
    def stop(*_: str) -> None:
        prepare(dataset, out, overwrite=True, shard=(1, 2))  # another task ends, and writes an index
        path = d3.Store.open(out)["free"].folder
        shutil.rmtree(path)
        shutil.copytree(replaced / path.relative_to(out), path)  # the last that this one does
        raise KeyboardInterrupt

    dataset, out, replaced = d3.read_manifest(own_source), tmp_path / "out", tmp_path / "replaced"
    prepare(dataset, out)
    d3.write_nifti(np.ones((9, 9, 9), np.float32), own_source / "free.nii.gz", affine=np.eye(4))
    prepare(dataset, replaced)
    with pytest.raises(KeyboardInterrupt):
        prepare(dataset, out, overwrite=True, shard=(0, 2), on_progress=stop)
    assert list(d3.verify(out).failed) == ["free"]
    assert prepare(dataset, out, shard=(0, 2)).skipped == ["case0", "free"]
    assert d3.verify(out).failed == {}


def test_index_is_brought_up_to_date_without_work_to_do(own_source: Path, tmp_path: Path) -> None:
    dataset, out = d3.read_manifest(own_source), tmp_path / "out"
    prepare(dataset, out)
    d3.write_nifti(np.ones((9, 9, 9), np.float32), own_source / "free.nii.gz", affine=np.eye(4))
    d3.prepare_case(dataset.sources[2], out, SPEC, classes=dataset.classes, overwrite=True)
    assert list(d3.verify(out).failed) == ["free"]
    assert prepare(dataset, out).skipped == ["case0", "case1", "free"]
    assert d3.verify(out).failed == {}


def test_interrupted_within_a_case_leaves_nothing(
    own_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("girih_data3d.case_writer.seal", stop)  # all arrays are written by then
    with pytest.raises(KeyboardInterrupt) as caught:
        prepare(d3.read_manifest(own_source), tmp_path / "out")
    assert caught.value.__notes__ == ["while preparing case 'case0'"]
    assert list((tmp_path / "out" / ".tmp").iterdir()) == []
    assert not (tmp_path / "out" / "cases").exists()


def test_report_as_text() -> None:
    report = d3.Report(done=["a", "b"], failed={"c": "ScanError: c.nii: truncated"})
    assert str(report) == "2 done, 0 skipped, 1 failed\n  c: ScanError: c.nii: truncated"


def test_leftovers_of_living_processes_stay(own_source: Path, tmp_path: Path) -> None:
    aside = tmp_path / "out" / ".tmp"
    aside.mkdir(parents=True)
    node = os.uname().nodename
    (aside / f"{os.getpid()}@{node}@alive").mkdir()
    (aside / f"{os.getpid()}@elsewhere@unknown").mkdir()
    old = aside / f"{os.getpid()}@elsewhere@old"
    old.mkdir()
    os.utime(old, (0, 0))
    prepare(d3.read_manifest(own_source), tmp_path / "out")
    assert sorted(p.name.rpartition("@")[2] for p in aside.iterdir()) == ["alive", "unknown"]
