"""Deformable DETR by the program: trained, validated, restarted, resumed, and in all that comes after a training."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

import girih_backbones
from girih.batches import make_batches
from girih.checkpoints import load_model
from girih.cli import main
from girih.commands.evaluate import evaluate
from girih.commands.finetune import Finetune
from girih.ensembles import load_ensemble
from girih.loop import Training
from girih.plans import load_plan
from girih.recipes import SCHEDULES, Recipe, Restart
from girih_detectors import DeformableDETR, RetinaUNet

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 4
RECIPE = Recipe(steps=STEPS, lr=1e-2, optimiser="adamw", weight_decay=1e-4, eps=1e-4, amsgrad=True, ema_decay=0.5)
FAILING = Restart(below=1.1, first_step=1, last_step=3, lr=1e-3, warmup_steps=1)
"""No AP is that high."""
LAST = f"checkpoints/step_{STEPS:09d}"


def girih_(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of an encoder alone, with few voxels in its maps."""
    path = tmp_path_factory.mktemp("plan") / "coarse.json"
    encoder = {
        "class": "ResidualEncoder",
        "kwargs": {"channels": [8, 12], "downsampling": [[8, 8, 8], [2, 2, 2]], "blocks": [1, 1]},
    }
    changes = {"encoder": encoder, "neck": None, "batch_size": 2, "patch_zyx": [32, 32, 32], "levels": [0]}
    path.write_text(json.dumps(load_plan("demo").to_json() | changes | {"spacing_zyx_mm": [1.0, 1.0, 1.0]}))
    return path


@pytest.fixture(scope="module")
def tune(store: Path, coarse: Path, others: Path) -> Callable[..., Path]:
    """Train Deformable DETR into a folder, and return it."""

    def run(out: Path, **changes: Any) -> Path:
        settings: dict[str, Any] = {
            "plan": str(coarse),
            "recipe": RECIPE,
            "augmentation": "none",
            "validation": others,
            "validate_every": 2,
            "training": Training(device="cpu", workers=0, checkpoint_every=2),
        }
        Finetune(data=store, out=out, detector="deformable_detr", **settings | changes).run()
        return out

    return run


@pytest.fixture(scope="module")
def scratch(tune: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector that has hardly learnt anything, but was validated."""
    return tune(tmp_path_factory.mktemp("scratch") / "run")


def same(one: Path, other: Path) -> bool:
    """Whether the last checkpoints hold the same numbers."""
    pairs = [[load_model(run / LAST, averaged=averaged) for run in (one, other)] for averaged in (False, True)]
    return all(a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a) for a, b in pairs)


def rows(table: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in table.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found]


def test_what_was_trained_predicts_and_is_scored_and_looked_at(scratch: Path, others: Path, tmp_path: Path) -> None:
    boxes, look = tmp_path / "boxes", tmp_path / "look"
    assert girih_("predict", "--model", scratch, "--data", others, "--out", boxes, "--fast", "--device", "cpu",
                  "--formats", "csv", "slicer", "nifti") == 0  # fmt: skip
    assert girih_("evaluate", "--predictions", boxes, "--truth", others / "truth", "--draws", 20) == 0
    assert girih_("look", "--predictions", boxes, "--data", others, "--truth", others / "truth", "--out", look) == 0
    assert len(json.loads((boxes / "case3.json").read_text())["boxes"]) > 0
    assert "case4" in (look / "report.html").read_text()

    validations = rows(scratch / "validation.jsonl")
    assert validations[-1]["ap"] > 0
    assert [row["step"] for row in validations] == [2, 4]
    scores = evaluate({"it": boxes}, others / "truth", iou=0.1, draws=1)
    assert validations[-1]["ap"] == pytest.approx(scores["it"]["ap"]["value"], abs=1e-12)

    config = json.loads((scratch / "config.json").read_text())
    assert config["settings"]["detector"] == "deformable_detr"
    assert not {"flavour", "segmentation"} & set(config["settings"])
    assert (config["plan"]["queries"], config["plan"]["objects_per_patch_p95"]) == (12, 1.0)
    (detector,) = load_ensemble([scratch]).detectors
    assert isinstance(detector, DeformableDETR)
    assert detector.levels == (0, 1)


def test_scratch_and_pre_trained_are_one_command(
    store: Path, coarse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, plan = tmp_path / "encoder.safetensors", load_plan(str(coarse))
    torch.manual_seed(7)
    encoder = girih_backbones.make_encoder(dict(plan.encoder), 1)
    girih_backbones.save_weights(weights, encoder=encoder)
    command = ["finetune", "--detector", "deformable_detr", "--data", store, "--plan", coarse, "--steps", 1, "--lr",
               "1e-9", "--augmentation", "none", "--device", "cpu", "--workers", 0]  # fmt: skip
    assert girih_(*command, "--out", tmp_path / "scratch") == 0
    assert girih_(*command, "--out", tmp_path / "tuned", "--weights", weights) == 0
    assert "nobody will notice if the training fails to start" in " ".join(capsys.readouterr().err.split())
    encoders = {}
    for name in ("scratch", "tuned"):
        recipe = json.loads((tmp_path / name / "config.json").read_text())["settings"]["recipe"]
        assert (recipe["optimiser"], recipe["weight_decay"], recipe["eps"], recipe["amsgrad"]) == (
            "adamw", 1e-4, 1e-4, True,
        )  # fmt: skip
        encoders[name] = load_ensemble([tmp_path / name]).detectors[0].pyramid.state_dict()
    wanted = encoder.state_dict()
    for name, tensor in wanted.items():
        torch.testing.assert_close(encoders["tuned"][name], tensor, atol=1e-6, rtol=0)
    assert not encoders["scratch"]["stem.conv.weight"].isclose(wanted["stem.conv.weight"], atol=1e-6).all()
    transfer = json.loads((tmp_path / "tuned" / "transfer.json").read_text())
    assert {row["status"] for row in transfer["rows"]} == {"loaded"}
    assert not (tmp_path / "scratch" / "transfer.json").exists()


def test_validation_and_checkpointing_change_no_number_of_the_training(
    tune: Callable[..., Path], scratch: Path, tmp_path: Path
) -> None:
    blind = tune(tmp_path / "blind", validation=None, checkpointing=True)
    assert same(blind, scratch)
    assert rows(blind / "metrics.jsonl") == rows(scratch / "metrics.jsonl")
    assert not (blind / "validation.jsonl").exists()


def broken_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk go after so many batches of every start."""

    def some(*args: Any, **kwargs: Any) -> Callable[[int], Iterator[dict[str, Any]]]:
        def made(start: int) -> Iterator[dict[str, Any]]:
            yield from islice(make_batches(*args, **kwargs)(start), batches)
            raise OSError("the disk is gone")

        return made

    monkeypatch.setattr("girih.commands.finetune.make_batches", some)


@pytest.mark.parametrize("batches", [1, 3])
def test_resumed_equals_uninterrupted(
    batches: int, tune: Callable[..., Path], scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        broken_after(batches, patch)
        with pytest.raises(OSError, match="the disk is gone"):
            tune(tmp_path / "broken")
    broken = tune(tmp_path / "broken", training=resuming())
    assert same(broken, scratch)
    for table in ("metrics.jsonl", "validation.jsonl"):
        assert rows(broken / table) == rows(scratch / table)


def resuming() -> Training:
    return Training(device="cpu", workers=0, checkpoint_every=2, resume=True)


def test_a_failed_start_begins_anew_and_is_the_run_with_the_second_recipe(
    tune: Callable[..., Path], scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tune(tmp_path / "run", restart=FAILING)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("the training begins anew with a learning rate of 0.001 after 1 steps of warm-up") == 1
    assert said.count("the second start has failed too") == 1
    record = json.loads((run / "restart.json").read_text())
    assert record["validations"][0]["step"] == 2
    assert record["mean_ap"] == rows(scratch / "validation.jsonl")[0]["ap"] == record["validations"][0]["ap"]
    first = rows(run / "failed_start" / "metrics.jsonl")
    assert first == rows(scratch / "metrics.jsonl")[:2]
    assert same(run, tune(tmp_path / "direct", recipe=FAILING.second(RECIPE)))
    assert not same(run, scratch)
    load_ensemble([run])


def test_a_restarted_run_killed_and_resumed_equals_the_one_that_was_not(
    tune: Callable[..., Path], store: Path, coarse: Path, others: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    command = [
        sys.executable, "-m", "girih.cli", "finetune", "--detector", "deformable_detr", "--data", store, "--out", out,
        "--plan", coarse, "--steps", 4, "--lr", 1e-2, "--ema-decay", 0.5, "--augmentation", "none", "--validation",
        others, "--validate-every", 2, "--restart.below", 1.1, "--restart.first-step", 1, "--restart.last-step", 3,
        "--restart.warmup-steps", 1, "--restart.lr", 1e-3, "--device", "cpu", "--workers", 0, "--checkpoint-every", 2,
    ]  # fmt: skip
    process = subprocess.Popen(
        [str(part) for part in command], env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for _ in range(6000):
        if (out / "restart.json").exists():
            break
        assert process.poll() is None, "the training ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / LAST).exists()
    tune(out, restart=FAILING, training=resuming())
    assert same(out, tune(tmp_path / "direct", recipe=FAILING.second(RECIPE)))
    assert len(rows(out / "metrics.jsonl")) == STEPS


def test_two_processes_equal_one(store: Path, coarse: Path, others: Path, tmp_path: Path) -> None:
    # SGD, because AdamW makes a step of a rounding error; seed 1, because 0 puts a box where |x| has no derivative
    command = [
        "finetune", "--detector", "deformable_detr", "--data", store, "--plan", coarse, "--steps", 2, "--lr", 1e-3,
        "--optimiser", "sgd", "--augmentation", "none", "--validation", others, "--validate-every", 1,
        "--restart.below", 1.1, "--restart.first-step", 1, "--restart.last-step", 1, "--restart.warmup-steps", 1,
        "--device", "cpu", "--workers", 0, "--seed", 1,
    ]  # fmt: skip
    assert girih_(*command, "--out", tmp_path / "one") == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [*launcher, "girih.cli", *map(str, command), "--out", str(tmp_path / "two")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = (load_model(tmp_path / name / "checkpoints" / "step_000000002") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=2e-6, rtol=2e-5)
    records = [json.loads((tmp_path / name / "restart.json").read_text()) for name in ("one", "two")]
    assert records[0]["mean_ap"] == pytest.approx(records[1]["mean_ap"], abs=0.02)
    assert done.stderr.count("the training begins anew") == 1
    assert [row["step"] for row in rows(tmp_path / "two" / "validation.jsonl")] == [1, 2]


def test_detectors_of_both_kinds_predict_together(
    scratch: Path, runs: list[Path], others: Path, tmp_path: Path
) -> None:
    ensemble = load_ensemble([runs[0], scratch])
    assert [type(detector) for detector in ensemble.detectors] == [RetinaUNet, DeformableDETR]
    for name, models in (("retina", runs[:1]), ("detr", [scratch]), ("both", [runs[0], scratch])):
        given = ("--data", others, "--out", tmp_path / name, "--fast", "--device", "cpu")
        assert girih_("predict", "--model", *models, *given) == 0
    scores = {name: json.loads((tmp_path / name / "case3.json").read_text())["scores"] for name in ("retina", "both")}
    assert scores["both"] != scores["retina"]
    merging = tmp_path / "merging.json"
    sweep = ("sweep", "--model", runs[0], scratch, "--data", others, "--out", merging, "--fast", "--device", "cpu")
    assert girih_(*sweep) == 0
    assert json.loads(merging.read_text())["score"] >= 0


def test_settings_that_mean_nothing_to_it_are_refused(
    store: Path, coarse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["finetune", "--detector", "deformable_detr", "--data", store, "--out", tmp_path, "--plan", coarse]
    for option in (["--flavour", "focal_l1"], ["--no-segmentation"], ["--segmentation"]):
        assert girih_(*command, *option) == 2
        name = option[0].removeprefix("--no-").removeprefix("--")
        assert f"--{name} is given, but deformable_detr has no such setting" in capsys.readouterr().err
    settings: dict[str, Any] = {"data": store, "out": tmp_path, "detector": "deformable_detr", "recipe": RECIPE}
    with pytest.raises(ValueError, match="flavour is 'hnm_giou', but deformable_detr has no such setting"):
        Finetune(**settings, flavour="hnm_giou").run()
    with pytest.raises(ValueError, match=r"SGD at 0\.01; deformable_detr wants its own"):
        Finetune(**settings | {"recipe": SCHEDULES["nndetection"].recipe}).run()
    with pytest.raises(ValueError, match=r"restart\.lr is 0\.001, wanted above 0, at most the first start's 0\.0001"):
        Finetune(
            **settings | {"recipe": replace(RECIPE, lr=1e-4), "plan": str(coarse)},
            restart=FAILING,
            validate_every=2,
            **validation_on_itself(tmp_path),
        ).run()
    assert not list(tmp_path.glob("checkpoints"))


def validation_on_itself(folder: Path) -> dict[str, Any]:
    """Return a split that validates on one of the cases."""
    path = folder / "split.json"
    folds = [{"train": ["case0", "case2"], "val": ["case1"]}]
    path.write_text(json.dumps({"schema": 1, "dataset": "balls", "rule": "by hand", "seed": 0, "folds": folds}))
    return {"split": path, "fold": 0}
