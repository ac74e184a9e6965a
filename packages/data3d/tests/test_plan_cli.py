"""girih-data3d plan, and prepare --plan, end to end on small files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import girih_data3d as d3
from girih_data3d.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


@pytest.fixture
def planned(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    out = tmp_path / "plan.json"
    code, text, progress = run(capsys, "plan", source, "--out", out, "--workers", 0)
    assert code == 0
    assert text.startswith(
        f"{out} (measurements: {tmp_path / 'fingerprint.json'}, made now)\n  dataset        toy: 3 cases, 1 un"
    )
    assert "  objects        2 small, 2 large\n" in text
    assert "  voxel size     2 x 0.799" in text
    assert "mean best IoU " in text
    assert progress.splitlines() == ["1/3 case0: done", "2/3 case1: done", "3/3 free: done"]
    return out


def test_plan_then_prepare(planned: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = d3.read_plan(planned)
    assert plan.normalisation is not None
    assert plan.normalisation["scheme"] == "ct"
    code, _, _ = run(
        capsys, "prepare", source, tmp_path / "out", "--plan", planned, "--workers", 0, "--dtype", "float32"
    )
    assert code == 0
    spec = d3.Store.open(tmp_path / "out").spec
    assert spec.target_zyx_mm == plan.spacing_zyx_mm
    assert spec.record == plan.normalisation
    assert spec.dtype == "float32"


@pytest.mark.parametrize(
    "options",
    [
        ("--spacing-zyx-mm", 1, 1, 1),
        ("--keep-spacing",),
        ("--normalisation", "zscore"),
        ("--mean", 0),
        ("--clip", 0, 1),
    ],
)
def test_options_that_the_plan_decides_are_refused(
    options: tuple[object, ...], planned: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = run(capsys, "prepare", source, tmp_path / "out", "--plan", planned, *options)
    assert code == 2
    assert (
        said
        == f"girih-data3d: {options[0]} is given beside --plan {planned}, which decides it; leave one of them out\n"
    )
    assert not (tmp_path / "out").exists()


def test_measurements_are_kept_and_belong_to_their_dataset(
    planned: Path, source: Path, own_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "fingerprint.json"
    before = planned.read_bytes()
    code, text, progress = run(capsys, "plan", source, "--out", planned)
    assert (code, progress, planned.read_bytes()) == (0, "", before)
    assert "read; made before, nothing changed since" in text
    more = ("--rule", "fixed", "--encoder", "retina_unet", "--memory-gb", 1, "--seed", 3)
    code, text, _ = run(capsys, "plan", source, "--out", tmp_path / "fixed.json", "--fingerprint", kept, *more)
    assert code == 0
    assert "patch          128 x 128 x 128, batches of 4" in text
    assert d3.read_plan(tmp_path / "fixed.json").memory_budget_bytes == 2**30
    manifest = json.loads((own_source / "dataset.json").read_text())
    (own_source / "dataset.json").write_text(json.dumps({**manifest, "cases": manifest["cases"][:2]}))
    more = ("--fingerprint", kept, "--overwrite", "--workers", 0)
    code, text, progress = run(capsys, "plan", own_source, "--out", planned, *more)
    assert (code, len(progress.splitlines())) == (0, 2)  # another list of cases
    os.utime(own_source / "0.nii.gz", (1, 1))
    assert len(run(capsys, "plan", own_source, "--out", planned, *more)[2].splitlines()) == 2
    assert run(capsys, "plan", own_source, "--out", planned, *more)[2] == ""
    (own_source / "dataset.json").write_text(json.dumps({**manifest, "name": "other"}))
    code, _, said = run(capsys, "plan", own_source, "--out", planned, "--fingerprint", kept)
    assert code == 2
    assert said.startswith(f"girih-data3d: {kept}: measured on dataset 'toy', wanted 'other'")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "."), ". is a folder, wanted the name of a file"),
        (("--out", "{folder}"), "{folder} is a folder, wanted the name of a file"),
        (("--fingerprint", "{folder}"), "{folder} is a folder, wanted the name of a file"),
        (("--out", "a.json", "--fingerprint", "a.json"), "a.json: both the plan and the measurements"),
        (("--batch-size", 0), "batch_size is 0, wanted 1 or more"),
        (("--memory-gb", "inf"), "memory_gb is inf, wanted"),
        (("--memory-gb", "nan"), "memory_gb is nan, wanted"),
        (("--seed", -1), "seed is -1, wanted 0 or more"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_measured(
    options: tuple[object, ...],
    message: str,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "scan").write_text("years of work")
    filled = [str(option).format(folder=tmp_path / "victim") for option in options]
    code, text, said = run(capsys, "plan", source, "--workers", 0, *filled)
    assert (code, text) == (2, "")
    assert said.startswith(f"girih-data3d: {message.format(folder=tmp_path / 'victim')}")
    assert [path.name for path in tmp_path.iterdir()] == ["victim"]
    assert (tmp_path / "victim" / "scan").read_text() == "years of work"


def test_an_edited_plan_stays(planned: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned.write_text(planned.read_text().replace('"batch_size": 4', '"batch_size": 2'))
    code, _, said = run(capsys, "plan", source, "--out", planned)
    assert code == 2
    assert f"{planned} holds something else than this plan; give --overwrite" in said
    assert d3.read_plan(planned).batch_size == 2
    assert run(capsys, "plan", source, "--out", planned, "--overwrite")[0] == 0
    assert d3.read_plan(planned).batch_size == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fingerprint.json", "plan.json"]


def test_files_that_are_passed_over_are_named(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scans").mkdir()
    shutil.copy(source / "free.nii.gz", tmp_path / "scans")
    (tmp_path / "scans" / "notes.txt").write_text("hello")
    code, _, said = run(capsys, "plan", tmp_path / "scans", "--out", tmp_path / "plan.json", "--workers", 0)
    assert code == 0
    assert said.startswith("girih-data3d: passed over: notes.txt\n")


def test_failed_cases_are_listed_and_measured_again(
    own_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (own_source / "0.nii.gz").read_bytes()
    (own_source / "0.nii.gz").write_bytes(b"hello")
    code, text, _ = run(capsys, "plan", own_source, "--out", tmp_path / "plan.json", "--workers", 0)
    assert code == 1
    assert f"1 cases failed and are not in it:\n  case0: ScanError: {own_source / '0.nii.gz'}" in text
    (own_source / "0.nii.gz").write_bytes(content)
    assert run(capsys, "plan", own_source, "--out", tmp_path / "plan.json", "--workers", 0, "--overwrite")[0] == 0
    assert not d3.read_fingerprint(tmp_path / "fingerprint.json").failed


def test_plan_as_a_program(source: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "girih_data3d.cli",
        "plan",
        str(source),
        "--workers",
        "2",
        "--out",
        "deep/plan.json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "deep").iterdir() if p.is_file()) == ["fingerprint.json", "plan.json"]
