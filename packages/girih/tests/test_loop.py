import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from girih.checkpoints import load_model
from girih.loop import Training, to_device, train
from girih.recipes import Recipe, sawtooth_lr
from girih.runs import RunFolder


def run(
    tmp_path: Path,
    batches: list[float],
    *,
    resume: bool = False,
    stop: int | None = None,
    lr_at: Callable[[str, int], float] | None = None,
    part: float = 2.0,
    validate: Callable[[nn.Module, int], None] | None = None,
    validate_every: int = 0,
    **changes: Any,
) -> list[str]:
    """Train one weight towards a number per batch; returns what was exported, as `step:weight`.

    `stop`: the loader fails after so many batches.
    """
    model, exported = nn.Linear(1, 1, bias=False), []
    nn.init.constant_(model.weight, 0.5)
    config = {"schema": "girih-run/1", "settings": {"seed": 0}}
    training, folder = Training(device="cpu", checkpoint_every=2, resume=resume), RunFolder(tmp_path)

    def make_batches(start: int) -> Iterator[dict[str, Any]]:
        for number, value in enumerate(batches[start:], start):
            if number == stop:
                raise OSError("the disk is gone")
            yield {"x": torch.full((1, 1), value), "seed": torch.zeros(1)}

    train(
        model,
        make_batches,
        lambda net, batch: {"loss": net(batch["x"]).square().sum(), "twice": part * net(batch["x"]).sum().detach()},
        Recipe(**{"steps": len(batches), "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, **changes}),
        [{"params": [model.weight], "name": "encoder"}],
        training=training,
        accelerator=training.make_accelerator(folder),
        folder=folder,
        config=config,
        batch_size=1,
        n_per_epoch=10,
        title="test",
        on_checkpoint=lambda net, step: exported.append(f"{step}:{net.weight.item():.4f}"),
        lr_at=lr_at,
        validate=validate or (lambda net, step: None),
        validate_every=validate_every,
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


def test_weights_that_are_not_finite_are_never_a_checkpoint(tmp_path: Path) -> None:
    # the loss, (2.4e19 w)^2, is finite with w = 0.32; its gradient, 2 (2.4e19)^2 w, is not
    with pytest.raises(ValueError, match=r"weights are no longer finite at step 4, 'weight' first of 1 tensors"):
        run(tmp_path, [1.0, 1.0, 1.0, 2.4e19])
    checkpoints = tmp_path / "checkpoints"
    assert (checkpoints / "latest").read_text() == "step_000000002"
    assert load_model(checkpoints / "step_000000002")["weight"].isfinite().all()
    assert [path.name for path in checkpoints.glob("*step*")] == ["step_000000002"]


def test_a_part_of_the_loss_that_is_not_finite_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'twice', a part of the loss, became inf at step 1"):
        run(tmp_path, [1.0], part=float("inf"))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_what_is_read_on_the_cpu_is_not_moved() -> None:
    batch = {"image": torch.zeros(1), "boxes": [torch.zeros(1)], "seed": torch.zeros(1), "case_id": ["a"]}
    moved = to_device(batch, torch.device("meta"))
    assert moved["image"].device.type == moved["boxes"][0].device.type == "meta"
    assert moved["seed"].device.type == "cpu"
    assert moved["case_id"] == ["a"]


def test_the_moving_average_is_exported_and_the_weights_train_on(tmp_path: Path) -> None:  # by hand
    # weights after the steps: 0.4, 0.32, 0.256; average: 0.4, (0.4 + 0.32) / 2 = 0.36, (0.36 + 0.256) / 2 = 0.308
    steady = {"lr_at": lambda part, step: 0.1, "ema_decay": 0.5}
    assert run(tmp_path, [1.0] * 3, **steady) == ["2:0.3600", "3:0.3080"]
    last = tmp_path / "checkpoints" / "step_000000003"
    torch.testing.assert_close(load_model(last)["weight"], torch.tensor([[0.256]]))
    torch.testing.assert_close(load_model(last, averaged=True)["weight"], torch.tensor([[0.308]]))


def test_weights_without_an_average_have_none(tmp_path: Path) -> None:
    run(tmp_path, [1.0])
    with pytest.raises(ValueError, match=r"train\.pt: holds no moving average"):
        load_model(tmp_path / "checkpoints" / "step_000000001", averaged=True)


@pytest.mark.parametrize("stop", [1, 3, 5, 7])  # while the head trains alone, while all warm up (twice), after that
def test_a_run_resumed_in_any_phase_is_the_run_that_was_not(stop: int, tmp_path: Path) -> None:
    batches = [0.5, 1.0, -1.0, 2.0, 0.3, 1.5, 1.0, 0.7]
    changes = {"warmup_steps": 3, "momentum": 0.9, "ema_decay": 0.9}
    changes["lr_at"] = partial(sawtooth_lr, Recipe(steps=8, lr=0.1, warmup_steps=3))
    whole = run(tmp_path / "whole", batches, **changes)
    with pytest.raises(OSError, match="the disk is gone"):
        run(tmp_path / "broken", batches, stop=stop, **changes)
    assert run(tmp_path / "broken", batches, resume=True, **changes)[-1] == whole[-1]
    rows = [without_time(tmp_path / name / "metrics.jsonl") for name in ("whole", "broken")]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 8
    last = [tmp_path / name / "checkpoints" / "step_000000008" for name in ("whole", "broken")]
    for averaged in (False, True):
        one, other = (load_model(path, averaged=averaged)["weight"] for path in last)
        assert one.equal(other)


def test_validations_come_every_so_often_and_at_the_end_after_the_row_and_before_the_checkpoint(tmp_path: Path) -> None:
    seen: list[tuple[int, float, int, bool]] = []

    def validate(net: nn.Module, step: int) -> None:
        logged = len((tmp_path / "metrics.jsonl").read_text().splitlines())
        seen.append(
            (step, round(net.weight.item(), 4), logged, (tmp_path / "checkpoints" / f"step_{step:09d}").exists())
        )

    steady = {"lr_at": lambda part, step: 0.1, "ema_decay": 0.5}
    run(tmp_path, [1.0] * 3, validate=validate, validate_every=2, **steady)
    assert seen == [(2, 0.36, 2, False), (3, 0.308, 3, False)]  # of the moving average


def test_what_a_validation_raises_ends_the_training(tmp_path: Path) -> None:
    def validate(net: nn.Module, step: int) -> None:
        raise KeyError(step)

    with pytest.raises(KeyError, match="2"):
        run(tmp_path, [1.0] * 3, validate=validate, validate_every=2)
    assert not (tmp_path / "checkpoints").exists()


def test_weights_that_are_not_finite_are_not_validated(tmp_path: Path) -> None:
    steps: list[int] = []
    with pytest.raises(ValueError, match="weights are no longer finite at step 2"):
        run(tmp_path, [1.0, 2.4e19], validate=lambda net, step: steps.append(step), validate_every=1)
    assert steps == [1]


def without_time(metrics: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
