"""A detector trained on real nodule shapes finds held-out ones; trained on other scans' labels it does not."""

import json
import shutil
from pathlib import Path

import pytest

import girih_data3d
from girih.commands.evaluate import evaluate
from girih.commands.finetune import Finetune
from girih.commands.predict import Predict
from girih.commands.prepare import prepare
from girih.inference import Inference
from girih.loop import Training
from girih.recipes import Recipe
from girih.samples import fetch
from girih.samples.lidc_in_ct import write_lidc_in_ct

SPACING_MM = 2.0
SPEC = girih_data3d.PrepareSpec(target_zyx_mm=(SPACING_MM,) * 3)
RECIPE = Recipe(steps=200, lr=2e-3, warmup_steps=10, optimiser="adamw", weight_decay=1e-4, clip_norm=12.0)


@pytest.mark.long
def test_a_detector_learns_from_its_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = write_lidc_in_ct(fetch(), tmp_path / "raw", spacing_mm=SPACING_MM)
    prepare(made.test, tmp_path / "test", SPEC)
    scans = {"true labels": made.train, "shuffled labels": with_labels_of_others(made.train, tmp_path / "shuffled")}
    folders = {name: train_and_predict(source, tmp_path / name, tmp_path / "test") for name, source in scans.items()}
    scores = evaluate(folders, tmp_path / "test" / "truth", iou=0.1, resample="images")
    found = {name: scores[name]["ap"]["value"] for name in folders}
    curves = {name: learning_curve(tmp_path / name / "run") for name in folders}
    with capsys.disabled():
        print(f"\nAP@0.1 on {scores['true labels']['n_objects']} nodules of an unseen CT: {found}; losses: {curves}")
    assert found["true labels"] > found["shuffled labels"] + 0.1


def with_labels_of_others(train: Path, out: Path) -> Path:
    """Copy a dataset; every scan gets the labels of the next one of its CT: in the lungs, but elsewhere."""
    shutil.copytree(train, out)
    manifest = json.loads((out / "dataset.json").read_text())
    rows = manifest["cases"]
    for row in rows:
        same = [other for other in rows if other["patient_id"] == row["patient_id"]]
        giver = same[(same.index(row) + 1) % len(same)]
        assert giver is not row
        row["relabelled"] = {key: giver[key] for key in ("instances", "instance_classes", "ignore")}
    for row in rows:
        row |= row.pop("relabelled")
    (out / "dataset.json").write_text(json.dumps(manifest))
    return out


def train_and_predict(source: Path, out: Path, test: Path) -> Path:
    prepare(source, out / "prepared", SPEC)
    Finetune(
        data=out / "prepared",
        out=out / "run",
        plan="demo",
        recipe=RECIPE,
        augmentation="none",
        object_fraction=0.67,
        training=Training(device="cpu", workers=0, checkpoint_every=100),
    ).run()
    Predict(model=(out / "run",), data=test, out=out / "predictions" / out.name, inference=Inference(fast=True)).run()
    return out / "predictions" / out.name


def learning_curve(run: Path) -> list[float]:
    """Return the mean loss of every 40 steps."""
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [round(sum(losses[i : i + 40]) / 40, 3) for i in range(0, len(losses), 40)]
