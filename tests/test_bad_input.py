"""Bad input ends with one message that names the file or field, exit code 2, no traceback, and nothing half-written."""

import gzip
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from girih.cli import main


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run the program, expect exit code 2 and no traceback, and return what it said."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as exit_:  # the option parser's own way out
        code = exit_.code
    captured = capsys.readouterr()
    said = captured.err + captured.out
    assert code == 2, said
    assert "Traceback" not in said
    return " ".join(said.split())


def leftovers(folder: Path) -> list[Path]:
    """Whatever a failed preparation left of the case."""
    return [
        path
        for path in folder.rglob("*")
        if (path.suffix == ".zarr" and path.name != "index.zarr")
        or (".tmp" in path.parts[len(folder.parts) :] and path.is_file())
    ]


def scan(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


NOISE = np.random.default_rng(0).normal(size=(12, 12, 12)).astype(np.float32)


def truncated(folder: Path) -> None:
    path = scan(folder / "cut.nii.gz", NOISE)
    path.write_bytes(path.read_bytes()[:2000])


def four_d(folder: Path) -> None:
    scan(folder / "cut.nii.gz", np.stack([NOISE, NOISE], axis=-1))


def with_nan(folder: Path) -> None:
    data = NOISE.copy()
    data[3, 4, 5] = np.nan
    scan(folder / "cut.nii.gz", data)


def singular(folder: Path) -> None:
    content = nibabel.Nifti1Image(NOISE, np.eye(4)).to_bytes()
    header = nibabel.Nifti1Header(content[:348])
    affine = np.eye(4)
    affine[:, 1] = affine[:, 0]
    header.set_sform(affine, code=1)
    (folder / "cut.nii.gz").write_bytes(gzip.compress(header.binaryblock + content[348:]))


def unknown(folder: Path) -> None:
    (folder / "cut.jpg").write_bytes(b"not a scan")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (truncated, ["cut.nii.gz"]),
        (four_d, ["cut.nii.gz", "a fourth axis of 2 frames"]),
        (with_nan, ["cut.nii.gz", "finite"]),
        (singular, ["cut.nii.gz", "affine"]),
        (unknown, []),
        (lambda folder: None, []),
    ],
    ids=["truncated", "4D", "NaN", "singular affine", "unknown format", "empty folder"],
)
def test_a_scan_that_cannot_be_used(make, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    make(raw)
    said = fails(capsys, "prepare", "--data", raw, "--out", out, "--workers", 1)
    assert all(word in said for word in [str(raw) if not words else "", *words]), said
    assert not leftovers(out)


def test_an_unknown_option_and_an_unknown_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "--colour" in fails(capsys, "prepare", "--data", tmp_path, "--out", tmp_path, "--colour", "red")
    assert "'dance'" in fails(capsys, "dance")
    assert "unknown objective 'dream'" in fails(capsys, "pretrain", "dream")


def test_scans_to_evaluate_on_are_not_pretrained_on(
    store: Path, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed = shutil.copytree(raw, tmp_path / "raw")
    manifest = json.loads((renamed / "dataset.json").read_text())
    case = manifest["cases"][2] | {"case_id": "z"}
    (renamed / "dataset.json").write_text(json.dumps(manifest | {"name": "held out", "cases": [case]}))
    held_out = tmp_path / "held_out"
    assert main(["prepare", "--data", str(renamed), "--out", str(held_out), "--spacing-zyx-mm", "2", "2", "2"]) == 0
    arguments = ("mae", "--data", store, "--out", tmp_path / "run", "--plan", "demo", "--held-out", held_out)
    assert "case2 and z: the same" in fails(capsys, "pretrain", *arguments)
    assert not (tmp_path / "run").exists()


def test_a_wrong_key_in_a_plan(capsys: pytest.CaptureFixture[str], store: Path, plan: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(json.loads(Path(plan).read_text()) | {"learning_rate": 1}))
    said = fails(capsys, "finetune", "--data", store, "--out", tmp_path / "run", "--plan", path)
    assert "unknown field 'learning_rate'" in said
    assert str(path) in said
    assert not (tmp_path / "run").exists()


def test_a_wrong_key_in_a_manifest(capsys: pytest.CaptureFixture[str], raw: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(raw, tmp_path / "raw")
    manifest = json.loads((broken / "dataset.json").read_text())
    manifest["cases"][0]["lables"] = "x"
    (broken / "dataset.json").write_text(json.dumps(manifest))
    assert "lables" in fails(capsys, "prepare", "--data", broken, "--out", tmp_path / "out")


def test_weights_of_another_architecture(
    capsys: pytest.CaptureFixture[str], store: Path, plan: str, tmp_path: Path
) -> None:
    import girih_backbones

    weights = tmp_path / "other.safetensors"
    other = {"class": "PlainEncoder", "kwargs": {"channels": [4, 8], "convs": [1, 1]}}
    girih_backbones.save_weights(weights, encoder=girih_backbones.make_encoder(other, 1))
    said = fails(
        capsys,
        "finetune",
        "--data",
        store,
        "--out",
        tmp_path / "run",
        "--plan",
        plan,
        "--weights",
        weights,
        "--device",
        "cpu",
    )
    assert "PlainEncoder" in said
    assert "ResidualEncoder" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x04}q\x00.", b'{"a": 1}'], ids=["empty", "pickle", "json"])
def test_weights_that_are_no_weights(
    content: bytes, capsys: pytest.CaptureFixture[str], store: Path, plan: str, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(content)
    said = fails(
        capsys,
        "finetune",
        "--data",
        store,
        "--out",
        tmp_path / "run",
        "--plan",
        plan,
        "--weights",
        weights,
        "--device",
        "cpu",
    )
    assert str(weights) in said
    assert not (tmp_path / "run").exists()


def prepared(raw: Path, out: Path, change) -> Path:
    """Prepare a copy of the raw dataset whose first case was changed."""
    copy = shutil.copytree(raw, out.with_name("raw"))
    manifest = json.loads((copy / "dataset.json").read_text())
    change(manifest["cases"][0])
    shutil.copy(copy / manifest["cases"][0]["images"][0], copy / "second.nii.gz")
    (copy / "dataset.json").write_text(json.dumps(manifest))
    assert main(["prepare", "--data", str(copy), "--out", str(out), "--workers", "1"]) == 0
    return out


def unlabelled(case: dict) -> None:
    del case["instances"], case["instance_classes"]


def two_channels(case: dict) -> None:
    case["images"].append("second.nii.gz")


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (unlabelled, [], ["'balls'", "'case0'", "'instances'"]),
        (unlabelled, ["--no-segmentation"], ["'case0'", "unlabelled"]),
        (two_channels, [], ["'case1' has 1 channels, 'case0' has 2"]),
    ],
    ids=["no instances", "no truth", "channels"],
)
def test_a_dataset_is_looked_at_before_the_training_starts(
    change, options: list[str], words: list[str], raw: Path, plan: str, tmp_path: Path, capsys
) -> None:
    store, run = prepared(raw, tmp_path / "out", change), tmp_path / "run"
    said = fails(capsys, "finetune", "--data", store, "--out", run, "--plan", plan, "--device", "cpu", *options)
    assert all(word in said for word in words), said
    assert not run.exists()


def test_a_plan_of_other_classes(raw: Path, store: Path, plan: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(json.loads(Path(plan).read_text()) | {"classes": ["cube"]}))
    said = fails(capsys, "finetune", "--data", store, "--out", tmp_path / "run", "--plan", path, "--device", "cpu")
    assert "('cube',)" in said
    assert "('ball',)" in said


def test_a_model_folder_that_is_none(capsys: pytest.CaptureFixture[str], store: Path, tmp_path: Path) -> None:
    said = fails(capsys, "predict", "--model", tmp_path, "--data", store, "--out", tmp_path / "boxes")
    assert "config.json" in said
    assert not (tmp_path / "boxes").exists()


def test_predictions_of_other_cases(capsys: pytest.CaptureFixture[str], store: Path, tmp_path: Path) -> None:
    said = fails(capsys, "evaluate", "--predictions", tmp_path, "--truth", store / "truth")
    assert "case0" in said
