"""girih-data3d plan, and prepare --plan, end to end on small files."""

import json
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
        f"{out} (measurements: {tmp_path / 'fingerprint.json'})\n  dataset        toy: 3 cases, 1 un"
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
    more = ("--rule", "fixed", "--encoder", "retina_unet", "--memory-gb", 1, "--seed", 3)
    code, text, _ = run(capsys, "plan", source, "--out", tmp_path / "fixed.json", "--fingerprint", kept, *more)
    assert code == 0
    assert "patch          128 x 128 x 128, batches of 4" in text
    assert d3.read_plan(tmp_path / "fixed.json").memory_budget_bytes == 2**30
    manifest = json.loads((own_source / "dataset.json").read_text())
    (own_source / "dataset.json").write_text(json.dumps({**manifest, "cases": manifest["cases"][:2]}))
    code, _, said = run(capsys, "plan", own_source, "--out", planned, "--fingerprint", kept)
    assert code == 2
    assert said.startswith(f"girih-data3d: {kept}: measured on dataset 'toy', 3 cases")


def test_failed_cases_are_listed_and_measured_again(
    own_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (own_source / "0.nii.gz").read_bytes()
    (own_source / "0.nii.gz").write_bytes(b"hello")
    code, text, _ = run(capsys, "plan", own_source, "--out", tmp_path / "plan.json", "--workers", 0)
    assert code == 1
    assert f"1 cases failed and are not in it:\n  case0: ScanError: {own_source / '0.nii.gz'}" in text
    (own_source / "0.nii.gz").write_bytes(content)
    assert run(capsys, "plan", own_source, "--out", tmp_path / "plan.json", "--workers", 0)[0] == 0
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
