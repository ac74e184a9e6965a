"""Trained detectors that predict together, and what they expect of a scan."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import girih_data3d
from girih.checkpoints import latest_checkpoint, load_model
from girih.networks import make_detector
from girih.plans import Plan, plan_from_json
from girih.runs import RunFolder, config_sha256
from girih_detectors import Detector, RetinaUNet

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
    models: tuple[dict[str, str], ...]
    """Of each: hash of the run's settings, name of the checkpoint."""


def load_ensemble(runs: Sequence[Path]) -> Ensemble:
    """Return the detectors of fine-tuning runs, in the order of the runs.

    Raises:
        ValueError: no run, one that cannot be loaded, or one that differs from the first in classes, channels,
            modality, preparation or patch; run and field are named.
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
    )


def load_detector(run: Path) -> tuple[RetinaUNet, Plan, dict[str, Any], str]:
    """Return the detector of a fine-tuning run, its plan, the run's config, and the checkpoint of its weights.

    These are the newest, or their moving average if the run keeps one.

    Raises:
        ValueError: the folder is not a fine-tuning run, has no checkpoint yet, or the checkpoint does not fit its plan.
    """
    folder = RunFolder(run)
    config = folder.config
    if config["command"] != "finetune":
        raise ValueError(f"{run} is the run of {config['command']!r}, wanted one of 'finetune'")
    checkpoint = latest_checkpoint(folder.checkpoints)
    if checkpoint is None:
        raise ValueError(f"{run} has no finished checkpoint yet")
    plan = plan_from_json(config["plan"], f"{run}/config.json")
    detector = make_detector(
        plan,
        in_channels=config["in_channels"],
        classes=tuple(config["classes"]),
        segmentation=config["settings"]["segmentation"],
        seed=0,
        flavour=config["settings"]["flavour"],
    )
    try:
        averaged = config["settings"]["recipe"].get("ema_decay", 0) > 0
        detector.load_state_dict(load_model(checkpoint, averaged=averaged))
    except RuntimeError as error:
        raise ValueError(f"{checkpoint}: does not fit the plan in {run}/config.json: {error}") from error
    return detector, plan, config, checkpoint.name


def preparation_differences(
    found: girih_data3d.PrepareSpec, wanted: girih_data3d.PrepareSpec
) -> list[tuple[str, Any, Any]]:
    """Return (field, found, wanted) of every setting that changes what a network sees."""
    names = [field.name for field in dataclasses.fields(wanted) if field.name not in STORAGE]
    pairs = [(name, getattr(found, name), getattr(wanted, name)) for name in names]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _alone(run: Path) -> Ensemble:
    detector, plan, config, checkpoint = load_detector(run)
    return Ensemble(
        detectors=(detector,),
        classes=detector.classes,
        in_channels=config["in_channels"],
        modality=config.get("modality"),
        spec=girih_data3d.PrepareSpec.from_json(config["prepare"]),
        patch_zyx=plan.patch_zyx,
        models=({"config_sha256": config_sha256(config), "checkpoint": checkpoint},),
    )


def _differences(found: Ensemble, wanted: Ensemble) -> list[tuple[str, Any, Any]]:
    pairs = [(name, getattr(found, name), getattr(wanted, name)) for name in ("classes", "in_channels", "patch_zyx")]
    if found.modality is not None and wanted.modality is not None:
        pairs.append(("modality", found.modality, wanted.modality))
    return [pair for pair in pairs if pair[1] != pair[2]] + preparation_differences(found.spec, wanted.spec)
