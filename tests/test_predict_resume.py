"""`girih predict --resume`: what is kept, what is made again, and what is refused."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel
import pytest
from safetensors.torch import load_file, save_file

import girih.atomic
from girih.cli import main
from girih.commands.prepare import prepare
from girih.ensembles import load_ensemble
from girih_data3d import PrepareSpec
from girih_detectors.inference import collect

CPU = ("--device", "cpu")
RECORD = ".girih/predict.json"
pytestmark = pytest.mark.usefixtures("one_thread")


def girih_(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def boxes_of(out: Path, case_id: str) -> dict[str, Any]:
    return dict(json.loads((out / f"{case_id}.json").read_text()))


def said_by(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_a_full_disk_stops_everything_and_keeps_what_is_done(
    runs: list[Path], store: Path, alone: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    out, left, sync = tmp_path / "boxes", 4, os.fsync

    def fills_up(handle: int) -> None:  # the record, both files of case0, and the markups of case1 still find room
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    arguments = ("predict", "--model", runs[0], "--data", store, "--out", out, "--fast", *CPU)
    with monkeypatch.context() as patched:
        patched.setattr(girih.atomic.os, "fsync", fills_up)
        assert girih_(*arguments) == 2
    said = said_by(capsys)
    assert "case 'case1'" in said
    assert f"{out / 'case1.json'} cannot be written: No space left on device" in said
    assert "finished cases are kept, --resume goes on" in said
    assert sorted(contents(out)) == [RECORD, "case0.json", "slicer/case0.mrk.json", "slicer/case1.mrk.json"]
    assert girih_(*arguments, "--resume") == 0
    assert contents(out) == contents(alone)


def test_resume_keeps_cases_adds_formats_and_refuses_another_prediction(
    runs: list[Path], store: Path, alone: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    out = shutil.copytree(alone, tmp_path / "boxes")
    (out / "case1.json").unlink()
    arguments = ("predict", "--data", store, "--out", out, "--resume", *CPU, "--formats", "nifti", "csv")
    assert girih_(*arguments, "--fast", "--model", runs[0]) == 0
    said = said_by(capsys)
    assert "case0: kept, nifti added" in said
    assert f"case1: {len(boxes_of(alone, 'case1')['scores'])} boxes" in said
    wanted = contents(alone)
    del wanted["slicer/case1.mrk.json"]  # of a case that was made again, and this time not for 3D Slicer
    assert wanted.items() <= contents(out).items()
    assert not (out / "slicer" / "case1.mrk.json").exists()
    marks = nibabel.load(out / "nifti" / "case0.nii.gz")
    assert marks.shape == (40, 36, 32)
    assert marks.get_fdata().max() <= 100
    monkeypatch.setattr("girih.inference.collect", lambda *_, **__: pytest.fail("a tile was looked at"))
    assert girih_(*arguments, "--fast", "--model", runs[0]) == 0
    fast = ("--model", runs[0], "--fast")
    for other, field in (
        (("--model", *runs, "--fast"), "models"),
        (("--model", runs[0]), "mirror"),
        ((*fast, "--min-score", "0.5"), "min_score"),
        ((*fast, "--precision", "bf16"), "precision"),
    ):
        capsys.readouterr()
        assert girih_(*arguments, *other) == 2
        assert f"{RECORD}: {field} is" in said_by(capsys)
    (out / "case1.json").unlink()
    monkeypatch.undo()
    table = (out / "boxes.csv").read_bytes()
    (out / "boxes.csv").write_text("old")  # is brought up to date where it lies, also if nobody asks for it
    assert girih_(*arguments[:-3], "--formats", "slicer", *fast) == 0
    assert (out / "boxes.csv").read_bytes() == table
    (out / "boxes.csv").unlink()
    assert girih_(*arguments[:-3], "--formats", "slicer", *fast) == 0
    assert not (out / "boxes.csv").exists()


def test_resume_makes_again_what_is_damaged_or_of_another_scan(
    runs: list[Path], store: Path, raw: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    scans, out, seen = tmp_path / "scans", tmp_path / "boxes", []
    scans.mkdir()
    for name in ("a", "b", "c"):
        shutil.copy(raw / "case1.nii.gz", scans / f"{name}.nii.gz")
    monkeypatch.setattr("girih.inference.collect", lambda *a, **k: seen.append("") or collect(*a, **k))
    arguments = ("predict", "--model", runs[0], "--data", scans, "--out", out, "--fast", "--resume", *CPU)
    assert girih_(*arguments) == 0
    first = contents(out)
    assert len(seen) == 3
    assert "source" in boxes_of(out, "a")
    shutil.copy(scans / "a.nii.gz", scans / "copy.nii.gz")  # the same content, written later
    (scans / "copy.nii.gz").replace(scans / "a.nii.gz")
    shutil.copy(raw / "case2.nii.gz", scans / "b.nii.gz")  # another patient, by the same name
    (out / "c.json").write_text('{"schema": "girih-detections/1", "case')
    moved, out = out, tmp_path / "elsewhere"  # a folder of predictions can be moved, and so can its parents
    moved.rename(out)
    monkeypatch.chdir(out)
    assert girih_(*(Path() if argument == moved else argument for argument in arguments)) == 0
    assert len(seen) == 5
    said = said_by(capsys)
    assert "b: " in said
    assert "made again: the scan is another one than that of b.json" in said
    assert "made again: c.json: not JSON" in said
    assert {name for name, content in contents(out).items() if content != first[name]} == {
        "b.json", "boxes.csv", "slicer/b.mrk.json",
    }  # fmt: skip
    assert boxes_of(out, "b")["source"] != boxes_of(out, "a")["source"] == boxes_of(out, "c")["source"]
    shutil.copy(scans / "a.nii.gz", scans / "b.nii.gz")
    (scans / "b.nii.gz").write_bytes((scans / "b.nii.gz").read_bytes()[:5000])
    assert girih_(*(Path() if argument == moved else argument for argument in arguments)) == 2
    assert not (out / "b.json").exists()  # the boxes of another scan are not left for those of this one


def test_resume_of_a_dataset_that_was_prepared_again(
    runs: list[Path], raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans, out = shutil.copytree(raw, tmp_path / "raw"), tmp_path / "boxes"
    arguments = ("predict", "--model", runs[0], "--data", tmp_path / "data", "--out", out, "--fast", "--resume", *CPU)
    for again in (False, True):
        prepare(scans, tmp_path / "data", PrepareSpec(), workers=0, overwrite=again)
        assert girih_(*arguments) == 0
        shutil.copy(scans / "case0.nii.gz", scans / "case2.nii.gz")
    assert "case2: " in (said := said_by(capsys))
    assert said.count("made again: the scan is another one") == 1


def test_other_weights_of_the_same_step_are_another_model(
    runs: list[Path], store: Path, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = shutil.copytree(runs[0], tmp_path / "run"), shutil.copytree(alone, tmp_path / "boxes")
    assert load_ensemble([run]).models == load_ensemble(runs[:1]).models
    path = run / "checkpoints" / "step_000000001" / "model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name] + 1}, path)
    assert girih_("predict", "--model", run, "--data", store, "--out", out, "--fast", "--resume", *CPU) == 2
    assert "predict.json: models is ['step_000000001 " in said_by(capsys)
