"""What trains, and how fast: frozen parts, learning rates by depth, a warm-up that lets the head go first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import nn

from girih_backbones.encoder import Encoder

HEAD = "head"

T = TypeVar("T")


def freeze(module: nn.Module, *patterns: str) -> list[str]:
    """Stop the training of the parameters whose names match a shell pattern, of all without one; return their names.

    `freeze(encoder, "stem.*", "stages.[01].*")` keeps the stem and the two finest stages as they are. There is nothing
    else to switch: no network of this package has running statistics or dropout.

    Raises:
        ValueError: a pattern matches no parameter.
    """
    return _set_training(module, patterns, on=False)


def unfreeze(module: nn.Module, *patterns: str) -> list[str]:
    """Train the matching parameters again, all without a pattern; return their names.

    Raises:
        ValueError: a pattern matches no parameter.
    """
    return _set_training(module, patterns, on=True)


def parameter_groups(model: nn.Module, encoder: Encoder, *, lr: float, decay: float = 1.0) -> list[dict[str, Any]]:
    """Return optimiser groups {"name", "params", "lr"} with a learning rate that falls with the depth in the encoder.

    The group "head" is everything of `model` outside `encoder` and has `lr`; the coarsest stage has lr * decay, every
    finer one `decay` times the one before, the stem the least (layer-wise decay: Clark et al. 2020; He et al. 2022
    fine-tune vision transformers with 0.75). Frozen parameters are in the groups: an optimiser passes over what has
    no gradient, and they train as soon as they are unfrozen. `model` may be the encoder itself: no head then.

    Raises:
        ValueError: the encoder is no part of the model, or `decay` is not above 0 and at most 1.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay: found {decay}, wanted above 0 and at most 1")
    if all(part is not encoder for part in model.modules()):
        raise ValueError(f"encoder: not found in the {type(model).__name__}, wanted one of its modules")
    inside = set(encoder.parameters())
    parts = {HEAD: [parameter for parameter in model.parameters() if parameter not in inside]}
    for i in reversed(range(len(encoder.stages))):
        parts[f"stages.{i}"] = list(encoder.stages[i].parameters())
    parts["stem"] = list(encoder.stem.parameters())
    groups = [
        {"name": name, "params": params, "lr": lr * decay**depth} for depth, (name, params) in enumerate(parts.items())
    ]
    return [group for group in groups if group["params"]]


def head_first(name: str, step: int, *, head_steps: int, ramp_steps: int) -> float:
    """Return the factor on the learning rate of the group `name` at `step`, counted from 0.

    The head warms up alone, linearly over `head_steps`, with 0 for the encoder's groups; then all groups together
    over `ramp_steps`, again from the start; then the factor is 1: the "sawtooth" of nnU-Net's fine-tuning. A rate of 0
    holds parameters, weight decay included, but their gradient is still computed: `freeze` the encoder for the first
    part to save that time.

    Example:
        groups = parameter_groups(detector, detector.pyramid.encoder, lr=1e-3, decay=0.75)
        factors = [partial(head_first, group["name"], head_steps=1000, ramp_steps=1000) for group in groups]
        schedule = torch.optim.lr_scheduler.LambdaLR(torch.optim.AdamW(groups), factors)

    Raises:
        ValueError: a negative number of steps.
    """
    if min(step, head_steps, ramp_steps) < 0:
        raise ValueError(f"steps: found {step}, {head_steps} and {ramp_steps}, wanted none below 0")
    if step < head_steps:
        return (step + 1) / head_steps if name == HEAD else 0.0
    return min(1.0, (step - head_steps + 1) / ramp_steps) if ramp_steps else 1.0


def matching(parts: Mapping[str, T], patterns: Sequence[str]) -> dict[str, T]:
    """Return the parts whose names match one of the shell patterns, or raise ValueError for a pattern without any."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in parts):
            raise ValueError(f"pattern: found {pattern!r}, which matches none of {len(parts)} names {_few(parts)}")
    return {name: part for name, part in parts.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}


def _few(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown if len(shown) <= 4 else [*shown[:2], "...", shown[-1]])


def _set_training(module: nn.Module, patterns: Sequence[str], *, on: bool) -> list[str]:
    parameters = matching(dict(module.named_parameters()), patterns or ("*",))
    for parameter in parameters.values():
        parameter.requires_grad_(on)
    return list(parameters)
