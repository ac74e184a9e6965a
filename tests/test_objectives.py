"""Every objective with every encoder from a prepared dataset to a detector, by the commands' own classes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import tyro
from safetensors.torch import load_file

import girih_backbones
import girih_ssl
from girih.batches import make_batches
from girih.checkpoints import load_model
from girih.cli import main
from girih.commands.finetune import Finetune
from girih.commands.prepare import Prepare
from girih.commands.pretrain import Pretrain, choose_objective
from girih.ensembles import load_ensemble
from girih.loop import Training
from girih.networks import initialise, make_detector
from girih.plans import load_plan
from girih.recipes import Recipe
from girih_data3d import Store

PATCH = (16, 32, 32)
SHAPE = (40, 36, 32)
TRAINING = Training(device="cpu", workers=0)
ENCODERS: dict[str, dict[str, Any]] = {
    "residual": {
        "class": "ResidualEncoder",
        "kwargs": {
            "channels": [8, 8, 8],
            "downsampling": [[2, 2, 2], [2, 2, 2], [2, 2, 2]],
            "blocks": [1, 1, 1],
        },
    },
    "plain": {
        "class": "PlainEncoder",
        "kwargs": {
            "channels": [4, 8, 8, 8],
            "downsampling": [[1, 1, 1], [2, 2, 2], [1, 2, 2], [2, 2, 2]],
            "convs": [1, 1, 1, 1],
        },
    },
}
SMALL = {"voco": {"crop_zyx": (16, 16, 16), "projector_width": 16}}
"""Settings that fit the patch."""
OWN_AUGMENTATION = {"models_genesis", "voco"}
WITH_PICTURES = {"mae", "models_genesis", "s3d"}
LIVER = {"classes": ["liver", "tumour"], "regions": [[1, 3], [3]], "activation": "sigmoid"}
OWN = ["mae", "models_genesis", "multitalent", "s3d", "voco"]


@pytest.fixture(scope="module")
def tissues(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Prepared datasets with tissue labels: "one" has 1 channel and 3 cases, "two" 2 and 1, not normalised."""
    folder = tmp_path_factory.mktemp("tissues")
    return {"one": prepare(folder, "one", 1, 3), "two": prepare(folder, "two", 2, 1, normalisation="none")}


def prepare(folder: Path, name: str, channels: int, cases: int, unlabelled: tuple[int, ...] = (), **spec: Any) -> Path:
    raw, out = folder / f"raw_{name}", folder / name
    raw.mkdir()
    rows = [write_case(raw, f"{name}{number}", channels, number) for number in range(cases)]
    for number in unlabelled:
        del rows[number]["semantic"]
    content = {"schema": 1, "name": name, "classes": ["ball"], "cases": rows}
    (raw / "dataset.json").write_text(json.dumps(content))
    Prepare(data=raw, out=out, workers=0, **spec).run()
    return out


def write_case(raw: Path, case_id: str, channels: int, seed: int) -> dict[str, Any]:
    """Write noise with two bright slabs, their labels 1 and 3, and a box in one of them."""
    rng = np.random.default_rng(seed)
    tissue = np.zeros(SHAPE, np.uint8)
    tissue[5:15], tissue[20:30, 10:] = 1, 3
    names = []
    for channel in range(channels):
        volume = rng.normal(0, 1, SHAPE).astype(np.float32) + 2 * tissue
        names.append(f"{case_id}_{channel}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), raw / names[-1])
    nibabel.save(nibabel.Nifti1Image(tissue, np.eye(4)), raw / f"{case_id}_tissue.nii.gz")
    box = {"class": 0, "box_zyx": [20, 12, 12, 28, 20, 20]}
    return {"case_id": case_id, "images": names, "semantic": f"{case_id}_tissue.nii.gz", "objects": [box]}


def plan_file(folder: Path, encoder: str) -> str:
    neck = {"class": "UFPN", "kwargs": {"out_channels": 8, "first_level": 1}}
    plan = replace(load_plan("demo"), encoder=ENCODERS[encoder], neck=neck, patch_zyx=PATCH, levels=(1, 2))
    path = folder / f"{encoder}.json"
    path.write_text(json.dumps(plan.to_json() | {"spacing_zyx_mm": [1.0, 1.0, 1.0], "batch_size": 2}))
    return str(path)


def pretrain(data: tuple[Path, ...], out: Path, name: str, encoder: str, **changes: Any) -> Path:
    """Train two steps of an objective and return the encoder's file."""
    Pretrain(
        data=data,
        out=out,
        objective=girih_ssl.objectives()[name](**SMALL.get(name, {})),
        plan=plan_file(out.parent, encoder),
        patch_zyx=PATCH,
        batch_size=changes.pop("batch_size", 2),
        recipe=changes.pop("recipe", Recipe(steps=2, lr=1e-2, momentum=0.9)),
        training=changes.pop("training", TRAINING),
        **changes,
    ).run()
    return out / "encoder.safetensors"


@pytest.mark.parametrize(("name", "encoder"), [*product(OWN, ENCODERS), ("denoise", "plain")])  # a third party's
def test_an_objective_trains_an_encoder_for_a_detector(
    name: str, encoder: str, tissues: dict[str, Path], tmp_path: Path
) -> None:
    averaged = encoder == "plain"  # the export is the moving average then
    recipe = Recipe(steps=2, lr=1e-2, momentum=0.9, ema_decay=0.5 if averaged else 0.0)
    channels = 2 if encoder == "plain" else 1
    data = tissues["two" if channels == 2 else "one"]
    weights = pretrain((data,), tmp_path / "run", name, encoder, recipe=recipe)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["augmented"] == (name not in OWN_AUGMENTATION)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(np.isfinite(row["loss"]) for row in rows)
    trained = load_model(tmp_path / "run" / "checkpoints" / "step_000000002", averaged=averaged)
    exported = load_file(weights)
    assert all(tensor.equal(trained[key]) for key, tensor in exported.items() if key.startswith("encoder."))
    assert (tmp_path / "run" / "reconstruction.png").exists() == (name in WITH_PICTURES)

    plan = load_plan(str(tmp_path / f"{encoder}.json"))
    detector = make_detector(plan, in_channels=channels, classes=("ball",), segmentation=True, seed=1)
    read = girih_backbones.read_weights(weights)
    assert read.header["steps"] == 2
    report, warnings = initialise(detector, read, Store.open(data).spec, PATCH, stem="exact", allow=())
    assert warnings == []
    state = detector.pyramid.encoder.state_dict()
    assert report.counts["loaded"] == len(state)
    assert all(tensor.equal(exported[f"encoder.{key}"]) for key, tensor in state.items())


@pytest.mark.parametrize("neck", ["unet", "plan"])
def test_multitalent_of_one_and_two_channels_and_what_a_detector_takes_of_it(
    neck: str, tissues: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = tmp_path / "labels.json"
    told.write_text(json.dumps({"schema": 1, "datasets": {"one": LIVER}}))
    both = (tissues["one"], tissues["two"])
    weights = pretrain(both, tmp_path / "run", "multitalent", "plain", datasets=told, neck=neck)
    said = capsys.readouterr().err
    assert "the datasets differ in normalisation" in said
    assert all(f"'{name}': {{'scheme': '{scheme}'" in said for name, scheme in (("one", "zscore"), ("two", "none")))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["datasets"]["one"]["labels"] == {"channels": 1, **LIVER}
    assert config["datasets"]["two"]["labels"] == {
        "channels": 2, "classes": ["label 1", "label 3"], "regions": [[1], [3]], "activation": "softmax",
    }  # fmt: skip
    read = girih_backbones.read_weights(weights)
    assert read.header["stems"] == {"one": 1, "two": 2}
    own = {key: t for key, t in read.tensors.items() if key.startswith("encoder.stem.")}
    assert all(t.equal(read.tensors[key.replace("encoder.stem", "stems.one")]) for key, t in own.items())

    tuned = tmp_path / "tuned"
    arguments = ["finetune", "--data", tissues["two"], "--out", tuned, "--plan", tmp_path / "plain.json", "--weights",
                 weights, "--stem", "dataset:two", "--no-segmentation", "--steps", "1", "--warmup-steps", "0", "--lr",
                 "1e-9", "--augmentation", "none", "--workers", "0", "--device", "cpu"]  # fmt: skip
    assert main([str(argument) for argument in arguments]) == 0
    stem = load_ensemble([tuned]).detectors[0].pyramid.encoder.state_dict()["stem.conv.weight"]
    torch.testing.assert_close(stem, read.tensors["stems.two.conv.weight"])


def test_the_settings_of_an_objective_are_options() -> None:
    chosen = choose_objective(["voco", "--data", "a", "b", "--out", "c", "--objective.crop-zyx", "16", "16", "32"])
    assert chosen is not None
    (_, config), arguments = chosen
    command = tyro.cli(Pretrain[config], args=[*arguments, "--augment", "True"])  # type: ignore[valid-type]
    assert command.data == (Path("a"), Path("b"))
    assert command.objective == girih_ssl.VoCoConfig(crop_zyx=(16, 16, 32))
    assert command.augment


def test_two_processes_with_different_datasets_equal_one(tissues: dict[str, Path], tmp_path: Path) -> None:
    stores, recipe = tuple(tissues.values()), Recipe(steps=2, lr=0.1, momentum=0.9)
    pretrain(stores, tmp_path / "one", "multitalent", "plain", recipe=recipe, batch_size=4)
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "girih.cli",
            "pretrain", "multitalent", "--data", *stores, "--out", tmp_path / "two", "--plan", tmp_path / "plain.json",
            "--patch-zyx", "16", "32", "32", "--batch-size", "4", "--steps", "2", "--lr", "0.1", "--momentum", "0.9",
            "--clip-norm", "0", "--workers", "0", "--device", "cpu",
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = (load_model(tmp_path / run / "checkpoints" / "step_000000002") for run in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=2e-5, rtol=2e-4)


def test_resumed_with_stems_that_share_tensors_equals_uninterrupted(
    tissues: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"recipe": Recipe(steps=4, lr=0.1, momentum=0.9, ema_decay=0.5)}
    stores, every_two = tuple(tissues.values()), replace(TRAINING, checkpoint_every=2)
    pretrain(stores, tmp_path / "whole", "multitalent", "plain", training=every_two, **settings)
    with monkeypatch.context() as patch:
        patch.setattr("girih.commands.pretrain.make_batches", three_batches)
        with pytest.raises(OSError, match="the disk is gone"):
            pretrain(stores, tmp_path / "broken", "multitalent", "plain", training=every_two, **settings)
    again = replace(every_two, resume=True)
    pretrain(stores, tmp_path / "broken", "multitalent", "plain", training=again, **settings)
    for averaged in (False, True):
        last = [tmp_path / run / "checkpoints" / "step_000000004" for run in ("whole", "broken")]
        one, other = (load_model(path, averaged=averaged) for path in last)
        assert one.keys() == other.keys()
        assert all(one[name].equal(other[name]) for name in one)


def three_batches(*args: Any, **kwargs: Any) -> Callable[[int], Iterator[dict[str, Any]]]:
    def batches(start: int) -> Iterator[dict[str, Any]]:
        yield from islice(make_batches(*args, **kwargs)(start), 3)
        raise OSError("the disk is gone")

    return batches


def test_datasets_of_different_channels_are_refused_where_no_stem_takes_them(
    tissues: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"different numbers of channels, \{'one': 1, 'two': 2\}"):
        pretrain(tuple(tissues.values()), tmp_path / "run", "mae", "plain")
    with pytest.raises(ValueError, match="are both of the name 'one'"):
        pretrain((tissues["one"], tissues["one"]), tmp_path / "run", "mae", "plain")


def test_supervised_pre_training_needs_tissue_labels(store: Path, tissues: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="MultiTalent is supervised"):
        pretrain((store,), tmp_path / "run", "multitalent", "plain")
    with pytest.raises(ValueError, match=r"dataset 'balls' .*case 'case0' has no 'semantic' labels"):
        pretrain((tissues["one"], store), tmp_path / "run", "multitalent", "plain")
    part = prepare(tmp_path, "part", 1, 2, unlabelled=(1,))
    with pytest.raises(ValueError, match=r"dataset 'part' .*case 'part1' has no 'semantic' labels"):
        pretrain((part,), tmp_path / "run", "multitalent", "plain")
    told = tmp_path / "labels.json"
    told.write_text(json.dumps({"schema": 1, "datasets": {"one": {**LIVER, "regions": [[1, 2], [2]]}}}))
    with pytest.raises(ValueError, match=r"'one' .*class 'liver' is of labels \[2\] that never .*do: \[1, 3\]"):
        pretrain((tissues["one"],), tmp_path / "run", "multitalent", "plain", datasets=told)
    told.write_text(json.dumps({"schema": 1, "datasets": {"one": LIVER}}))
    with pytest.raises(ValueError, match=r"labels\.json says what labels mean, but this objective reads no labels"):
        pretrain((tissues["one"],), tmp_path / "run", "mae", "plain", datasets=told)
    assert not (tmp_path / "run").exists()


def test_the_head_goes_first_and_the_encoder_follows(
    tissues: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("girih.checkpoints.KEEP", 9)
    weights = tmp_path / "encoder.safetensors"
    encoder = girih_backbones.make_encoder(ENCODERS["plain"], 1)
    girih_backbones.save_weights(weights, encoder=encoder)
    settings: dict[str, Any] = {
        "data": tissues["one"],
        "out": tmp_path / "run",
        "plan": plan_file(tmp_path, "plain"),
        "recipe": Recipe(steps=3, lr=0.01, warmup_steps=1, ema_decay=0.5),
        "head_first": True,
        "segmentation": False,
        "augmentation": "none",
        "training": replace(TRAINING, checkpoint_every=1),
    }
    with pytest.raises(ValueError, match="weights is None, wanted some, as the head is to go first"):
        Finetune(**settings).run()
    with pytest.raises(ValueError, match="warmup_steps is 0, wanted 1 or more, for the head alone"):
        Finetune(**settings | {"weights": str(weights), "recipe": Recipe(steps=3, lr=0.01)}).run()
    with pytest.raises(ValueError, match="steps is 3, wanted more than the 4 of both warm-ups"):
        Finetune(**settings | {"weights": str(weights), "recipe": Recipe(steps=3, lr=0.01, warmup_steps=2)}).run()
    Finetune(**settings, weights=str(weights)).run()
    held, last = (load_model(tmp_path / "run" / "checkpoints" / f"step_00000000{step}") for step in (1, 3))
    start = {f"pyramid.encoder.{key}": tensor for key, tensor in encoder.state_dict().items()}
    assert all(held[key].equal(tensor) for key, tensor in start.items())
    assert not any(last[key].equal(tensor) for key, tensor in start.items())

    detector = load_ensemble([tmp_path / "run"]).detectors[0].state_dict()  # the moving average
    average = load_model(tmp_path / "run" / "checkpoints" / "step_000000003", averaged=True)
    assert all(tensor.equal(average[key]) for key, tensor in detector.items())
    assert not detector["class_head.output.bias"].equal(last["class_head.output.bias"])
