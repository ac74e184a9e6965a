"""What the README tells people to type works as written (with small sizes added)."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import noxfile
import pytest

import girih_data3d
from girih.cli import COMMANDS, main
from girih_data3d.cli import main as data3d

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SMALL = {
    "prepare": [],
    "pretrain": ["--patch-zyx", "32", "32", "32", "--batch-size", "2", "--steps", "2"],
    "finetune": ["--steps", "2", "--warmup-steps", "1"],
    "predict": ["--fast", "--device", "cpu"],
    "evaluate": ["--draws", "20"],
    "look": [],
    "plan": ["--workers", "0"],
    "split": ["--folds", "3"],
    "leakage": [],
}


def test_the_commands_on_own_scans(
    raw: Path, plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("labelled/train", "labelled/test"):
        shutil.copytree(raw, tmp_path / name)
    (tmp_path / "unlabelled").mkdir()
    for number in range(2):
        shutil.copy(raw / f"case{number}.nii.gz", tmp_path / "unlabelled")
    monkeypatch.chdir(tmp_path)
    starts = ("girih ", "girih-data3d ")
    lines = [shlex.split(line, comments=True) for line in README.splitlines() if line.startswith(starts)]
    first = ["prepare"] * 3 + ["pretrain", "finetune", "predict", "evaluate", "look"]
    assert [line[1] for line in lines] == [*first, "plan", "prepare", "split", "leakage", "finetune"]
    for program, name, *given in lines:
        arguments = [*given, *SMALL[name]]
        if program == "girih-data3d":  # the unlabelled scans are those of the test set here, and that is found
            assert data3d([name, *arguments]) == (1 if name == "leakage" else 0), capsys.readouterr().err
            continue
        if name in ("pretrain", "finetune"):
            arguments += ["--workers", "0", "--device", "cpu"]
            planned = "plan.json" in arguments  # a network for 11 GB
            arguments = [plan if a == "plan.json" else a for a in arguments] + ([] if planned else ["--plan", plan])
        assert main([name, *arguments]) == 0, capsys.readouterr().err
    scores = json.loads((tmp_path / "predictions" / "retina.scores.json").read_text())
    assert scores["n_images"] == 3
    assert (tmp_path / "runs" / "mae" / "progress.png").stat().st_size > 1000
    assert (tmp_path / "look" / "report.html").stat().st_size > 10_000
    assert json.loads((tmp_path / "runs" / "retina" / "transfer.json").read_text())["counts"]["loaded"] > 0


def test_the_script_of_the_program_runs_as_a_file(raw: Path, tmp_path: Path) -> None:
    text = (ROOT / "packages" / "girih" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / "script.py").write_text(text)
    shutil.copytree(raw, tmp_path / "scans")
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, check=True, capture_output=True)
    assert len(girih_data3d.Store.open(tmp_path / "store")) == 3


def test_the_manifest_it_shows_is_a_manifest(raw: Path, tmp_path: Path) -> None:
    text = re.search(r"```json\n(.*?)```", README, re.DOTALL)
    assert text is not None
    (tmp_path / "dataset.json").write_text(text.group(1))
    shutil.copy(raw / "case1.nii.gz", tmp_path / "p01.nii.gz")
    shutil.copy(raw / "case1_instances.nii.gz", tmp_path / "p01_objects.nii.gz")
    dataset = girih_data3d.read_manifest(tmp_path)
    assert dataset.sources[0].instance_classes == {1: 0, 2: 0}
    assert girih_data3d.prepare_case(
        dataset.sources[0], tmp_path / "out", girih_data3d.PrepareSpec(), classes=dataset.classes
    ) == "done"  # fmt: skip


def test_the_sessions_and_commands_it_names_exist() -> None:
    text = README + (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / "packages/girih/README.md").read_text()
    for name in re.findall(r"nox -s \"?([a-z]+)", text):
        assert hasattr(noxfile, name)
    for name in re.findall(r"`girih ([a-z]+)", text):
        assert name in COMMANDS
    assert "nox -s demo" in README
    ci = (ROOT / ".ci" / "run").read_text()
    assert "python -m pip install nox && nox" in README
    assert "python -m pip install nox && nox" in ci
