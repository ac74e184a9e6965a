"""How a network is optimised: optimiser, learning rate over the steps, averaging of the weights."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch

import girih_backbones


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
    eps: float = 1e-8
    """Of adamw: what is added to the root of the second moment."""
    amsgrad: bool = False
    """Of adamw: divide by the largest second moment so far."""
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0: not clipped."""
    ema_decay: float = 0.0
    """Exponential moving average of the weights: the share that the old average keeps at each step, such as 0.999. It
    is what is exported, and what predicts. 0: none."""

    def __post_init__(self) -> None:
        require("steps", self.steps, self.steps >= 1, "1 or more")
        require("lr", self.lr, math.isfinite(self.lr) and self.lr > 0, "a number above 0")
        require(
            "warmup_steps",
            self.warmup_steps,
            0 <= self.warmup_steps < self.steps,
            f"0 to steps - 1 = {self.steps - 1}; a shorter training needs a shorter warm-up than the default",
        )
        require("momentum", self.momentum, 0 <= self.momentum < 1, "0 to below 1")
        require("weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more")
        require("eps", self.eps, math.isfinite(self.eps) and self.eps > 0, "a number above 0")
        require("clip_norm", self.clip_norm, self.clip_norm >= 0, "0 or more")
        require("ema_decay", self.ema_decay, 0 <= self.ema_decay < 1, "0 to below 1")

    def lr_at(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 0."""
        if step < self.warmup_steps:
            return 1e-6 + (self.lr - 1e-6) * step / self.warmup_steps
        rest = max(1, self.steps - self.warmup_steps)
        return float(self.lr * (1 - (step - self.warmup_steps) / rest) ** 0.9)

    def make_optimiser(self, groups: Iterable[Any]) -> torch.optim.Optimizer:
        """Return the optimiser over parameters or parameter groups."""
        if self.optimiser == "adamw":
            return torch.optim.AdamW(
                groups, lr=self.lr, weight_decay=self.weight_decay, eps=self.eps, amsgrad=self.amsgrad
            )
        return torch.optim.SGD(
            groups, lr=self.lr, momentum=self.momentum, nesterov=self.momentum > 0, weight_decay=self.weight_decay
        )


def sawtooth_lr(recipe: Recipe, part: str, step: int) -> float:
    """Return the learning rate of "head" or "encoder" where the head warms up alone, then both warm up together.

    Each warm-up takes `recipe.warmup_steps`, the encoder's rate is 0 in the first; the rate then falls as in `Recipe`.
    This is nnU-Net's "sawtooth" for pre-trained encoders. `recipe.steps` has to be more than both warm-ups.
    """
    warmup = recipe.warmup_steps
    if step < 2 * warmup:
        return recipe.lr * girih_backbones.head_first(part, step, head_steps=warmup, ramp_steps=warmup)
    return replace(recipe, steps=recipe.steps - warmup).lr_at(step - warmup)


def require(name: str, found: object, good: bool, wanted: str) -> None:
    """Raise ValueError with the found and the wanted value unless `good`."""
    if not good:
        raise ValueError(f"{name} is {found}, wanted {wanted}")


@dataclass(frozen=True)
class Restart:
    """When a training has failed from the start, as those of transformers may, and how it then begins anew.

    nnDetection's Deformable DETR restarts if the mean AP at IoU 0.1 over the epochs 14 to 19 (from 0, of 2500 steps) is
    below 0.1. That the rate is then lower and warms up is public, the two numbers are not: ours are a third of the
    recipe's, and the warm-up of nnDetection's Retina U-Net.
    """

    below: float = 0.1
    """Mean validation AP below which the start has failed; 0: none has."""
    first_step: int = 37_500
    """Validations from this step on are judged."""
    last_step: int = 50_000
    """The last step judged; with it the start has failed or not. A shorter training is never judged."""
    lr: float = 1e-4
    """Learning rate of the second start."""
    warmup_steps: int = 4000
    """Warm-up of the second start."""

    def __post_init__(self) -> None:
        require("restart.below", self.below, self.below >= 0, "0 or more")
        require("restart.first_step", self.first_step, self.first_step >= 1, "1 or more")
        wanted = f"restart.first_step = {self.first_step} or more"
        require("restart.last_step", self.last_step, self.last_step >= self.first_step, wanted)

    def judged_at(self, every: int, steps: int) -> int | None:
        """Return the step of the validation that decides; None: the start of a training of `steps` is not judged.

        Raises:
            ValueError: none of the validations, which come `every` so many steps, is to be judged.
        """
        if self.below == 0 or self.last_step >= steps:
            return None
        last = self.last_step // every * every
        wanted = f"one that falls on a step from {self.first_step} to {self.last_step}, see --restart"
        require("validate_every", every, last >= self.first_step, wanted)
        return last

    def second(self, recipe: Recipe) -> Recipe:
        """Return the recipe of the second start; it has as many steps as the first would have had.

        Raises:
            ValueError: a rate above that of the first start, or a warm-up that is no shorter than the training.
        """
        require("restart.lr", self.lr, 0 < self.lr <= recipe.lr, f"above 0, at most the first start's {recipe.lr}")
        return replace(recipe, lr=self.lr, warmup_steps=self.warmup_steps)


class Schedule(NamedTuple):
    """How a detector is fine-tuned."""

    recipe: Recipe
    head_first: bool = False
    """Whether all but the encoder warms up alone, see `sawtooth_lr`."""
    restart: Restart = Restart(below=0.0)


_NNUNET = Recipe(steps=125_000, lr=1e-3, warmup_steps=12_500)  # nnU-Net's warm-up of 50 epochs of 250 steps

SCHEDULES: Mapping[str, Schedule] = {
    "nndetection": Schedule(Recipe(steps=125_000, lr=1e-2, warmup_steps=4000)),
    "nnunet": Schedule(_NNUNET),
    "sawtooth": Schedule(_NNUNET, head_first=True),
    "detr": Schedule(
        Recipe(steps=250_000, lr=3e-4, optimiser="adamw", weight_decay=1e-4, eps=1e-4, amsgrad=True),
        restart=Restart(),
    ),
}
"""Of fine-tuning, by name. "nndetection" is that of Eckstein et al. 2025 for Retina U-Net, from scratch and from
pre-trained weights; "detr" the one for Deformable DETR, which is nnDetection's."""
