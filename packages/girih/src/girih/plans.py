"""Plans by name: the presets hold for any dataset; one that `girih plan` computed from a dataset goes by its path."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

import girih_backbones
from girih_data3d import Plan, plan_from_json, read_plan

__all__ = ["PRESETS", "Plan", "load_plan", "plan_from_json"]

# Sizes from which nnDetection's anchor search starts, at stride 4.
DEFAULT_ANCHORS = [list(size) for size in product((4, 8, 16), repeat=3)]

_RESENC_L = Plan(
    encoder=girih_backbones.preset("resenc_l"),
    neck={"class": "UFPN", "kwargs": {"out_channels": 128, "first_level": 2, "init": "he_fan_out"}},
    patch_zyx=(128, 128, 128),
    batch_size=4,
    levels=(2, 3, 4, 5),
    anchors={"sizes_zyx_voxels": DEFAULT_ANCHORS, "mean_best_iou": None},
    spacing_zyx_mm=(1.0, 1.0, 1.0),
    notes=("Eckstein et al. 2025: fixed 1 mm spacing, ResEncL encoder, 128^3 patches.",),
)

PRESETS: Mapping[str, Plan] = {
    "resenc_l": _RESENC_L,
    "retina_unet": replace(
        _RESENC_L,
        encoder=girih_backbones.preset("retina_unet_v002"),
        notes=("Eckstein et al. 2025: fixed 1 mm spacing, plain Retina U-Net encoder, 128^3 patches.",),
    ),
    "retina_unet_v001": replace(
        _RESENC_L,
        encoder=girih_backbones.preset("retina_unet_v001"),
        neck={"class": "UFPN", "kwargs": {"out_channels": 128, "first_level": 2}},
        notes=("Baumgartner et al. 2021, nnDetection v0.1 at six stages: plain encoder with ReLU, 128^3 patches.",),
    ),
    "demo": Plan(
        encoder={
            "class": "ResidualEncoder",
            "kwargs": {
                "channels": [16, 32, 64, 96],
                "downsampling": [[2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
                "blocks": [1, 2, 2, 2],
            },
        },
        neck={"class": "UFPN", "kwargs": {"out_channels": 32, "first_level": 0}},
        patch_zyx=(32, 32, 32),
        batch_size=6,
        levels=(0, 1, 2),
        anchors={"sizes_zyx_voxels": [list(size) for size in product((3, 5), repeat=3)], "mean_best_iou": None},
        spacing_zyx_mm=(2.0, 2.0, 2.0),
        notes=("A small network that trains on two CPU cores; for trying the program, not for results.",),
    ),
}


def load_plan(name_or_path: str) -> Plan:
    """Return the preset called `name_or_path`, or the plan in that JSON file.

    Raises:
        ValueError: neither a preset nor a file, or a field of the file is missing, unknown or wrong, or
            describes no encoder or neck that can be built; it is named.
    """
    if name_or_path in PRESETS:
        return PRESETS[name_or_path]
    if not Path(name_or_path).is_file():
        raise ValueError(f"plan {name_or_path!r} is neither a preset ({', '.join(PRESETS)}) nor a file")
    plan = read_plan(name_or_path)
    _check_networks(plan, name_or_path)
    return plan


def _check_networks(plan: Plan, where: str) -> None:
    """Build the encoder and the neck without memory or weights, so that a wrong class or setting is known at once."""
    field = "encoder"
    try:
        with torch.device("meta"):
            encoder = girih_backbones.make_encoder(_description(plan.encoder), 1)
            if plan.neck is not None:
                field = "neck"
                girih_backbones.make_neck(_description(plan.neck), encoder)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: field {field!r}: {error}") from error


def _description(content: Mapping[str, Any]) -> girih_backbones.Description:
    return {"class": content["class"], "kwargs": dict(content["kwargs"])}
