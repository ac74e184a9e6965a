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
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from girih.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint
from girih.recipes import Recipe, require
from girih.report import progress_png
from girih.runs import RunFolder, config_sha256, flat

Batch = dict[str, Any]
STAYS_ON_CPU = {"seed", "index", "start", "affine"}
BETWEEN_PLOTS_S = 30.0
BETWEEN_LINES_S = 30.0  # in a log, where no bar is drawn
HELP = "a lower learning rate or --clip-norm may help"


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
        require("seed", self.seed, self.seed >= 0, "0 or more")
        require("checkpoint_every", self.checkpoint_every, self.checkpoint_every >= 1, "1 or more")
        require("workers", self.workers, self.workers >= 0, "0 or more")

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
    lr_at: Callable[[str, int], float] | None = None,
    validate: Callable[[nn.Module, int], None] = lambda model, step: None,
    validate_every: int = 0,
) -> nn.Module:
    """Train `model` for `recipe.steps` steps and return it, unwrapped, or its moving average where the recipe has one.

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
        on_checkpoint: called on the main process after each checkpoint with what is returned at last, and the step.
        lr_at: (name of a parameter group, step) -> its learning rate; None: the recipe's, for all groups.
        validate: called on every process with what is returned at last, and the step; what it raises ends the training.
        validate_every: steps between these calls, the last step has one too; 0: there is none.

    Raises:
        ValueError: the folder holds another run, or one that is not to be resumed, or the loss, a part of it or the
            weights are no longer finite; the last checkpoint is from before that.
    """
    folder.check(config, resume=training.resume)
    accelerator.wait_for_everyone()  # every process has looked before one writes
    if accelerator.is_main_process:
        folder.start(config)
    torch.manual_seed(training.seed * accelerator.num_processes + accelerator.process_index)
    if training.trackers:
        accelerator.init_trackers("girih", config=flat(config["settings"]))
    optimiser = recipe.make_optimiser(groups)
    average = None
    if recipe.ema_decay > 0:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))  # type: ignore[no-untyped-call]
        average.module.to(accelerator.device)  # not its counter, which is read on the CPU at every step
    model, optimiser = accelerator.prepare(model, optimiser)
    plain_model: nn.Module = accelerator.unwrap_model(model)
    result = plain_model if average is None else average.module
    sha256, step, seconds = config_sha256(config), 0, 0.0
    if training.resume and (checkpoint := latest_checkpoint(folder.checkpoints)):
        state = load_checkpoint(checkpoint, accelerator, model, optimiser, sha256, average=average)
        step, seconds = state["step"], state["seconds"]
    elif training.resume:
        accelerator.print(f"{folder.path} has no checkpoint yet: {title} begins at step 0", file=sys.stderr)
    started = step
    if accelerator.is_main_process:
        folder.forget_after(step)
    after_step = getattr(plain_model, "after_step", None)

    def checkpoint_now() -> None:
        check_finite((plain_model, result), step, accelerator)
        state = {
            "g": step * batch_size,
            "epoch": step * batch_size // n_per_epoch,
            "step": step,
            "seconds": seconds,
            "world": accelerator.num_processes,
            "config_sha256": sha256,
        }
        save_checkpoint(folder.checkpoints, accelerator, model, optimiser, state, average=average)
        if accelerator.is_main_process:
            on_checkpoint(result, step)
            progress_png(folder.metrics, folder.path / "progress.png", folder.validations)

    model.train()
    with _progress(accelerator) as progress:
        bar = progress.add_task(title, total=recipe.steps, completed=step, loss="")
        began, plotted, told = time.monotonic() - seconds, time.monotonic(), time.monotonic()

        def note(row: Row) -> None:
            nonlocal told
            losses = row.losses()
            for name, value in losses.items():
                if not math.isfinite(value):
                    what = "the loss" if name == "loss" else f"{name!r}, a part of the loss,"
                    raise ValueError(f"{what} became {value} at step {row.step}; {HELP}")
            if accelerator.is_main_process:
                folder.log({"step": row.step, **losses, "lr": row.lr, "seconds": round(row.seconds, 3)})
            accelerator.log(losses, step=row.step)
            progress.update(bar, completed=row.step, loss=f"loss {losses['loss']:.4f}")
            if not progress.console.is_terminal and time.monotonic() - told > BETWEEN_LINES_S:
                line = f"{title}: step {row.step} of {recipe.steps}, loss {losses['loss']:.4f}"
                accelerator.print(line, file=sys.stderr)
                told = time.monotonic()

        before: Row | None = None
        for batch in make_batches(step) if step < recipe.steps else ():
            for group in optimiser.param_groups:
                group["lr"] = recipe.lr_at(step) if lr_at is None else lr_at(group["name"], step)
            with accelerator.autocast():
                losses = losses_of(model, to_device(batch, accelerator.device))
            accelerator.backward(losses["loss"])
            if recipe.clip_norm > 0:
                accelerator.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            if after_step is not None:
                after_step()
            if average is not None:
                average.update_parameters(plain_model)
            step += 1
            seconds = time.monotonic() - began

            lr = max(group["lr"] for group in optimiser.param_groups)
            row = Row(step, lr, seconds, mean_over_ranks(losses, accelerator))
            if before is not None:
                note(before)  # of the step before: a GPU works on this one meanwhile
            before = row
            validating = validate_every > 0 and (step == recipe.steps or step % validate_every == 0)
            if validating or step == recipe.steps or step % training.checkpoint_every == 0:
                note(row)
                before = None
            if validating:
                check_finite((plain_model, result), step, accelerator)
                validate(result, step)
            if step % training.checkpoint_every == 0 and step < recipe.steps:
                checkpoint_now()
            elif accelerator.is_main_process and step > started + 1 and time.monotonic() - plotted > BETWEEN_PLOTS_S:
                progress_png(folder.metrics, folder.path / "progress.png", folder.validations)
                plotted = time.monotonic()
        if step > started:
            checkpoint_now()
        elif accelerator.is_main_process:
            on_checkpoint(result, step)  # a run resumed after its end may have been killed before this
    accelerator.end_training()
    accelerator.print(f"{title} done: {folder.path}", file=sys.stderr)
    return result


def check_finite(models: Iterable[nn.Module], step: int, accelerator: Accelerator) -> None:
    """Check the weights of a model and of its average, on all processes: a finite loss may have an infinite gradient.

    Raises:
        ValueError: a number is not finite, on this process or another.
    """
    tensors = {name: t for model in models for name, t in (*model.named_parameters(), *model.named_buffers())}
    bad = torch.stack([~t.detach().isfinite().all() for t in tensors.values()])
    if accelerator.reduce(bad.any().float(), reduction="sum").item() > 0:
        names = [name for name, is_bad in zip(tensors, bad.tolist(), strict=True) if is_bad]
        which = f", {names[0]!r} first of {len(names)} tensors" if names else ""
        raise ValueError(f"the weights are no longer finite at step {step}{which}; {HELP}. The last checkpoint stays")


def warn(accelerator: Accelerator, warnings: Iterable[str]) -> None:
    """Show warnings once, on the main process."""
    for warning in warnings:
        accelerator.print(f"warning: {warning}", file=sys.stderr)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch's tensors, but not what is read on the CPU: moving it would only wait for the device twice."""
    return {key: value if key in STAYS_ON_CPU else _move(value, device) for key, value in batch.items()}


@dataclass(frozen=True)
class Row:
    """What is logged of a step."""

    step: int
    lr: float
    seconds: float
    losses: Callable[[], dict[str, float]]
    """Gives the values; waits for them."""


def mean_over_ranks(losses: Mapping[str, Tensor], accelerator: Accelerator) -> Callable[[], dict[str, float]]:
    """Start to average the losses over the processes and to copy them, and return what waits for them as floats."""
    stacked = torch.stack([value.detach().float() for value in losses.values()])
    reduced: Tensor = accelerator.reduce(stacked, reduction="mean")
    host, names = reduced.to("cpu", non_blocking=True), tuple(losses)
    copied = torch.cuda.current_stream(reduced.device).record_event() if reduced.is_cuda else None

    def wait() -> dict[str, float]:
        if copied is not None:
            copied.synchronize()
        return dict(zip(names, host.tolist(), strict=True))

    return wait


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
