"""What counts as a failed start, and what becomes of the run's folder, whenever it is killed."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import girih.restarts
from girih.loop import Training
from girih.recipes import SCHEDULES, Recipe, Restart
from girih.restarts import FailedStartError, has_restarted, judge
from girih.runs import RunFolder

RULE = Restart(below=0.5, first_step=20, last_step=35, lr=0.1, warmup_steps=5)
RECIPE = Recipe(steps=100, lr=0.3, optimiser="adamw")
APS = {10: 0.0, 20: 0.3, 30: 0.6, 40: 1.0}
"""Judged are two of the validations; their mean is 0.45."""


def folder_with(path: Path, aps: dict[int, float] = APS) -> RunFolder:
    folder = RunFolder(path)
    (folder.checkpoints / "step_000000030").mkdir(parents=True)
    (folder.checkpoints / "latest").write_text("step_000000030")
    folder.log({"step": 30, "loss": 1.0})
    (path / "config.json").write_text("{}")
    (path / "progress.png").write_text("a picture")
    for step, ap in aps.items():
        folder.log_validation({"step": step, "ap": ap, "seconds": 0.0})
    return folder


def judged(folder: RunFolder, rule: Restart = RULE, *, restarted: bool = False) -> None:
    judge(folder, rule, RECIPE, Training(device="cpu").make_accelerator(folder), restarted=restarted)


def restarted(folder: RunFolder) -> bool:
    return has_restarted(folder, Training(device="cpu").make_accelerator(folder))


def files(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): file.read_text() for file in sorted(path.rglob("*")) if file.is_file()}


def test_a_failed_start_is_put_aside_and_written_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_with(tmp_path)
    before = files(tmp_path)
    with pytest.raises(FailedStartError, match=r"step 20 to 35 is 0\.4500, below 0\.5"):
        judged(folder)
    said = capsys.readouterr().err
    assert "the start has failed: the mean validation AP" in said
    assert "anew with a learning rate of 0.1 after 5 steps of warm-up" in said
    record = json.loads(folder.restart.read_text())
    assert record["cleared"]
    assert [row["ap"] for row in record["validations"]] == [0.3, 0.6]
    assert record["mean_ap"] == pytest.approx(0.45)
    assert record["recipe"]["lr"] == 0.1
    assert record["rule"]["below"] == 0.5
    after = files(tmp_path)
    assert restarted(folder)
    assert files(tmp_path) == after
    for name in ("metrics.jsonl", "validation.jsonl", "progress.png"):
        assert after[f"failed_start/{name}"] == before[name]
        del after[f"failed_start/{name}"]
    assert set(after) == {"config.json", "restart.json"}


def test_a_start_at_the_threshold_has_not_failed(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {20: 0.5, 30: 0.5})
    before = files(tmp_path)
    judged(folder)
    assert files(tmp_path) == before
    assert not restarted(folder)


def test_a_second_failure_is_only_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_with(tmp_path)
    before = files(tmp_path)
    judged(folder, restarted=True)
    assert "the second start has failed too: the mean" in capsys.readouterr().err
    assert files(tmp_path) == before


class Killed(BaseException):
    pass


@pytest.mark.parametrize("survived", range(8))
def test_killed_at_any_moment_of_the_clearing_it_is_finished_later(
    survived: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, folder = folder_with(tmp_path / "whole"), folder_with(tmp_path / "killed")
    with pytest.raises(FailedStartError):
        judged(whole)
    done = 0

    def until_killed(act: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            if done == survived:
                raise Killed
            done += 1
            return act(*args, **kwargs)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(girih.restarts, "write_json", until_killed(girih.restarts.write_json))
        patch.setattr(shutil, "rmtree", until_killed(shutil.rmtree))
        patch.setattr(Path, "replace", until_killed(Path.replace))
        with pytest.raises((Killed, FailedStartError)):
            judged(folder)
    if survived < 2:  # nothing was written: the validations lead to the same verdict again
        assert not restarted(folder)
        with pytest.raises(FailedStartError):
            judged(folder)
    assert restarted(folder)
    assert files(folder.path) == files(whole.path)


def test_a_folder_with_a_failed_start_is_no_place_for_another_run(tmp_path: Path) -> None:
    folder, config = folder_with(tmp_path), {"schema": "girih-run/1", "settings": {"seed": 0}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FailedStartError):
        judged(folder)
    with pytest.raises(ValueError, match="already holds a run; pass --resume"):
        folder.check(config, resume=False)
    with pytest.raises(ValueError, match="cannot resume with another seed"):
        folder.check({**config, "settings": {"seed": 1}}, resume=True)
    folder.check(config, resume=True)
    folder.start({"schema": "girih-run/1", "settings": {"seed": 2}})
    assert folder.config == config


@pytest.mark.parametrize(("every", "steps", "wanted"), [(10, 100, 30), (35, 100, 35), (1, 36, 35), (10, 35, None)])
def test_the_start_is_judged_at_the_last_validation_that_counts(every: int, steps: int, wanted: int | None) -> None:
    assert RULE.judged_at(every, steps) == wanted
    assert replace(RULE, below=0.0).judged_at(every, steps) is None


def test_rules_that_make_no_sense_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="validate_every is 18, wanted one that falls on a step from 20 to 35"):
        RULE.judged_at(18, 100)
    with pytest.raises(ValueError, match=r"restart\.lr is 0\.4, wanted above 0, at most the first start's 0\.3"):
        replace(RULE, lr=0.4).second(RECIPE)
    with pytest.raises(ValueError, match="warmup_steps is 100, wanted 0 to steps - 1 = 99"):
        replace(RULE, warmup_steps=100).second(RECIPE)
    for change in ({"below": -1.0}, {"first_step": 0}, {"last_step": 19}):
        (name, value), *_ = change.items()
        with pytest.raises(ValueError, match=rf"restart\.{name} is {value}, wanted"):
            replace(RULE, **change)


def test_the_second_start_has_another_rate_and_warm_up_alone() -> None:
    assert RULE.second(RECIPE) == replace(RECIPE, lr=0.1, warmup_steps=5)
    recipe, _, rule = SCHEDULES["detr"]
    assert rule.judged_at(2500, recipe.steps) == 50_000  # after the 20th epoch of 2500 steps, number 19 from 0
    assert rule.second(recipe).lr == 1e-4
