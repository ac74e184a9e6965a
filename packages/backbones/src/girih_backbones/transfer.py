"""From a weights file into a model, all or nothing, with a report of every tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
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


def load_weights(
    model: nn.Module,
    weights: Weights,
    *,
    scope: Literal["encoder", "all"] = "encoder",
    stem: str = "exact",
    allow: Sequence[str] = (),
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

    Raises:
        TransferError: a tensor of the model is not in the file or of another shape, or one of the file's (within
            `scope`) has no place in the model, and no pattern allows it. The report is on the error.
        ValueError: the model does not belong to `scope`, or `stem` is not one of the four, or names no stem of the
            file.
    """
    if isinstance(allow, str):
        raise ValueError(f"allow: found the text {allow!r}, wanted a sequence of patterns")
    parts = _parts_in_scope(model, scope)
    origin = _stem_origin(weights, stem)
    targets = {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}
    rows: list[Row] = []
    values: dict[str, Tensor] = {}
    for name, target in targets.items():
        row, value = _match(name, target, weights.tensors, origin, stem)
        rows.append(row)
        if value is not None:
            values[name] = value
    rows += [_left_over(name, parts, scope) for name in weights.tensors if name not in targets]
    header = weights.header
    found = {"encoder": header["encoder"], "neck": header["neck"]}
    report = TransferReport(
        file="weights" if weights.path is None else str(weights.path),
        found={part: description for part in parts if (description := found[part]) is not None},
        wanted={part: describe(module) for part, module in parts.items()},
        rows=tuple(_allowed(row, allow) for row in rows),
    )
    if report.errors:
        raise TransferError(report)
    with torch.no_grad():
        for name, value in values.items():
            targets[name].copy_(value)
    return report


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
    if name not in names:
        raise ValueError(f"stem: found {stem!r}, wanted one of the datasets of the file: {names}")
    return f"stems.{name}."


def _match(
    name: str, target: Tensor, tensors: Mapping[str, Tensor], origin: str | None, stem: str
) -> tuple[Row, Tensor | None]:
    """Find the value for one tensor of the model."""
    source, reason = name, ""
    if name.startswith(STEM) and origin != STEM:
        if origin is None:
            return Row(name, "skipped", "stem 'random': the model keeps its own"), None
        source = origin + name.removeprefix(STEM)
        reason = f"from {source}"
    if source not in tensors:
        return Row(name, "missing", "in the model, not in the file", error=True), None
    value = tensors[source]
    found, wanted = tuple(value.shape), tuple(target.shape)
    if found == wanted:
        return Row(name, "loaded", reason), value
    shapes = f"found {found}, wanted {wanted}"
    if stem == "replicate" and name.startswith(STEM) and value.ndim == 5 and found == (wanted[0], 1, *wanted[2:]):
        n = wanted[1]
        row = Row(name, "reshaped", f"{shapes}: repeated over {n} channels, divided by {n}")
        return row, value.expand(wanted) / n
    return Row(name, "skipped", shapes, error=True), None


def _left_over(name: str, parts: Mapping[str, nn.Module], scope: str) -> Row:
    """Say why a tensor of the file that no tensor of the model is called after stays behind."""
    part = name.partition(".")[0]
    if part == "stems":
        return Row(name, "skipped", "stem of one dataset, a source only")
    if part not in parts:
        return Row(name, "skipped", f"outside scope {scope!r}")
    return Row(name, "skipped", "in the file, not in the model", error=True)


def _allowed(row: Row, allow: Sequence[str]) -> Row:
    if row.error:
        for pattern in allow:
            if fnmatchcase(row.name, pattern):
                return replace(row, error=False, reason=f"{row.reason} (allowed by {pattern!r})")
    return row
