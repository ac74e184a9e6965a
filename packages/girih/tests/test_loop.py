import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from girih.loop import Training, to_device, train
from girih.recipes import Recipe
from girih.runs import RunFolder


def test_poly_schedule_with_warm_up() -> None:  # by hand
    recipe = Recipe(steps=110, lr=1.0, warmup_steps=10)
    assert recipe.lr_at(0) == 1e-6
    np.testing.assert_allclose(recipe.lr_at(5), 1e-6 + (1 - 1e-6) / 2)
    assert recipe.lr_at(10) == 1.0
    np.testing.assert_allclose(recipe.lr_at(60), 0.5**0.9)
    np.testing.assert_allclose(recipe.lr_at(109), 0.01**0.9)


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_recipe_makes_the_optimiser(name: str, kind: type) -> None:
    optimiser = Recipe(steps=1, lr=0.1, optimiser=name).make_optimiser(nn.Linear(1, 1).parameters())
    assert isinstance(optimiser, kind)
    assert optimiser.defaults["lr"] == 0.1


def run(
    tmp_path: Path, batches: list[float], *, resume: bool = False, steps: int | None = None, **changes
) -> list[str]:
    """Train one weight towards a number per batch; returns what was exported, as `step:weight`."""
    model, exported = nn.Linear(1, 1, bias=False), []
    nn.init.constant_(model.weight, 0.5)
    config = {"schema": "girih-run/1", "settings": {"seed": 0}}
    training, folder = Training(device="cpu", checkpoint_every=2, resume=resume), RunFolder(tmp_path)
    train(
        model,
        lambda start: ({"x": torch.full((1, 1), value), "seed": torch.zeros(1)} for value in batches[start:]),
        lambda net, batch: {"loss": net(batch["x"]).square().sum(), "twice": 2 * net(batch["x"]).sum().detach()},
        Recipe(steps=len(batches), lr=0.1, momentum=0.0, weight_decay=0.0, **changes),
        model.parameters(),
        training=training,
        accelerator=training.make_accelerator(folder),
        folder=folder,
        config=config,
        batch_size=1,
        n_per_epoch=10,
        title="test",
        on_checkpoint=lambda net, step: exported.append(f"{step}:{net.weight.item():.4f}"),
    )
    return exported


def test_one_step_is_the_hand_computed_one_and_everything_is_logged(tmp_path: Path) -> None:
    assert run(tmp_path, [1.0]) == ["1:0.4000"]  # 0.5 - 0.1 * 2 * 0.5
    (row,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (row["step"], row["loss"], row["twice"], row["lr"]) == (1, 0.25, 1.0, 0.1)
    assert (tmp_path / "progress.png").is_file()


def test_checkpoints_come_every_so_often_and_at_the_end(tmp_path: Path) -> None:
    assert [entry.split(":")[0] for entry in run(tmp_path, [1.0] * 5)] == ["2", "4", "5"]


def test_resuming_a_finished_run_trains_nothing_and_exports_again(tmp_path: Path) -> None:
    first = run(tmp_path, [1.0] * 3)
    before = (tmp_path / "metrics.jsonl").read_text()
    assert run(tmp_path, [1.0] * 3, resume=True) == first[-1:]
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    assert run(tmp_path, [1.0], clip_norm=0.5) == ["1:0.4500"]


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_logged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the loss became nan at step 2"):
        run(tmp_path, [1.0, float("nan"), 1.0])
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_what_is_read_on_the_cpu_is_not_moved() -> None:
    batch = {"image": torch.zeros(1), "boxes": [torch.zeros(1)], "seed": torch.zeros(1), "case_id": ["a"]}
    moved = to_device(batch, torch.device("meta"))
    assert moved["image"].device.type == moved["boxes"][0].device.type == "meta"
    assert moved["seed"].device.type == "cpu"
    assert moved["case_id"] == ["a"]
