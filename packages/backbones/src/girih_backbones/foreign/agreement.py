"""The plan of a checkpoint against its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from girih_backbones.foreign.architectures import Architecture
from girih_backbones.foreign.layouts import Parts
from girih_backbones.foreign.plans import Plan
from girih_backbones.foreign.shapes import Shapes, assumed_steps


def check_keys(plan: Plan, raw: Mapping[str, Tensor]) -> None:
    """Compare the keys that a plan names with those of the file.

    Raises:
        ValueError: names the field whose key is not there.
    """
    for field in ("key_to_encoder", "key_to_stem"):
        wanted = getattr(plan, field)
        if wanted is not None and not any(_under(key, wanted) for key in raw):
            raise ValueError(f"{plan.where}.{field}: found {wanted!r}, wanted the beginning of a key of the file")
    for wanted in plan.keys_to_in_proj:
        if not any(_under(key, wanted) for key in raw):
            raise ValueError(
                f"{plan.where}.keys_to_in_proj: found {wanted!r}, wanted the beginning of a key of the file"
            )


def agreed_architecture(parts: Parts, shapes: Shapes, plan: Plan | None, notes: list[str]) -> Architecture:
    """Return the encoder that tensors and plan agree on; if no plan tells, that of the tensors, which is noted.

    Raises:
        ValueError: the plan contradicts the tensors.
    """
    if plan is not None and plan.stages not in (None, len(shapes.channels)):
        raise ValueError(
            f"{plan.where}.pretrained_n_stages: found {plan.stages}, the tensors have {len(shapes.channels)}"
        )
    told = plan.architecture if plan is not None else None
    if told is not None:
        if parts.family == "nnDetection v2" and len(told.channels) == len(shapes.channels) + 1:
            told = told.without_last_stage()
            notes.append(f"{told.where} has one stage more than the network, as MultiTalent builds ConvBackbone")
        _check_agreement(told, parts, shapes)
        return told
    steps = assumed_steps(parts, shapes)
    unknown = [str(stage) for stage in range(1, len(steps)) if stage not in shapes.steps]
    if unknown:
        which = f" of stage {', '.join(unknown)}" if shapes.steps else ""
        notes.append(
            f"downsampling{which} is assumed, as no tensor and no plan tells it: {[list(step) for step in steps]}"
        )
    else:
        notes.append(
            "downsampling is that of the decoder's transposed convolutions; of the first stage it is taken as 1"
        )
    why = "no plan" if plan is None else "the plan names no architecture"
    notes.append(f"{why}: stages, channels and kernels are those of the tensors, in the structure of {parts.family}")
    relu = parts.family == "nnDetection v0.1"
    if parts.kind == "PlainEncoder":
        notes.append(f"activation {'ReLU' if relu else 'LeakyReLU'} as {parts.family} has it; no tensor tells")
    return Architecture(
        "the tensors",
        parts.kind,
        shapes.channels,
        steps,
        shapes.kernels,
        shapes.depth,
        shapes.bias,
        "relu" if relu else "leaky_relu",
    )


def _check_agreement(told: Architecture, parts: Parts, shapes: Shapes) -> None:
    """Refuse a plan that contradicts the tensors."""
    if told.kind != parts.kind:
        raise ValueError(f"{told.where}: found a {told.kind}, the tensors are those of a {parts.kind}")
    pairs: list[tuple[str, Any, Any]] = [
        ("stages", len(told.channels), len(shapes.channels)),
        ("channels", told.channels, shapes.channels),
        ("kernels", told.kernels, shapes.kernels),
        ("blocks or convolutions", told.depth, shapes.depth),
        ("bias", told.bias, shapes.bias),
    ]
    if len(told.steps) == len(shapes.channels):
        steps = tuple(shapes.steps.get(stage, step) for stage, step in enumerate(told.steps))
        pairs.append(("downsampling", told.steps[1:], steps[1:]))
    for what, found, wanted in pairs:
        if found != wanted:
            key = _first_different(parts, what, found, wanted)
            raise ValueError(f"{told.where}: found {what} {found}, the tensors have {wanted}{key}")
    for stage, step in enumerate(told.steps):
        pools = parts.pooled.get(stage, step != (1, 1, 1))
        if pools != (step != (1, 1, 1)):
            key = next(
                key for name, key in parts.keys.items() if name.startswith(f"stages.{stage}.") and ".skip." in name
            )
            raise ValueError(
                f"{told.where}: found downsampling {step} of stage {stage}, the tensors "
                f"{'pool' if pools else 'do not pool'} (key {key})"
            )


def _first_different(parts: Parts, what: str, found: Any, wanted: Any) -> str:
    """Return the key of the first stage that differs, for the message."""
    if what not in ("channels", "kernels"):
        return ""
    stage = next(i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b)
    prefix = f"stages.{stage}."
    key = next((key for name, key in parts.keys.items() if name.startswith(prefix)), None)
    return "" if key is None else f" (key {key})"


def _under(key: str, prefix: str) -> bool:
    """Whether a key lies under a prefix, wrappers before it ignored."""
    return f".{key}".find(f".{prefix}.") >= 0
