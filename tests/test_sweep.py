"""`girih sweep` on real files, and its result in `girih predict`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from girih.cli import main
from girih.commands.evaluate import evaluate
from girih.commands.prepare import prepare
from girih_data3d import PrepareSpec
from girih_detectors.inference import collect

CPU = ("--device", "cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def girih_(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def said_by(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def unseen(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another dataset than that of the training, in truth two cases of it."""
    copy, out = shutil.copytree(raw, tmp_path_factory.mktemp("unseen") / "raw"), tmp_path_factory.mktemp("unseen")
    manifest = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps(manifest | {"cases": manifest["cases"][1:]}))
    prepare(copy, out, PrepareSpec(), workers=0)
    return out


@pytest.fixture(scope="module")
def swept(runs: list[Path], unseen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("swept") / "merging.json"
    assert girih_("sweep", "--model", *runs, "--data", unseen, "--out", out, "--fast", *CPU) == 0
    return out


def test_the_swept_merging_reaches_its_score_in_predictions(
    swept: Path, runs: list[Path], unseen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(swept.read_text())
    assert found["score"] >= found["start_score"] > 0
    for field, value in found["merging"].items():
        rows = [row for row in found["rows"] if row["parameter"] == field]
        assert not rows or value in [row["value"] for row in rows]
    for name, merging, wanted in (("best", ("--merging", swept), "score"), ("start", (), "start_score")):
        out = tmp_path / name
        assert girih_("predict", "--model", *runs, "--data", unseen, "--out", out, "--fast", *CPU, *merging) == 0
        ious = [0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5]
        scores = [evaluate({"it": out}, unseen / "truth", iou=iou, draws=1)["it"]["ap"]["value"] for iou in ious]
        assert np.mean(scores) == pytest.approx(found[wanted], abs=1e-9)
    assert "warning" not in said_by(capsys)
    arguments = ("--data", unseen, "--out", tmp_path / "one", "--fast", *CPU, "--merging", swept)
    assert girih_("predict", "--model", runs[0], *arguments) == 0
    said = said_by(capsys)
    assert said.count("warning: ") == 1
    assert "merging.json is for models ['step_000000001 " in said


def test_a_second_sweep_looks_at_no_case_again(
    swept: Path, runs: list[Path], unseen: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    shutil.copytree(swept.with_name("merging.candidates"), tmp_path / "again.candidates")
    arguments = ("sweep", "--data", unseen, "--out", tmp_path / "again.json", "--fast", *CPU, "--model")
    seen: list[str] = []
    monkeypatch.setattr("girih.inference.collect", lambda *a, **k: seen.append("") or collect(*a, **k))
    assert girih_(*arguments, *runs) == 0
    assert not seen
    assert (tmp_path / "again.json").read_text() == swept.read_text()
    (tmp_path / "again.candidates" / "case1.npz").unlink()
    assert girih_(*arguments, *runs) == 0
    assert len(seen) == 1
    assert (tmp_path / "again.json").read_text() == swept.read_text()
    (tmp_path / "again.candidates" / "case2.npz").write_bytes(b"PK\x03\x04 cut")
    capsys.readouterr()
    assert girih_(*arguments, *runs) == 2
    assert "case2.npz: cannot be read, remove it" in said_by(capsys)
    assert girih_(*arguments, runs[0]) == 2
    assert "candidates.json: models is" in said_by(capsys)


def test_a_sweep_of_the_training_data_or_into_another_file_or_by_several_is_refused(
    runs: list[Path], store: Path, unseen: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("girih.inference.collect", lambda *_, **__: pytest.fail("a tile was looked at"))
    arguments = ("sweep", "--model", runs[0], *CPU, "--data")
    assert girih_(*arguments, store, "--out", tmp_path / "merging.json") == 2
    assert "is what a model was trained on, where it finds more than elsewhere: choose other" in said_by(capsys)
    (tmp_path / "precious.json").write_text("{}")
    for name, words in (("precious.json", "schema is None"), ("merging", "wanted the name of a file that ends")):
        assert girih_(*arguments, unseen, "--out", tmp_path / name) == 2
        assert words in said_by(capsys)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert girih_(*arguments, unseen, "--out", tmp_path / "merging.json") == 2
    assert "girih sweep: one process alone can do this, but the environment says WORLD_SIZE=2" in said_by(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.json"]


def test_a_sweep_needs_labels(runs: list[Path], raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(raw, tmp_path / "raw")
    manifest = json.loads((copy / "dataset.json").read_text())
    for case in manifest["cases"]:
        del case["instances"], case["instance_classes"]
    (copy / "dataset.json").write_text(json.dumps(manifest))
    prepare(copy, tmp_path / "unlabelled", PrepareSpec(), workers=0)
    for case in manifest["cases"]:
        case["objects"] = []
    (copy / "dataset.json").write_text(json.dumps(manifest))
    prepare(copy, tmp_path / "empty", PrepareSpec(), workers=0)
    said = {
        "unlabelled": "case 'case0' is unlabelled",
        "empty": "no case holds an object to find",
        "raw": "is no prepared dataset: `girih prepare` makes one",
    }
    for data, words in said.items():
        out = tmp_path / "merging.json"
        assert girih_("sweep", "--model", runs[0], "--data", tmp_path / data, "--out", out, *CPU) == 2
        assert words in said_by(capsys)
        assert not list(tmp_path.glob("merging*"))
