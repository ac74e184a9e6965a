"""The training loop, in the open: one function for pre-training and fine-tuning, on one process or many.

Start it under `torchrun` for several processes. The batch at step t is a pure function of (seed, t, rank), so a run
that was killed and resumed is the run that was not.
"""

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from girih.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint
from girih.report import progress_png
from girih.runs import RunFolder, config_sha256, flat

Batch = dict[str, Any]
STAYS_ON_CPU = {"seed", "index", "start", "affine"}
SECONDS_BETWEEN_PLOTS = 30.0
SECONDS_BETWEEN_LINES = 30.0  # in a log, where no bar is drawn


@dataclass(frozen=True)
class Recipe:
    """How a network is optimised."""

    steps: int
    """Optimiser steps in all."""
    lr: float
    """Learning rate after warm-up; it then falls as (1 - t/T)^0.9 ("poly")."""
    warmup_steps: int = 0
    """Steps over which the rate rises linearly from 1e-6."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """sgd: with Nesterov momentum."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 3e-5
    """Decay of the weights."""
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0: not clipped."""

    def __post_init__(self) -> None:
        _require("steps", self.steps, self.steps >= 1, "1 or more")
        _require("lr", self.lr, math.isfinite(self.lr) and self.lr > 0, "a number above 0")
        _require(
            "warmup_steps", self.warmup_steps, 0 <= self.warmup_steps < self.steps, f"0 to steps - 1 = {self.steps - 1}"
        )
        _require("momentum", self.momentum, 0 <= self.momentum < 1, "0 to below 1")
        _require("weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more")
        _require("clip_norm", self.clip_norm, self.clip_norm >= 0, "0 or more")

    def lr_at(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 0."""
        if step < self.warmup_steps:
            return 1e-6 + (self.lr - 1e-6) * step / self.warmup_steps
        rest = max(1, self.steps - self.warmup_steps)
        return float(self.lr * (1 - (step - self.warmup_steps) / rest) ** 0.9)

    def make_optimiser(self, groups: Iterable[Any]) -> torch.optim.Optimizer:
        """Return the optimiser over parameters or parameter groups."""
        if self.optimiser == "adamw":
            return torch.optim.AdamW(groups, lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            groups, lr=self.lr, momentum=self.momentum, nesterov=self.momentum > 0, weight_decay=self.weight_decay
        )


@dataclass(frozen=True)
class Training:
    """How a training runs."""

    seed: int = 0
    """Decides the initial weights, the patches and their augmentation."""
    resume: bool = False
    """Go on from the newest checkpoint in --out."""
    checkpoint_every: int = 2500
    """Steps between checkpoints."""
    device: Literal["auto", "cpu"] = "auto"
    """auto: an NVIDIA GPU where there is one."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision."""
    workers: int = 4
    """Loader processes; 0: load in the training process."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers known to Accelerate, for example wandb or tensorboard; metrics.jsonl is always written."""

    def __post_init__(self) -> None:
        _require("seed", self.seed, self.seed >= 0, "0 or more")
        _require("checkpoint_every", self.checkpoint_every, self.checkpoint_every >= 1, "1 or more")
        _require("workers", self.workers, self.workers >= 0, "0 or more")

    def make_accelerator(self, folder: RunFolder) -> Accelerator:
        """Return the Accelerator of this process: its device, mixed precision, and rank under torchrun.

        Raises:
            ValueError: a tracker is not installed.
        """
        # Accelerate keeps one state per process; a second training in the same process may have other settings.
        AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
        accelerator = Accelerator(
            cpu=self.device == "cpu" or not torch.cuda.is_available(),
            mixed_precision=self.precision,
            log_with=list(self.trackers) or None,
            project_dir=str(folder.path),
        )
        if missing := set(self.trackers) - {str(getattr(t, "value", t)) for t in accelerator.log_with}:
            raise ValueError(f"tracker {sorted(missing)[0]!r} is not installed")
        return accelerator


def train(
    model: nn.Module,
    make_batches: Callable[[int], Iterable[Batch]],
    losses_of: Callable[[nn.Module, Batch], Mapping[str, Tensor]],
    recipe: Recipe,
    groups: Iterable[Any],
    *,
    training: Training,
    accelerator: Accelerator,
    folder: RunFolder,
    config: Mapping[str, Any],
    batch_size: int,
    n_per_epoch: int,
    title: str,
    on_checkpoint: Callable[[nn.Module, int], None],
) -> nn.Module:
    """Train `model` for `recipe.steps` steps and return it, unwrapped.

    Args:
        model: the module; DDP wraps it when there are several processes.
        make_batches: gives this rank's batches from a step on, each a dict of tensors and lists.
        losses_of: (wrapped model, batch) -> {"loss": scalar, other names: detached scalars}.
        recipe: steps, learning rate, optimiser.
        groups: parameter groups of `model`.
        training: when to write checkpoints, whether to resume, which trackers.
        accelerator: device, precision and rank; from `training.make_accelerator`.
        folder: where config, metrics, plot and checkpoints go.
        config: the content of config.json; a checkpoint carries its hash.
        batch_size: samples per step over all processes.
        n_per_epoch: samples per epoch, for the record.
        title: what the progress bar says.
        on_checkpoint: called on the main process after each checkpoint with the unwrapped model and the step.

    Raises:
        ValueError: the folder holds another run, or one that is not to be resumed, or the loss is no longer finite.
    """
    folder.check(config, resume=training.resume)
    accelerator.wait_for_everyone()  # every process has looked before one writes
    if accelerator.is_main_process:
        folder.start(config)
    torch.manual_seed(training.seed * accelerator.num_processes + accelerator.process_index)
    if training.trackers:
        accelerator.init_trackers("girih", config=flat(config["settings"]))
    optimiser = recipe.make_optimiser(groups)
    model, optimiser = accelerator.prepare(model, optimiser)
    plain_model: nn.Module = accelerator.unwrap_model(model)
    sha256, step, seconds = config_sha256(config), 0, 0.0
    if training.resume and (checkpoint := latest_checkpoint(folder.checkpoints)):
        state = load_checkpoint(checkpoint, accelerator, model, optimiser, sha256)
        step, seconds = state["step"], state["seconds"]
    elif training.resume:
        accelerator.print(f"{folder.path} has no checkpoint yet: {title} begins at step 0", file=sys.stderr)
    started = step
    if accelerator.is_main_process:
        folder.forget_after(step)
    after_step = getattr(plain_model, "after_step", None)

    def checkpoint_now() -> None:
        state = {
            "g": step * batch_size,
            "epoch": step * batch_size // n_per_epoch,
            "step": step,
            "seconds": seconds,
            "world": accelerator.num_processes,
            "config_sha256": sha256,
        }
        save_checkpoint(folder.checkpoints, accelerator, model, optimiser, state)
        if accelerator.is_main_process:
            on_checkpoint(plain_model, step)
            progress_png(folder.metrics, folder.path / "progress.png")

    model.train()
    with _progress(accelerator) as progress:
        bar = progress.add_task(title, total=recipe.steps, completed=step, loss="")
        began, plotted, told = time.monotonic() - seconds, time.monotonic(), time.monotonic()
        for batch in make_batches(step) if step < recipe.steps else ():
            lr = recipe.lr_at(step)
            for group in optimiser.param_groups:
                group["lr"] = lr
            with accelerator.autocast():
                losses = losses_of(model, to_device(batch, accelerator.device))
            accelerator.backward(losses["loss"])
            if recipe.clip_norm > 0:
                accelerator.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            if after_step is not None:
                after_step()
            step += 1
            seconds = time.monotonic() - began

            row = mean_over_ranks(losses, accelerator)
            if not math.isfinite(row["loss"]):
                raise ValueError(f"the loss became {row['loss']} at step {step}; a lower learning rate may help")
            if accelerator.is_main_process:
                folder.log({"step": step, **row, "lr": lr, "seconds": round(seconds, 3)})
            accelerator.log(row, step=step)
            progress.update(bar, completed=step, loss=f"loss {row['loss']:.4f}")
            if not progress.console.is_terminal and time.monotonic() - told > SECONDS_BETWEEN_LINES:
                accelerator.print(f"{title}: step {step} of {recipe.steps}, loss {row['loss']:.4f}", file=sys.stderr)
                told = time.monotonic()
            if step % training.checkpoint_every == 0 and step < recipe.steps:
                checkpoint_now()
            elif accelerator.is_main_process and time.monotonic() - plotted > SECONDS_BETWEEN_PLOTS:
                progress_png(folder.metrics, folder.path / "progress.png")
                plotted = time.monotonic()
        if step > started:
            checkpoint_now()
        elif accelerator.is_main_process:
            on_checkpoint(plain_model, step)  # a run resumed after its end may have been killed before this
    accelerator.end_training()
    accelerator.print(f"{title} done: {folder.path}", file=sys.stderr)
    return plain_model


def warn(accelerator: Accelerator, warnings: Iterable[str]) -> None:
    """Show warnings once, on the main process."""
    for warning in warnings:
        accelerator.print(f"warning: {warning}", file=sys.stderr)


def _require(name: str, found: object, good: bool, wanted: str) -> None:
    if not good:
        raise ValueError(f"{name} is {found}, wanted {wanted}")


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch's tensors, but not what is read on the CPU: moving it would only wait for the device twice."""
    return {key: value if key in STAYS_ON_CPU else _move(value, device) for key, value in batch.items()}


def mean_over_ranks(losses: Mapping[str, Tensor], accelerator: Accelerator) -> dict[str, float]:
    """Return the losses as floats, averaged over the processes; one transfer for all of them."""
    stacked = torch.stack([value.detach().float() for value in losses.values()])
    reduced: Tensor = accelerator.reduce(stacked, reduction="mean")
    return dict(zip(losses, reduced.tolist(), strict=True))


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    return [_move(item, device) for item in value] if isinstance(value, list) else value


def _progress(accelerator: Accelerator) -> Progress:
    """A progress bar on stderr of the main process; the others stay silent."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not accelerator.is_main_process,
    )
