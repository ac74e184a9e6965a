"""Detectors trained on real nodule shapes find held-out ones; trained on other scans' labels they do not."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

import girih_data3d
from girih.commands.evaluate import evaluate
from girih.commands.finetune import Finetune
from girih.commands.predict import Predict
from girih.commands.prepare import prepare
from girih.inference import Inference
from girih.loop import Training
from girih.plans import load_plan
from girih.recipes import Recipe, Restart
from girih.samples import fetch
from girih.samples.lidc_in_ct import write_lidc_in_ct
from girih_detectors import DeformableDETR

SPACING_MM = 2.0
SPEC = girih_data3d.PrepareSpec(target_zyx_mm=(SPACING_MM,) * 3)
RECIPE = Recipe(steps=200, lr=2e-3, warmup_steps=10, optimiser="adamw", weight_decay=1e-4, clip_norm=12.0)

DETR_RECIPE = Recipe(
    steps=800, lr=1e-3, warmup_steps=20, optimiser="adamw", weight_decay=1e-4, amsgrad=True, ema_decay=0.98
)
DETR_PLAN = {
    "encoder": {
        "class": "ResidualEncoder",
        "kwargs": {"channels": [16, 32, 64], "downsampling": [[2, 2, 2]] * 3, "blocks": [1, 2, 2]},
    },
    "neck": None,
    "patch_zyx": [24, 24, 24],
    "batch_size": 6,
    "levels": [0],
}
"""Patches so small that a nodule, of 4 voxels, is a large object, as the lesions of the study are in theirs."""
SMALL_DETR = partial(DeformableDETR, dim=64, encoder_layers=1, decoder_layers=3, feedforward=256)
"""The study's width and depth have hardly begun to learn (AP 0.01) after 500 steps, at 5e-4."""


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


@pytest.mark.long
def test_deformable_detr_learns_from_its_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("girih.networks.DeformableDETR", SMALL_DETR)
    made = write_lidc_in_ct(fetch(), tmp_path / "raw", spacing_mm=SPACING_MM)
    prepare(made.test, tmp_path / "test", SPEC)
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(load_plan("demo").to_json() | DETR_PLAN))
    scans = {"true labels": made.train, "shuffled labels": with_labels_of_others(made.train, tmp_path / "shuffled")}
    curves = {}
    for name, source in scans.items():
        prepare(source, tmp_path / name / "prepared", SPEC)
        Finetune(
            data=tmp_path / name / "prepared",
            out=tmp_path / name / "run",
            detector="deformable_detr",
            plan=str(plan),
            recipe=DETR_RECIPE,
            augmentation="none",
            object_fraction=0.9,
            validation=tmp_path / "test",
            validate_every=400,
            restart=Restart(below=0.0),
            training=Training(device="cpu", workers=0),
        ).run()
        rows = [json.loads(line) for line in (tmp_path / name / "run" / "validation.jsonl").read_text().splitlines()]
        curves[name] = {row["step"]: round(row["ap"], 3) for row in rows}
    with capsys.disabled():
        print(f"\nDeformable DETR, AP@0.1 on the nodules of an unseen CT by step: {curves}")
    last = DETR_RECIPE.steps
    assert curves["true labels"][last] > curves["shuffled labels"][last] + 0.1


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
