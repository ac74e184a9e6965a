"""Trained detectors that predict together, and what they expect of a scan."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import girih_data3d
from girih.checkpoints import latest_checkpoint, load_model
from girih.networks import OPTIONS, make_detector
from girih.plans import plan_from_json
from girih.runs import RunFolder, config_sha256
from girih_detectors import Detector

STORAGE = ("dtype", "quant_step", "compression")
"""Fields of a preparation that say how a dataset lies on disk, not what a network sees of it."""


@dataclass(frozen=True)
class Ensemble:
    """One detector or several that share everything which decides what they are shown and what their boxes mean."""

    detectors: tuple[Detector, ...]
    classes: tuple[str, ...]
    in_channels: int
    modality: str | None
    """None: not known."""
    spec: girih_data3d.PrepareSpec
    """How their training data were prepared."""
    patch_zyx: tuple[int, int, int]
    models: tuple[str, ...]
    """Of each the name of its checkpoint, and a hash of its settings and weights: other boxes, another name."""
    trained_on: frozenset[str]
    """Hashes of the datasets that they have learnt from, see `girih.batches.survey`."""


def load_ensemble(runs: Sequence[Path]) -> Ensemble:
    """Return the detectors of fine-tuning runs, in the order of the runs.

    Raises:
        ValueError: no run; one that is not of fine-tuning, has no checkpoint yet, lacks a setting, or whose weights do
            not fit its plan; or one that differs from the first in classes, channels, modality, preparation or patch.
            Run and field are named.
    """
    if not runs:
        raise ValueError("no model is given, wanted the folder of at least one fine-tuning run")
    loaded = [_alone(run) for run in runs]
    first = loaded[0]
    for run, other in zip(runs[1:], loaded[1:], strict=True):
        for field, found, wanted in _differences(other, first):
            raise ValueError(
                f"{run}: {field} is {found!r}, that of {runs[0]} is {wanted!r}: the models of an ensemble have one"
            )
    return dataclasses.replace(
        first,
        detectors=tuple(one.detectors[0] for one in loaded),
        modality=next((one.modality for one in loaded if one.modality is not None), None),
        models=tuple(one.models[0] for one in loaded),
        trained_on=frozenset().union(*(one.trained_on for one in loaded)),
    )


def preparation_differences(
    found: girih_data3d.PrepareSpec, wanted: girih_data3d.PrepareSpec
) -> list[tuple[str, Any, Any]]:
    """Return (field, found, wanted) of every setting that changes what a network sees."""
    names = [field.name for field in dataclasses.fields(wanted) if field.name not in STORAGE]
    pairs = [(name, getattr(found, name), getattr(wanted, name)) for name in names]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _alone(run: Path) -> Ensemble:
    """Return the detector of a run with its newest weights, or their moving average if the run keeps one."""
    folder, where = RunFolder(run), f"{run}/config.json"
    config = folder.config
    if (command := _field(config, where, "command")) != "finetune":
        raise ValueError(f"{run} is the run of {command!r}, wanted one of 'finetune'")
    checkpoint = latest_checkpoint(folder.checkpoints)
    if checkpoint is None:
        raise ValueError(f"{run} has no finished checkpoint yet")
    plan = plan_from_json(_field(config, where, "plan"), where)
    kind = _field(config, where, "settings").get("detector", "retina_unet")  # what there was before this setting
    if kind not in OPTIONS:
        raise ValueError(f"{where}: settings.detector is {kind!r}, wanted one of {', '.join(OPTIONS)}")
    detector = make_detector(
        plan,
        in_channels=_field(config, where, "in_channels"),
        classes=tuple(_field(config, where, "classes")),
        seed=0,
        detector=kind,
        **{name: _field(config, where, "settings", name) for name in OPTIONS[kind]},
    )
    recipe = _field(config, where, "settings", "recipe")
    weights = load_model(checkpoint, averaged=recipe.get("ema_decay", 0) > 0)
    try:
        detector.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{checkpoint}: does not fit the plan in {where}: {error}") from error
    prepare = _field(config, where, "prepare")
    try:
        spec = girih_data3d.PrepareSpec.from_json(prepare)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: prepare: {error}") from error
    return Ensemble(
        detectors=(detector,),
        classes=detector.classes,
        in_channels=config["in_channels"],
        modality=config.get("modality"),
        spec=spec,
        patch_zyx=plan.patch_zyx,
        models=(f"{checkpoint.name} {_hash(config_sha256(config), weights)}",),
        trained_on=frozenset([_field(config, where, "dataset_sha256"), config.get("store_sha256")]) - {None},
    )


def _field(config: Mapping[str, Any], where: str, *names: str) -> Any:
    found: Any = config
    for name in names:
        if not isinstance(found, Mapping) or name not in found:
            raise ValueError(f"{where}: {'.'.join(names)} is missing")
        found = found[name]
    return found


def _hash(settings: str, weights: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits that differ for other settings or other weights."""
    digest = hashlib.sha256(settings.encode())
    for name in sorted(weights):
        digest.update(f"{name} {weights[name].dtype} {tuple(weights[name].shape)}".encode())
        digest.update(weights[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _differences(found: Ensemble, wanted: Ensemble) -> list[tuple[str, Any, Any]]:
    pairs = [(name, getattr(found, name), getattr(wanted, name)) for name in ("classes", "in_channels", "patch_zyx")]
    if found.modality is not None and wanted.modality is not None:
        pairs.append(("modality", found.modality, wanted.modality))
    return [pair for pair in pairs if pair[1] != pair[2]] + preparation_differences(found.spec, wanted.spec)
