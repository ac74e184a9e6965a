"""A training that failed from the start begins anew, once: how that is judged, and what becomes of its folder.

The second start has the first one's weights, patches and their order; only its learning rate and warm-up differ, so
that it is, number for number, the run that was begun with them. What the first start logged stays in failed_start/.
A kill at any moment changes nothing: the record restart.json is written first, and says whether all is cleared away.
"""

import json
import shutil
import sys
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from girih.atomic import write_json
from girih.recipes import Recipe, Restart
from girih.runs import RunFolder, plain, read_json

FAILED = "failed_start"
"""Folder in the run's."""


class FailedStartError(Exception):
    """Ends a training that is to begin anew; the run's folder is ready for that."""


def has_restarted(folder: RunFolder, accelerator: Accelerator) -> bool:
    """Return whether a run is on its second start, after clearing away what a kill has left of the first.

    Raises:
        ValueError: its restart.json cannot be read.
    """
    accelerator.wait_for_everyone()
    restarted = folder.restart.exists()
    if restarted and accelerator.is_main_process:
        record = read_json(folder.restart, "girih-restart", "a run that has restarted")
        if not record["cleared"]:
            _clear(folder, record)
    accelerator.wait_for_everyone()
    return restarted


def judge(folder: RunFolder, rule: Restart, recipe: Recipe, accelerator: Accelerator, *, restarted: bool) -> None:
    """Judge a start by its validations, at the last one that counts. Called by every process.

    Args:
        folder: of the run.
        rule: says which validations count, and from which AP on a start has not failed.
        recipe: of the first start.
        accelerator: of the training.
        restarted: whether it is the second start, of which a failure is only said.

    Raises:
        FailedStartError: the first start has failed; the run is to begin anew with `rule.second(recipe)`.
    """
    found = torch.zeros(1, dtype=torch.float64, device=accelerator.device)
    rows = _judged(folder, rule) if accelerator.is_main_process else []
    if accelerator.is_main_process:
        found += sum(row["ap"] for row in rows) / len(rows)
    mean = float(broadcast(found))
    if mean >= rule.below:
        return
    why = f"the mean validation AP from step {rule.first_step} to {rule.last_step} is {mean:.4f}, below {rule.below:g}"
    if restarted:
        accelerator.print(f"the second start has failed too: {why}; the training goes on", file=sys.stderr)
        return
    second = rule.second(recipe)
    accelerator.print(
        f"the start has failed: {why}; the training begins anew with a learning rate of {second.lr:g} after "
        f"{second.warmup_steps} steps of warm-up. What the first start logged is in {folder.path / FAILED}",
        file=sys.stderr,
    )
    if accelerator.is_main_process:
        record = {
            "schema": "girih-restart/1",
            "cleared": False,
            "rule": plain(rule),
            "validations": rows,
            "mean_ap": mean,
            "recipe": plain(second),
        }
        write_json(folder.restart, record)
        _clear(folder, record)
    accelerator.wait_for_everyone()
    raise FailedStartError(why)


def _judged(folder: RunFolder, rule: Restart) -> list[dict[str, Any]]:
    """Return the rows of the validations that count."""
    rows = [json.loads(line) for line in folder.validations.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if rule.first_step <= row["step"] <= rule.last_step]


def _clear(folder: RunFolder, record: dict[str, Any]) -> None:
    """Remove the first start's checkpoints and put its logs aside; can be done again after a kill."""
    aside = folder.path / FAILED
    aside.mkdir(exist_ok=True)
    if folder.checkpoints.exists():
        shutil.rmtree(folder.checkpoints)
    for name in (folder.metrics.name, folder.validations.name, "progress.png"):
        if (folder.path / name).exists():
            (folder.path / name).replace(aside / name)
    write_json(folder.restart, {**record, "cleared": True})
