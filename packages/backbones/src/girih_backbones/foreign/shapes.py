"""The topology of an encoder, read from the shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from girih_backbones.foreign.layouts import Parts
from girih_backbones.topology import Triple, Triples

# No shape tells the step from one stage to the next. Every published encoder of these programs halves each axis at
# every stage but the first; what a checkpoint's own decoder or plan says goes before this.
ASSUMED_STEP: Triple = (2, 2, 2)

_STAGE = re.compile(r"stages\.(\d+)\.(\d+)\.(?:conv1\.)?conv\.weight")
# Transposed convolutions have the step as their kernel: by level from the coarsest (nnU-Net v1, v2) or by name.
_UPS = (
    re.compile(r"(?:decoder\.transpconvs|tu)\.(\d+)\.weight"),
    re.compile(r"(?:decoder|neck)\.up\.P(\d+)\.conv\.weight"),
)


@dataclass(frozen=True)
class Shapes:
    """What the tensors say: one entry per stage, finest first."""

    in_channels: dict[str | None, int]
    """Channels of the image by dataset; the key None is a stem of no dataset."""
    channels: tuple[int, ...]
    kernels: Triples
    depth: tuple[int, ...]
    bias: bool
    steps: Mapping[int, Triple]
    """Steps by stage, of those that a transposed convolution of the decoder tells."""


def read_shapes(parts: Parts) -> Shapes:
    """Return channels, kernels, depth and, where there is a decoder, steps.

    Raises:
        ValueError: a stage or unit is missing in the count, or a convolution is not three-dimensional.
    """
    first_units: dict[int, Tensor] = {}
    units: dict[int, set[int]] = {}
    for name, tensor in parts.encoder.items():
        match = _STAGE.fullmatch(name)
        if match is None:
            continue
        _check_convolution(parts.keys[name], tensor)
        stage, unit = int(match[1]), int(match[2])
        units.setdefault(stage, set()).add(unit)
        if unit == 0:
            first_units[stage] = tensor
    stems: dict[str | None, Tensor] = {}
    if "stem.conv.weight" in parts.encoder:
        stems[None] = parts.encoder["stem.conv.weight"]
        _check_convolution(parts.keys["stem.conv.weight"], stems[None])
    for dataset, stem in parts.stems.items():
        if "conv.weight" not in stem:
            raise ValueError(f"stem {dataset}: found {sorted(stem)}, wanted conv.weight")
        stems[dataset] = stem["conv.weight"]
        _check_convolution(parts.keys[f"{dataset}.conv.weight"], stems[dataset])
    if not stems:
        raise ValueError("keys: found no stem, wanted encoder.stem or stem.<dataset> beside the stages")
    plain = parts.kind == "PlainEncoder"
    if plain and 0 not in units:  # a first stage of one unit is nothing but the stem
        units[0] = set()
        first_units[0] = next(iter(stems.values()))
    for what, found in (
        ("stages", set(units)),
        *((f"units of stage {s}", found) for s, found in sorted(units.items())),
    ):
        if found != set(range(len(found))):
            raise ValueError(f"{what}: found {_few(found)}, wanted 0, 1, ... without a gap")
    n = len(units)
    return Shapes(
        in_channels={dataset: tensor.shape[1] for dataset, tensor in stems.items()},
        channels=tuple(first_units[s].shape[0] for s in range(n)),
        kernels=tuple(_triple(first_units[s]) for s in range(n)),
        depth=tuple(len(units[s]) + (1 if plain and s == 0 else 0) for s in range(n)),
        bias=any(name.endswith("conv1.conv.bias" if not plain else ".conv.bias") for name in parts.encoder),
        steps=_steps(parts.rest, n),
    )


def assumed_steps(parts: Parts, shapes: Shapes) -> Triples:
    """Return the steps that the decoder tells, 1 for the first stage, and for the others `ASSUMED_STEP`.

    nnU-Net chooses the step into a stage together with the kernel of the stage before (`get_pool_and_conv_props`): an
    axis along which that kernel is 1 is coarse and kept. A residual stage that changes the width without pooling has a
    step of 1.
    """
    steps: list[Triple] = [(1, 1, 1)]
    for stage in range(1, len(shapes.channels)):
        z, y, x = (s if k > 1 else 1 for s, k in zip(ASSUMED_STEP, shapes.kernels[stage - 1], strict=True))
        assumed = (1, 1, 1) if parts.pooled.get(stage) is False else (z, y, x)
        steps.append(shapes.steps.get(stage, assumed))
    return tuple(steps)


def _steps(rest: Mapping[str, Tensor], n: int) -> dict[int, Triple]:
    """Return the steps that the transposed convolutions of a decoder undo, by stage; none if it is not of n stages."""
    by_order, by_level = (
        {int(match[1]): tensor for name, tensor in rest.items() if (match := pattern.fullmatch(name))}
        for pattern in _UPS
    )
    found = {n - 1 - i: tensor for i, tensor in by_order.items()} or by_level
    if not set(found) <= set(range(1, n)) or any(tensor.ndim != 5 for tensor in found.values()):
        return {}
    return {stage: _triple(tensor) for stage, tensor in found.items()}


def _check_convolution(key: str, tensor: Tensor) -> None:
    if tensor.ndim != 5:
        raise ValueError(f"key {key}: found shape {tuple(tensor.shape)}, wanted five axes, as a 3D convolution has")


def _triple(tensor: Tensor) -> Triple:
    z, y, x = tensor.shape[2:]
    return z, y, x


def _few(numbers: set[int]) -> str:
    shown = ", ".join(str(number) for number in sorted(numbers)[:10])
    return shown + (", ..." if len(numbers) > 10 else "")
