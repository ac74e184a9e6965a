"""Validation during a training: on which cases, how it is scored, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from girih.checkpoints import load_model
from girih.cli import main
from girih.commands.evaluate import evaluate
from girih.commands.finetune import Finetune
from girih.commands.predict import Predict
from girih.commands.prepare import prepare
from girih.inference import Inference
from girih.loop import Training
from girih.recipes import Recipe, Restart
from girih_data3d import PrepareSpec, Store

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPE = Recipe(steps=3, lr=0.01)
TRAINING = Training(device="cpu", workers=0)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds of the dataset, the second without any case to validate on."""
    path = tmp_path_factory.mktemp("split") / "split.json"
    folds = [{"train": ["case0", "case2"], "val": ["case1"]}, {"train": ["case0", "case1", "case2"], "val": []}]
    path.write_text(json.dumps({"schema": 1, "dataset": "balls", "rule": "by hand", "seed": 0, "folds": folds}))
    return path


@pytest.fixture(scope="module")
def tune(store: Path, plan: str) -> Callable[..., Path]:
    """Train Retina U-Net into a folder, and return it."""

    def run(out: Path, **changes: Any) -> Path:
        settings: dict[str, Any] = {"data": store, "recipe": RECIPE, "augmentation": "none", "training": TRAINING}
        Finetune(out=out, plan=plan, **settings | {"validate_every": 2} | changes).run()
        return out

    return run


@pytest.fixture(scope="module")
def fold(tune: Callable[..., Path], split: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tune(tmp_path_factory.mktemp("fold") / "run", split=split, fold=0)


def test_a_fold_trains_on_its_cases_and_is_scored_on_the_others(
    fold: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = [json.loads(line) for line in (fold / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in table] == [2, 3]  # every two steps, and the last
    boxes, truth = tmp_path / "boxes", tmp_path / "truth"
    Predict(model=(fold,), data=store, out=boxes, inference=Inference(fast=True, device="cpu")).run()
    for folder in (boxes, shutil.copytree(store / "truth", truth)):
        for name in ("case0", "case2"):
            (folder / f"{name}.json").unlink()
    wanted = evaluate({"it": boxes}, truth, iou=0.1, draws=1)["it"]["ap"]["value"]
    assert table[-1]["ap"] == pytest.approx(wanted, abs=1e-12)
    capsys.readouterr()
    assert main(["sweep", "--model", str(fold), "--data", str(store), "--out", str(tmp_path / "m.json")]) == 2
    assert "is what a model was trained on" in " ".join(capsys.readouterr().err.split())


def test_it_is_the_training_on_a_dataset_of_these_cases_alone(
    fold: Path, tune: Callable[..., Path], raw: Path, others: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(raw, tmp_path / "raw")
    manifest = json.loads((copy / "dataset.json").read_text())
    cases = [case for case in manifest["cases"] if case["case_id"] != "case1"]
    (copy / "dataset.json").write_text(json.dumps(manifest | {"cases": cases}))
    prepare(copy, tmp_path / "two", PrepareSpec(), workers=0)
    assert Store.open(tmp_path / "two").case_ids == ("case0", "case2")
    alone = tune(tmp_path / "alone", data=tmp_path / "two", validation=others)
    configs = [json.loads((run / "config.json").read_text()) for run in (fold, alone)]
    assert configs[0]["dataset_sha256"] == configs[1]["dataset_sha256"] == configs[1]["store_sha256"]
    one, other = (load_model(run / "checkpoints" / "step_000000003") for run in (fold, alone))
    assert all(one[name].equal(other[name]) for name in one)


def test_another_validation_is_another_run_and_a_moved_one_the_same(
    fold: Path, tune: Callable[..., Path], split: Path, others: Path, tmp_path: Path
) -> None:
    again = Training(device="cpu", workers=0, resume=True)
    run, moved = shutil.copytree(fold, tmp_path / "run"), shutil.copy(split, tmp_path / "moved.json")
    tune(run, split=moved, fold=0, training=again)
    with pytest.raises(ValueError, match=r"cannot resume with another (dataset_sha256|fold)"):
        tune(run, validation=others, training=again)
    with pytest.raises(ValueError, match="cannot resume with another validate_every: found 2, asked for 1"):
        tune(run, split=split, fold=0, validate_every=1, training=again)


def refused(tune: Callable[..., Path], out: Path, **changes: Any) -> str:
    try:
        tune(out, **changes)
    except ValueError as error:
        assert not out.exists()
        return str(error)
    pytest.fail(f"trained with {changes}")


def test_what_cannot_be_validated_is_said_before_the_training(
    tune: Callable[..., Path], split: Path, store: Path, raw: Path, others: Path, tmp_path: Path
) -> None:
    run, content = tmp_path / "run", json.loads(split.read_text())
    for changes, words in (
        ({"split": split}, "fold is None, wanted both (the first fold is 0)"),
        ({"fold": 0}, "fold is 0, wanted both (the first fold is 0)"),
        ({"split": split, "fold": 0, "validation": others}, "wanted none with --split"),
        ({"split": split, "fold": 1}, "fold 1 has no cases in 'val'"),
        ({"split": split, "fold": 2}, "fold is 2, wanted 0 to 1"),
        ({"split": split, "fold": 0, "validate_every": 0}, "validate_every is 0, wanted 1 or more"),
        ({"validation": store}, "case0 and case0: the same"),
        ({"validation": tmp_path}, "dataset.json"),
        ({"split": split, "fold": 0, "restart": Restart(first_step=1, last_step=1)}, "validate_every is 2, wanted one"),
    ):
        assert words in refused(tune, run, **changes)

    content["folds"][0]["val"] = ["case9"]
    (tmp_path / "lacks.json").write_text(json.dumps(content))
    assert "case 'case9', which dataset 'balls'" in refused(tune, run, split=tmp_path / "lacks.json", fold=0)

    no_masks = {"instances": None, "instance_classes": None}
    for name, spec, change, words in (
        ("coarser", PrepareSpec(target_zyx_mm=(2.0, 2.0, 2.0)), {}, "was prepared with target_zyx_mm (2.0, 2.0, 2.0)"),
        ("nothing", PrepareSpec(), no_masks, "is unlabelled: it cannot be scored"),
        (
            "empty",
            PrepareSpec(),
            {**no_masks, "objects": []},
            "no case holds an object",
        ),
    ):
        folder = shutil.copytree(raw, tmp_path / f"raw_{name}")
        manifest = json.loads((folder / "dataset.json").read_text())
        (case,) = manifest["cases"][:1]
        scan = nibabel.load(folder / case["images"][0])
        turned = nibabel.Nifti1Image(np.asarray(scan.dataobj)[::-1], scan.affine)  # one that nobody trains on
        nibabel.save(turned, folder / case["images"][0])
        changed = {key: value for key, value in {**case, **change, "case_id": name}.items() if value is not None}
        (folder / "dataset.json").write_text(json.dumps(manifest | {"cases": [changed]}))
        prepare(folder, tmp_path / name, spec, workers=0)
        assert words in refused(tune, run, validation=tmp_path / name)


def test_a_training_too_short_to_be_judged_says_so(
    tune: Callable[..., Path], split: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tune(tmp_path / "run", split=split, fold=0, restart=Restart(below=1.1), recipe=Recipe(steps=1, lr=0.01))
    assert "ends before its start can be judged: it has 1 steps, --restart.last-step is 50000" in " ".join(
        capsys.readouterr().err.split()
    )
    assert (run / "progress.png").is_file()
    assert not (run / "restart.json").exists()
