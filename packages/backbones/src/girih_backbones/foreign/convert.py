"""From the content of a checkpoint of another program to tensors and a header as this package writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from girih_backbones.checkpoint import check_state
from girih_backbones.described import preset_of
from girih_backbones.descriptions import preset
from girih_backbones.foreign.agreement import agreed_architecture, check_keys
from girih_backbones.foreign.aliases import under_usual_names, without_aliases
from girih_backbones.foreign.layouts import Parts, split
from girih_backbones.foreign.necks import read_neck
from girih_backbones.foreign.plans import Plan, plain, read_adaptation_plan, read_nnunet_plan
from girih_backbones.foreign.shapes import Shapes, read_shapes
from girih_backbones.header import SCHEMA, is_count

PLAN = "nnssl_adaptation_plan"
# nnDetection's fine-tuning uses this one of MultiTalent's stems, for CT, where nothing else is said.
MULTITALENT_STEM = "351_0"
_MOST_CITATIONS, _LONGEST_CITATION = 10, 1000


def convert(
    content: Mapping[str, Any], beside: Mapping[str, Any] | None, *, name: str, max_bytes: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors by their names here, as float32 copies, and the header; both are yet to be checked.

    Args:
        content: the dictionary in the checkpoint.
        beside: the adaptation plan in the checkpoint's folder, used if there is none inside.
        name: file name of the checkpoint, recorded as its source.
        max_bytes: the most that the copies may take.

    Raises:
        ValueError: no known structure, a plan that contradicts the tensors, or values that are not finite; names the
            key or field, what was found and what was wanted.
    """
    holder, raw = _state(content)
    state = without_aliases(check_state(holder, raw))
    plan = _plan(content, beside)
    if plan is not None:
        state = under_usual_names(state, plan.key_to_encoder, plan.key_to_stem)
    parts = split(state)
    shapes = read_shapes(parts)
    notes = list(state.notes)
    if plan is not None:
        notes += plan.notes
        check_keys(plan, raw)
    description = agreed_architecture(parts, shapes, plan, notes).description()
    name_here = preset_of(description)
    if name_here is not None:  # with the preset's initialisation, so that both compare equal
        description = preset(name_here)
    default, in_channels = _default_stem(parts, shapes, plan, notes)
    if plan is not None and plan.in_channels not in (None, in_channels):
        raise ValueError(
            f"{plan.where}.pretrain_num_input_channels: found {plan.in_channels}, the stem's tensor has {in_channels}"
        )
    neck, neck_tensors, why = read_neck(parts.rest, description, in_channels)
    if why is not None:
        notes.append(f"decoder left out: {why}")
    notes += _left_out(parts.rest, neck is not None)
    tensors: dict[str, Tensor] = {}
    taken = [(f"encoder.{key}", parts.keys[key], tensor) for key, tensor in parts.encoder.items()]
    if default is not None:
        taken += [(f"encoder.stem.{k}", parts.keys[f"{default}.{k}"], t) for k, t in parts.stems[default].items()]
    for dataset, stem in parts.stems.items():
        taken += [(f"stems.{dataset}.{k}", parts.keys[f"{dataset}.{k}"], t) for k, t in stem.items()]
    taken += [(f"neck.{key}", f"the decoder's {key}", tensor) for key, tensor in neck_tensors.items()]
    size = sum(4 * tensor.numel() for _, _, tensor in taken)
    if size > max_bytes:
        raise ValueError(f"found {size} bytes of weights, wanted at most {max_bytes}")
    for here, key, tensor in taken:
        value = tensor.to(torch.float32, copy=True).contiguous()
        if not torch.isfinite(value).all():
            raise ValueError(f"key {key}: found values that are not finite (NaN or infinity), wanted numbers")
        tensors[here] = value
    header = {
        "schema": SCHEMA,
        "encoder": description,
        "neck": neck,
        "in_channels": in_channels,
        "stems": {dataset: shapes.in_channels[dataset] for dataset in parts.stems},
        "patch_zyx": plan.patch_zyx if plan else None,
        "spacing_zyx_mm": plan.spacing_zyx_mm if plan else None,
        "normalisation": plan.normalisation if plan else None,
        "modality": plan.modality if plan else None,
        "objective": None,
        "objective_config": None,
        "steps": None,
        "source": _source(content, plan, parts.family, name),
        "versions": {},
        "notes": [*notes, *_citations(content)],
    }
    return tensors, header


def _state(content: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the state_dict in a checkpoint and the key it lies under."""
    for name in ("network_weights", "spark_weights", "state_dict"):
        if name in content:
            return name, content[name]
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return "the file", content
    shown = ", ".join(sorted(map(str, content))[:6])
    raise ValueError(f"found a dictionary of {shown or 'nothing'}; wanted network_weights in it, or tensors only")


def _plan(content: Mapping[str, Any], beside: Mapping[str, Any] | None) -> Plan | None:
    """Return the plan inside the checkpoint, or else the one beside it, which may be another checkpoint's."""
    if content.get(PLAN) is not None:
        return read_adaptation_plan(content[PLAN], PLAN)
    init_args = content.get("init_args")
    if isinstance(init_args, Mapping) and isinstance(init_args.get("plans"), Mapping):
        return read_nnunet_plan(init_args, "init_args")
    return None if beside is None else read_adaptation_plan(beside, "adaptation_plan.json")


def _default_stem(parts: Parts, shapes: Shapes, plan: Plan | None, notes: list[str]) -> tuple[str | None, int]:
    """Return the dataset whose stem becomes the encoder's, None if it has its own, and the channels of its images."""
    if None in shapes.in_channels:
        return None, shapes.in_channels[None]
    datasets = sorted(parts.stems)
    last = plan.key_to_stem.rpartition(".")[2] if plan is not None and plan.key_to_stem is not None else None
    if last in parts.stems:
        dataset, why = str(last), "as the plan says"
    elif MULTITALENT_STEM in parts.stems:
        dataset, why = MULTITALENT_STEM, "MultiTalent's for CT; the file names no default"
    else:
        dataset, why = datasets[0], "the first by name; the file names no default"
    notes.append(f"the encoder's stem is that of dataset {dataset} of {len(datasets)}, {why}")
    return dataset, shapes.in_channels[dataset]


def _left_out(rest: Mapping[str, Tensor], neck: bool) -> list[str]:
    """Say which tensors of the file are not kept, by the beginning of their names."""
    counts: dict[str, int] = {}
    for name in rest:
        begins = ".".join(name.split(".")[:2]) if name.startswith("decoder.") else name.split(".")[0]
        if neck and begins.startswith(("decoder.", "neck")) and begins != "decoder.seg_layers":
            continue
        counts[begins] = counts.get(begins, 0) + 1
    return (
        [f"left out: {', '.join(f'{begins} ({n} tensors)' for begins, n in sorted(counts.items()))}"] if counts else []
    )


def _source(content: Mapping[str, Any], plan: Plan | None, family: str, name: str) -> str:
    """Say what file this was, by what it says itself."""
    if "spark_weights" in content:
        kind = "nnssl S3D checkpoint"
    elif plan is not None:
        kind = "nnU-Net v2 checkpoint" if plan.where.startswith("init_args") else "nnssl checkpoint"
    else:
        kind = f"checkpoint in the structure of {family}"
    parts = [f"{kind} {name}"]
    trainer, epoch = content.get("trainer_name"), content.get("current_epoch", content.get("epoch"))
    if isinstance(trainer, str) and trainer:
        parts.append(f"trainer {trainer}")
    if is_count(epoch, least=0):
        parts.append(f"epoch {epoch}")
    return ", ".join(parts)


def _citations(content: Mapping[str, Any]) -> list[str]:
    """Return what the authors ask to be cited, from the file or its plan."""
    told = content.get(PLAN)
    listed = content.get("citations", told.get("citations") if isinstance(told, Mapping) else None)
    lines: list[str] = []
    for entry in plain(listed[:_MOST_CITATIONS], "citations") if isinstance(listed, list | tuple) else ():
        if isinstance(entry, dict):
            texts = entry.get("apa_citations", "")
            text = "; ".join(map(str, texts)) if isinstance(texts, list) else str(texts)
            lines.append(f"please cite {entry.get('name', '')}: {text}"[:_LONGEST_CITATION])
    return lines
