"""Where the known programs keep the tensors of an encoder, as patterns of names, and the names here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from girih_backbones.foreign.aliases import State

Kind = Literal["ResidualEncoder", "PlainEncoder"]

_LEAF = r"(?P<leaf>conv|norm)\.(?P<what>weight|bias)"
_BLOCKS = re.compile(
    r"(?:encoder\.)?stages\.(?P<stage>\d+)\.blocks\.(?P<unit>\d+)\.(?P<part>conv1|conv2|skip\.(?P<pooled>[01]))\."
    + _LEAF
)
# Plain stages: dynamic-network-architectures (nnU-Net v2), nnDetection v0.1, nnDetection v2's ConvBackbone, and
# nnU-Net v1, whose coarsest stage is two lists of one unit.
_UNITS: Mapping[str, re.Pattern[str]] = {
    "nnU-Net": re.compile(r"(?:encoder\.)?stages\.(?P<stage>\d+)\.0\.convs\.(?P<unit>\d+)\." + _LEAF),
    "nnDetection v0.1": re.compile(r"(?:encoder\.)?stages\.(?P<stage>\d+)\.convs\.0\.(?P<unit>\d+)\." + _LEAF),
    "nnDetection v2": re.compile(r"backbone\.levels\.(?P<stage>\d+)\.component\.(?P<unit>\d+)\." + _LEAF),
    "nnU-Net v1": re.compile(
        r"conv_blocks_context\.(?P<stage>\d+)\.(?:blocks\.(?P<unit>\d+)|(?P<half>[01])\.blocks\.0)\."
        r"(?P<leaf>conv|instnorm)\.(?P<what>weight|bias)"
    ),
}
# A stem of its own, or one per dataset (MultiTalent); on ConvBackbone the convolution is 0 and the norm is 1.
_STEMS = (
    re.compile(r"(?:encoder\.)?stem\.(?:(?!convs\.)(?P<dataset>[^.]+)\.)?convs\.0\." + _LEAF),
    re.compile(r"stem\.(?P<dataset>[^.]+)\.(?P<leaf>[01])\.(?P<what>weight|bias)"),
)
_LEAVES = {"conv": "conv", "norm": "norm", "instnorm": "norm", "0": "conv", "1": "norm"}
_ENCODER = ("encoder.", "stages.", "stem.", "backbone.", "conv_blocks_context.")


@dataclass(frozen=True)
class Parts:
    """What a state_dict holds, in the names here.

    Attributes:
        family: the program whose structure this is.
        kind: the encoder's class here.
        encoder: its tensors: `stages.*`, and `stem.*` if there is one stem.
        stems: the stems of single datasets: `conv.weight` and so on, by dataset.
        keys: key in the file of every tensor of `encoder`, and of `stems` as `<dataset>.<name>`.
        pooled: whether stages with a projection pool before it; residual encoders only.
        rest: what belongs to no encoder, by its name without aliases.
    """

    family: str
    kind: Kind
    encoder: dict[str, Tensor]
    stems: dict[str, dict[str, Tensor]]
    keys: dict[str, str]
    pooled: dict[int, bool]
    rest: dict[str, Tensor]


def split(state: State) -> Parts:
    """Sort the tensors of a state_dict into encoder, stems and the rest.

    Raises:
        ValueError: no known structure is there, or two, or a tensor of the encoder is in none of them, or has an alias
            only while others are listed in `all_modules`.
    """
    family = _family(state)
    kind: Kind = "ResidualEncoder" if family == "residual" else "PlainEncoder"
    parts = Parts("nnU-Net" if family == "residual" else family, kind, {}, {}, {}, {}, {})
    for name, tensor in state.tensors.items():
        stem = _first_match(_STEMS, name)
        if stem is None:
            continue
        leaf, dataset = f"{_LEAVES[stem['leaf']]}.{stem['what']}", stem["dataset"]
        parts.keys[f"stem.{leaf}" if dataset is None else f"{dataset}.{leaf}"] = state.key(name)
        if dataset is None:
            parts.encoder[f"stem.{leaf}"] = tensor
        else:
            parts.stems.setdefault(dataset, {})[leaf] = tensor
    apart = bool(parts.stems) or bool(parts.encoder)
    for name, tensor in state.tensors.items():
        if _first_match(_STEMS, name) is not None:
            continue
        place = _place(name, family, parts, stem_apart=apart)
        if place is None and name.startswith(_ENCODER):
            raise ValueError(
                f"key {state.key(name)}: found shape {tuple(tensor.shape)} in the encoder, wanted only names that "
                f"{kind} has (stem, stages, blocks of two convolutions and a skip)"
            )
        if place is None:
            parts.rest[name] = tensor
            continue
        if place in parts.encoder:
            raise ValueError(
                f"key {state.key(name)}: found a second tensor for {place}, the first is {parts.keys[place]}"
            )
        parts.encoder[place], parts.keys[place] = tensor, state.key(name)
    alone = [key for key in parts.keys.values() if ".all_modules." not in key]
    if alone and len(alone) < len(parts.keys):  # it may be stale, as the aliases of S3D are
        raise ValueError(
            f"key {alone[0]}: found no all_modules beside it, wanted it as for the rest of the encoder, as it is run"
        )
    return parts


def _family(state: State) -> str:
    """Return "residual" or the key in `_UNITS` of the one structure that the names have."""
    found = {family for name in state.tensors for family, unit in _UNITS.items() if unit.fullmatch(name)}
    found |= {"residual" for name in state.tensors if _BLOCKS.fullmatch(name)}
    if len(found) > 1:
        raise ValueError(f"keys: found the encoders of {' and '.join(sorted(found))}, wanted one")
    if not found:
        begins = sorted({name.split(".")[0] for name in state.tensors})
        shown = ", ".join(begins[:6]) + (", ..." if len(begins) > 6 else "")
        raise ValueError(
            f"keys: found names that begin with {shown}; wanted an encoder of nnU-Net, nnssl, MultiTalent or "
            "nnDetection (encoder.stages.0... and the like)"
        )
    return found.pop()


def _place(name: str, family: str, parts: Parts, *, stem_apart: bool) -> str | None:
    """Return the name here of one tensor of the stages, or None if it is none."""
    match = (_BLOCKS if family == "residual" else _UNITS[family]).fullmatch(name)
    if match is None:
        return None
    stage, leaf = int(match["stage"]), f"{_LEAVES[match['leaf']]}.{match['what']}"
    if family == "residual":
        part = match["part"]
        if match["pooled"] is not None:
            parts.pooled[stage], part = match["pooled"] == "1", "skip.proj"
        return f"stages.{stage}.{int(match['unit'])}.{part}.{leaf}"
    groups = match.groupdict()
    unit = int(groups["unit"] if groups["unit"] is not None else groups["half"])
    if stage == 0 and not stem_apart:  # the first unit of stage 0 is the stem here
        return f"stem.{leaf}" if unit == 0 else f"stages.0.{unit - 1}.{leaf}"
    return f"stages.{stage}.{unit}.{leaf}"


def _first_match(patterns: tuple[re.Pattern[str], ...], name: str) -> re.Match[str] | None:
    return next((match for pattern in patterns if (match := pattern.fullmatch(name))), None)
