"""From a weights file into a model, all or nothing, with a report of every tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from girih_backbones.descriptions import describe
from girih_backbones.encoder import Encoder
from girih_backbones.pyramid import FeaturePyramid
from girih_backbones.report import Row, TransferError, TransferReport
from girih_backbones.weights import Weights

STEM = "encoder.stem."
DEEPER = "; skip_deeper=True loads the stages that both have"
_STAGE = re.compile(r"encoder\.stages\.(\d+)\.")
_LEVEL = re.compile(r"neck\.[a-z]+\.(\d+)\.")
_UP = "neck.up."  # transposed convolutions, whose kernel is the step: not averaged


def load_weights(
    model: nn.Module,
    weights: Weights,
    *,
    scope: Literal["encoder", "all"] = "encoder",
    stem: str = "exact",
    allow: Sequence[str] = (),
    skip_deeper: bool = False,
    average_kernels: bool = False,
) -> TransferReport:
    """Copy weights into a model if every tensor of both fits, else change nothing and raise.

    Args:
        model: an encoder for scope "encoder", a `FeaturePyramid` for scope "all".
        weights: what `read_weights` returned.
        scope: "encoder" leaves the file's neck aside; "all" moves encoder and neck.
        stem: "exact" wants the stem to fit. "random" keeps the model's. "replicate" repeats a stem of one channel over
            the model's n and divides by n, so that n equal channels give what one gave. "dataset:<name>" takes the
            stem of that dataset.
        allow: shell patterns (`encoder.stages.5.*`) of the names that may stay unloaded: of the model, they keep their
            values; of the file, they are dropped.
        skip_deeper: whether the stages that only one of the two has may stay behind, and the levels of the neck that
            join them; the common ones are loaded.
        average_kernels: whether an axis on which the model's kernel is 1 takes the mean of the file's kernel along it,
            as nnDetection does for anisotropic plans (3 x 3 x 3 to 1 x 3 x 3).

    Raises:
        TransferError: a tensor of the model is not in the file or of another shape, or one of the file's (within
            `scope`) has no place in the model, and neither an option nor a pattern allows it. The report is on the
            error.
        ValueError: the model does not belong to `scope`, has no memory (device "meta") or not the range for a value,
            or `stem` is not one of the four, or names no stem of the file.
    """
    if isinstance(allow, str):
        raise ValueError(f"allow: found the text {allow!r}, wanted a sequence of patterns")
    if not isinstance(weights, Weights):
        raise ValueError(f"weights: found {type(weights).__name__}, wanted what read_weights(path) returns")
    parts = _parts_in_scope(model, scope)
    header = weights.header
    wanted = {part: describe(module) for part, module in parts.items()}
    common = min(len(side["kwargs"]["channels"]) for side in (header["encoder"], wanted["encoder"]))
    way = _Way(weights.tensors, _stem_origin(weights, stem), stem, common, skip_deeper, average_kernels)
    targets = {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}
    rows: list[Row] = []
    values: dict[str, Tensor] = {}
    for name, target in targets.items():
        row, value = _match(name, target, way)
        rows.append(row)
        if value is not None:
            values[name] = value
    rows += [_left_over(name, parts, scope, way) for name in weights.tensors if name not in targets]
    found = {"encoder": header["encoder"], "neck": header["neck"]}
    report = TransferReport(
        file="weights" if weights.path is None else str(weights.path),
        found={part: description for part in parts if (description := found[part]) is not None},
        wanted=wanted,
        rows=tuple(_allowed(row, allow) for row in rows),
        notes=tuple(header.get("notes", ())),
    )
    if report.errors:
        raise TransferError(report)
    ready = {name: _for_target(name, value, targets[name]) for name, value in values.items()}
    with torch.no_grad():
        for name, value in ready.items():
            targets[name].copy_(value)
    return report


@dataclass(frozen=True)
class _Way:
    """The file's tensors and how they may be taken; `origin` is the prefix of what fills the stem."""

    tensors: Mapping[str, Tensor]
    origin: str | None
    stem: str
    common_stages: int
    skip_deeper: bool
    average_kernels: bool


def _parts_in_scope(model: nn.Module, scope: str) -> dict[str, nn.Module]:
    if scope == "encoder" and isinstance(model, Encoder):
        return {"encoder": model}
    if scope == "all" and isinstance(model, FeaturePyramid):
        return {"encoder": model.encoder, "neck": model.get_submodule("neck")}
    wanted = {"encoder": "an encoder", "all": "a FeaturePyramid"}
    if scope not in wanted:
        raise ValueError(f"scope: found {scope!r}, wanted 'encoder' or 'all'")
    raise ValueError(f"model: found {type(model).__name__}, wanted {wanted[scope]} for scope {scope!r}")


def _stem_origin(weights: Weights, stem: str) -> str | None:
    """Return the prefix of the file's tensors that fill the stem, or None where nothing does."""
    if stem == "random":
        return None
    if stem in ("exact", "replicate"):
        return STEM
    kind, _, name = stem.partition(":")
    if kind != "dataset":
        raise ValueError(f"stem: found {stem!r}, wanted 'exact', 'random', 'replicate' or 'dataset:<name>'")
    names = sorted(weights.header["stems"])
    if not names:
        raise ValueError(f"stem: found {stem!r}, but the file has no stems by dataset, as only MultiTalent makes them")
    if name not in names:
        raise ValueError(f"stem: found {stem!r}, wanted one of the datasets of the file: {names}")
    return f"stems.{name}."


def _match(name: str, target: Tensor, way: _Way) -> tuple[Row, Tensor | None]:
    """Find the value for one tensor of the model."""
    source, reasons = name, []
    if name.startswith(STEM) and way.origin != STEM:
        if way.origin is None:
            return Row(name, "skipped", "stem 'random': the model keeps its own"), None
        source = way.origin + name.removeprefix(STEM)
        reasons.append(f"from {source}")
    if source not in way.tensors:
        reason = "in the model, not in the file"
        if _is_deeper(name, way):
            if way.skip_deeper:
                return Row(name, "missing", f"skip_deeper: the file has {way.common_stages} stages"), None
            reason += DEEPER
        return Row(name, "missing", reason, error=True), None
    value = way.tensors[source]
    found, wanted = tuple(value.shape), tuple(target.shape)
    shapes = f"found {found}, wanted {wanted}"
    averaged = _averaged_axes(name, found, wanted)
    if averaged and way.average_kernels:
        value = value.mean(averaged, keepdim=True)
        axes = ", ".join("zyx"[axis - 2] for axis in averaged)
        reasons.append(f"average_kernels: mean of the kernel along {axes}")
    ones = (wanted[0], 1, *wanted[2:]) if len(wanted) == 5 else None
    if way.stem == "replicate" and name.startswith(STEM) and value.shape == ones and wanted[1] > 1:
        n = wanted[1]
        value = value.expand(wanted) / n
        reasons.append(f"repeated over {n} channels, divided by {n}")
    if tuple(value.shape) != wanted:
        if averaged and not way.average_kernels:
            shapes += "; average_kernels=True takes the mean along the axis"
        elif name.startswith(STEM) and way.stem != "replicate" and found[:1] + found[2:] == wanted[:1] + wanted[2:]:
            shapes += "; stem='replicate' repeats one channel, stem='random' keeps the model's"
        return Row(name, "skipped", shapes, error=True), None
    if found == wanted:
        return Row(name, "loaded", "; ".join(reasons)), value
    return Row(name, "reshaped", f"{shapes}: {'; '.join(reasons)}"), value


def _averaged_axes(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes to average so that a kernel fits; none where that does not make it fit or is not for it."""
    if len(found) != 5 or len(wanted) != 5 or name.startswith(_UP):
        return ()
    axes = tuple(axis for axis in (2, 3, 4) if found[axis] != wanted[axis])
    return axes if all(wanted[axis] == 1 for axis in axes) else ()


def _is_deeper(name: str, way: _Way) -> bool:
    """Whether a tensor belongs to a stage that not both have, or to the level of the neck that reaches into it."""
    if stage := _STAGE.match(name):
        return int(stage[1]) >= way.common_stages
    level = _LEVEL.match(name)
    return level is not None and int(level[1]) >= way.common_stages - 1


def _left_over(name: str, parts: Mapping[str, nn.Module], scope: str, way: _Way) -> Row:
    """Say why a tensor of the file that no tensor of the model is called after stays behind."""
    part = name.partition(".")[0]
    if part == "stems":
        return Row(name, "skipped", "stem of one dataset, a source only")
    if part not in parts:
        return Row(name, "skipped", f"outside scope {scope!r}")
    reason = "in the file, not in the model"
    if _is_deeper(name, way):
        if way.skip_deeper:
            return Row(name, "skipped", f"skip_deeper: the model has {way.common_stages} stages")
        reason += DEEPER
    return Row(name, "skipped", reason, error=True)


def _allowed(row: Row, allow: Sequence[str]) -> Row:
    if row.error:
        for pattern in allow:
            if fnmatchcase(row.name, pattern):
                return replace(row, error=False, reason=f"{row.reason} (allowed by {pattern!r})")
    return row


def _for_target(name: str, value: Tensor, target: Tensor) -> Tensor:
    """Return the value as the target holds it, so that the copy itself cannot fail or lose a number."""
    if target.is_meta:
        raise ValueError(f"model: found {name} on device 'meta', wanted a model with memory")
    ready = value.to(target.device, target.dtype)
    if not torch.isfinite(ready).all():
        raise ValueError(f"model: {name} as {target.dtype} cannot hold the file's values (NaN or infinity)")
    return ready
