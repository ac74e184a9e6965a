"""prepare_many: resumable, atomic, and honest about what it did."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import girih_data3d as d3

SPEC = d3.PrepareSpec()


def tree_hash(root: Path) -> str:
    """Hash of every visible file's path and content."""
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file() and ".tmp" not in p.parts):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def test_second_run_skips_everything(own_source: Path, tmp_path: Path) -> None:
    dataset = d3.read_manifest(own_source)
    seen: list[tuple[str, str]] = []
    first = d3.prepare_many(dataset, tmp_path / "out", SPEC, on_progress=lambda *event: seen.append(event))
    assert first == d3.Report(done=["case0", "case1", "free"])
    before = tree_hash(tmp_path / "out")
    second = d3.prepare_many(dataset, tmp_path / "out", SPEC, on_progress=lambda *event: seen.append(event))
    assert second == d3.Report(skipped=["case0", "case1", "free"])
    assert seen == [(c, o) for o in ("done", "skipped") for c in ("case0", "case1", "free")]
    assert tree_hash(tmp_path / "out") == before
    assert list((tmp_path / "out" / ".tmp").iterdir()) == []


def test_changed_source_is_noticed(own_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    d3.prepare_many(d3.read_manifest(own_source), out, SPEC)
    d3.write_nifti(np.ones((30, 30, 30), np.float32), own_source / "free.nii.gz", affine=np.eye(4))
    dataset = d3.read_manifest(own_source)
    with pytest.raises(d3.StaleCaseError, match="other source files"):
        d3.prepare_case(dataset.sources[2], out, SPEC, classes=dataset.classes)
    report = d3.prepare_many(dataset, out, SPEC)
    assert report.skipped == ["case0", "case1"]
    assert "StaleCaseError" in report.failed["free"]
    assert d3.prepare_many(dataset, out, SPEC, overwrite=True).done == ["free"]
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
    d3.prepare_many(d3.read_manifest(own_source), tmp_path / "out", SPEC)
    manifest_of(own_source, [{**case, **change}])
    dataset = d3.read_manifest(own_source)
    assert list(d3.prepare_many(dataset, tmp_path / "out", SPEC).failed) == ["case0"]
    assert d3.prepare_many(dataset, tmp_path / "out", SPEC, overwrite=True).done == ["case0"]
    assert list((tmp_path / "out" / ".tmp").iterdir()) == []


def test_changed_spec_is_refused_before_any_work(own_source: Path, tmp_path: Path) -> None:
    dataset, out = d3.read_manifest(own_source), tmp_path / "out"
    d3.prepare_many(dataset, out, SPEC)
    before = tree_hash(out)
    other = d3.PrepareSpec(target_zyx_mm=(2, 2, 2))
    with pytest.raises(d3.StaleCaseError, match="spec_hash"):
        d3.prepare_many(dataset, out, other)
    assert tree_hash(out) == before
    assert d3.prepare_many(dataset, out, other, overwrite=True).done == ["case0", "case1", "free"]
    assert d3.Store.open(out)["free"].spacing_zyx_mm == (2, 2, 2)


def test_case_of_another_spec_is_not_opened(own_source: Path, tmp_path: Path) -> None:
    dataset, out = d3.read_manifest(own_source), tmp_path / "out"
    d3.prepare_many(dataset, out, SPEC)
    other = d3.PrepareSpec(crop=None)
    d3.prepare_many(d3.Dataset("toy", dataset.classes, dataset.sources[:1]), out, other, overwrite=True)
    store = d3.Store.open(out)
    assert store["case0"].shape[0] == 1
    with pytest.raises(d3.StaleCaseError, match="prepared with spec"):
        store["case1"]


def test_one_bad_file_does_not_stop_the_others(own_source: Path, tmp_path: Path) -> None:
    (own_source / "0.nii.gz").write_bytes((own_source / "0.nii.gz").read_bytes()[:1000])
    report = d3.prepare_many(d3.read_manifest(own_source), tmp_path / "out", SPEC)
    assert report.done == ["case1", "free"]
    assert "0.nii.gz: truncated" in report.failed["case0"]
    assert d3.Store.open(tmp_path / "out").case_ids == ("case1", "free")
    assert list((tmp_path / "out" / ".tmp").iterdir()) == []


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_executors_write_the_same_bytes(own_source: Path, prepared: d3.Store, tmp_path: Path, kind: str) -> None:
    made = ThreadPoolExecutor(2) if kind == "threads" else ProcessPoolExecutor(2, get_context("forkserver"))
    with made as executor:
        report = d3.prepare_many(d3.read_manifest(own_source), tmp_path / "out", SPEC, executor=executor)
    assert report.done == ["case0", "case1", "free"]
    assert tree_hash(tmp_path / "out") == tree_hash(prepared.root)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.long)])
def test_killed_at_any_time_leaves_complete_cases_only(
    own_source: Path, prepared: d3.Store, tmp_path: Path, kills: int
) -> None:
    out = tmp_path / "out"
    program = (
        "import sys, girih_data3d as d3; print('ready', flush=True);"
        "d3.prepare_many(d3.read_manifest(sys.argv[1]), sys.argv[2], d3.PrepareSpec())"
    )
    for delay in np.linspace(0.05, 0.3, kills):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(own_source), str(out)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if (out / "dataset.json").exists():
            store = d3.Store.open(out)
            for case_id in store:
                np.testing.assert_array_equal(store[case_id].to_xarray(), prepared[case_id].to_xarray())
    report = d3.prepare_many(d3.read_manifest(own_source), out, SPEC)
    assert sorted(report.done + report.skipped) == ["case0", "case1", "free"]
    assert tree_hash(out) == tree_hash(prepared.root)
    assert list((out / ".tmp").iterdir()) == []


def test_leftovers_of_living_processes_stay(own_source: Path, tmp_path: Path) -> None:
    aside = tmp_path / "out" / ".tmp"
    aside.mkdir(parents=True)
    node = os.uname().nodename
    (aside / f"{os.getpid()}@{node}@alive").mkdir()
    (aside / f"{os.getpid()}@elsewhere@unknown").mkdir()
    old = aside / f"{os.getpid()}@elsewhere@old"
    old.mkdir()
    os.utime(old, (0, 0))
    d3.prepare_many(d3.read_manifest(own_source), tmp_path / "out", SPEC)
    assert sorted(p.name.rpartition("@")[2] for p in aside.iterdir()) == ["alive", "unknown"]
