from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from torch import nn

from girih.cli import main
from girih.commands.finetune import Finetune, choose_schedule
from girih.recipes import SCHEDULES, Recipe, sawtooth_lr


def test_poly_schedule_with_warm_up() -> None:  # by hand
    recipe = Recipe(steps=110, lr=1.0, warmup_steps=10)
    assert recipe.lr_at(0) == 1e-6
    np.testing.assert_allclose(recipe.lr_at(5), 1e-6 + (1 - 1e-6) / 2)
    assert recipe.lr_at(10) == 1.0
    np.testing.assert_allclose(recipe.lr_at(60), 0.5**0.9)
    np.testing.assert_allclose(recipe.lr_at(109), 0.01**0.9)


def test_the_default_of_fine_tuning_is_the_schedule_of_the_study() -> None:
    recipe = Finetune(data=Path("data"), out=Path("out")).recipe
    assert (recipe.optimiser, recipe.momentum, recipe.weight_decay) == ("sgd", 0.9, 3e-5)
    assert (recipe.clip_norm, recipe.ema_decay) == (0.0, 0.0)
    for step in (0, 1, 3999):  # linear from 1e-6 to 0.01 over 4000 steps
        np.testing.assert_allclose(recipe.lr_at(step), 1e-6 + (0.01 - 1e-6) * step / 4000)
    for step in (4000, 50_000, 124_999):  # then poly over the other 121,000
        np.testing.assert_allclose(recipe.lr_at(step), 0.01 * (1 - (step - 4000) / 121_000) ** 0.9)


def test_sawtooth_warms_up_twice() -> None:  # by hand
    recipe = Recipe(steps=10, lr=1.0, warmup_steps=2)
    head = [sawtooth_lr(recipe, "head", step) for step in range(10)]
    encoder = [sawtooth_lr(recipe, "encoder", step) for step in range(10)]
    np.testing.assert_allclose(head[:5], [0.5, 1.0, 0.5, 1.0, 1.0])
    assert encoder == [0.0, 0.0, *head[2:]]
    np.testing.assert_allclose(head[4:], [(1 - t / 6) ** 0.9 for t in range(6)])


def test_sawtooth_without_warm_up_is_poly() -> None:
    recipe = Recipe(steps=5, lr=1.0)
    assert [sawtooth_lr(recipe, "encoder", t) for t in range(5)] == [recipe.lr_at(t) for t in range(5)]


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_recipe_makes_the_optimiser(name: str, kind: type) -> None:
    optimiser = Recipe(steps=1, lr=0.1, optimiser=name).make_optimiser(nn.Linear(1, 1).parameters())
    assert isinstance(optimiser, kind)
    assert optimiser.defaults["lr"] == 0.1


def test_the_recipe_of_deformable_detr_is_nndetections() -> None:
    recipe, head_first, restart = SCHEDULES["detr"]
    assert (recipe.steps, recipe.lr, recipe.warmup_steps) == (100 * 2500, 3e-4, 0)
    assert not head_first
    optimiser = recipe.make_optimiser(nn.Linear(1, 1).parameters())
    assert isinstance(optimiser, torch.optim.AdamW)
    wanted = {"lr": 3e-4, "betas": (0.9, 0.999), "eps": 1e-4, "weight_decay": 1e-4, "amsgrad": True}
    assert {name: optimiser.defaults[name] for name in wanted} == wanted
    for step in (0, 125_000):
        np.testing.assert_allclose(recipe.lr_at(step), 3e-4 * (1 - step / 250_000) ** 0.9)
    assert (restart.below, restart.first_step, restart.last_step) == (0.1, 15 * 2500, 20 * 2500)
    assert all(SCHEDULES[name].restart.below == 0 for name in SCHEDULES if name != "detr")


def test_a_detector_brings_its_schedule_which_single_options_override() -> None:
    required = ["--data", "x", "--out", "y", "--detector", "deformable_detr"]
    command = chosen(required)
    assert (command.detector, command.recipe, command.restart) == ("deformable_detr", *SCHEDULES["detr"][::2])
    changed = chosen([*required, "--lr", "1e-4", "--no-amsgrad", "--restart.below", "0.2"])
    assert changed.recipe == replace(command.recipe, lr=1e-4, amsgrad=False)
    assert changed.restart == replace(command.restart, below=0.2)
    other = chosen([*required, "--schedule", "nnunet"])
    assert (other.detector, other.recipe) == ("deformable_detr", SCHEDULES["nnunet"].recipe)
    assert chosen(required[:4]).restart.below == 0


@pytest.mark.parametrize(
    "change",
    [{"steps": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"warmup_steps": 5}, {"momentum": 1.0}, {"weight_decay": -1.0},
     {"clip_norm": -1.0}, {"ema_decay": 1.0}, {"ema_decay": -0.1}, {"eps": 0.0}, {"eps": float("inf")}],
)  # fmt: skip
def test_a_number_out_of_range_is_named(change: dict[str, float]) -> None:
    (name, value), *_ = change.items()
    with pytest.raises(ValueError, match=f"{name} is {value}, wanted"):
        Recipe(**{"steps": 5, "lr": 0.1} | change)


def test_a_schedule_is_the_default_and_single_options_override_it(capsys: pytest.CaptureFixture[str]) -> None:
    required = ["--data", "x", "--out", "y"]
    assert chosen(required) == Finetune(data=Path("x"), out=Path("y"))
    command = chosen([*required, "--schedule=sawtooth", "--lr", "0.5", "--no-head-first"])
    assert command.recipe == Recipe(steps=125_000, lr=0.5, warmup_steps=12_500)
    assert not command.head_first
    assert chosen([*required, "--schedule", "sawtooth"]).head_first
    with pytest.raises(SystemExit) as exit_:
        main(["finetune", "--schedule", "magic"])
    assert exit_.value.code == 2
    assert "invalid choice: 'magic'" in capsys.readouterr().err


def chosen(arguments: list[str]) -> Finetune:
    command, others = choose_schedule(arguments)
    return tyro.cli(command, args=others)


def test_the_help_of_a_schedule_shows_its_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["finetune", "--schedule", "nnunet", "--help"])
    assert "(default: 12500)" in capsys.readouterr().out
    assert SCHEDULES["nnunet"].recipe.warmup_steps == 12_500


@pytest.mark.parametrize(
    "command", [("pretrain", "mae", "--data", "a", "--data", "b"), ("evaluate", "--truth=a", "--truth", "b")]
)
def test_an_option_given_twice_is_refused_for_the_parser_would_drop_the_first(command, capsys) -> None:
    assert main(command) == 2
    assert "is given 2 times, wanted once" in capsys.readouterr().err


def test_a_stem_is_of_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stem is dataset:ct, wanted exact without --weights"):
        Finetune(data=tmp_path, out=tmp_path, stem="dataset:ct").run()
