"""A small labelled dataset in real files, prepared once by the program, and a plan that trains on it in seconds."""

import json
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from girih.commands.finetune import Finetune
from girih.commands.predict import Predict
from girih.commands.prepare import Prepare
from girih.inference import Inference
from girih.loop import Training
from girih.plans import load_plan
from girih.recipes import Recipe

torch.set_num_threads(2)


def write_scans(folder: Path, *, cases: int = 3, shape: tuple[int, int, int] = (40, 36, 32)) -> Path:
    """Write a raw dataset: noise with bright balls, instance masks, and its dataset.json. Returns the folder."""
    entries = []
    for number in range(cases):
        rng = np.random.default_rng(number)
        image = rng.normal(0, 1, shape).astype(np.float32)
        instances = np.zeros(shape, np.uint8)
        for k, centre in enumerate([(10, 10, 9), (28, 24, 20)][: 1 + number % 2], start=1):
            distance = np.linalg.norm(np.indices(shape) - np.reshape(centre, (3, 1, 1, 1)), axis=0)
            instances[distance <= 3 + k] = k
        image[instances > 0] += 6
        affine = np.diag([-1.0, 1.0, 1.0, 1.0])
        nibabel.save(nibabel.Nifti1Image(image, affine), folder / f"case{number}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(instances, affine), folder / f"case{number}_instances.nii.gz")
        entries.append({
            "case_id": f"case{number}", "images": [f"case{number}.nii.gz"],
            "instances": f"case{number}_instances.nii.gz",
            "instance_classes": {str(k): 0 for k in range(1, 2 + number % 2)},
        })  # fmt: skip
    manifest = {"schema": 1, "name": "balls", "classes": ["ball"], "modality": "CT", "cases": entries}
    (folder / "dataset.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scans(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="session")
def store(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "balls"
    Prepare(data=raw, out=out, workers=1).run()
    return out


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cases of the same kind, prepared in the same way, that nobody trains on."""
    raw, out = tmp_path_factory.mktemp("raw_others"), tmp_path_factory.mktemp("prepared_others") / "others"
    write_scans(raw, cases=5)
    manifest = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps(manifest | {"cases": manifest["cases"][3:]}))
    Prepare(data=raw, out=out, workers=1).run()
    return out


@pytest.fixture(scope="session")
def plan(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A plan of the demo's kind with patches of 32 voxels, as a file."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    content = load_plan("demo").to_json()
    content |= {"patch_zyx": [32, 32, 32], "spacing_zyx_mm": [1.0, 1.0, 1.0]}
    content["encoder"]["kwargs"] |= {"channels": [8, 12, 16, 16], "blocks": [1, 1, 1, 1]}
    content["neck"]["kwargs"]["out_channels"] = 16
    path.write_text(json.dumps(content))
    return str(path)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:  # as a process of torchrun has it, and the networks are tiny
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def runs(store: Path, plan: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two detectors that have hardly learnt anything."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        Finetune(
            data=store,
            out=folder / f"run{seed}",
            plan=plan,
            recipe=Recipe(steps=1, lr=0.01, warmup_steps=0),
            augmentation="none",
            training=Training(seed=seed, device="cpu", workers=0),
        ).run()
    return [folder / f"run{seed}" for seed in range(2)]


@pytest.fixture(scope="module")
def alone(one_thread: None, runs: list[Path], store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first detector finds in the dataset, in one process."""
    out = tmp_path_factory.mktemp("alone") / "boxes"
    Predict(model=(runs[0],), data=store, out=out, inference=Inference(fast=True, device="cpu")).run()
    return out
