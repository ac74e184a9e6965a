"""A plan says what network a dataset gets: encoder, neck, patch, detection levels, anchors. It is JSON to edit by hand.

The presets are the plans that hold for any dataset; one computed from a dataset replaces them by path.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import girih_backbones

SCHEMA = 1
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Plan:
    """What a detector for one dataset is built from. Spatial tuples are (z, y, x).

    A field that is None is not known (yet): a preset knows no dataset.
    """

    encoder: Mapping[str, Any]
    """{"class", "kwargs"} of a girih_backbones encoder."""
    neck: Mapping[str, Any] | None
    """{"class", "kwargs"} of a girih_backbones neck."""
    patch_zyx: Triple
    """Training patch and inference tile, voxels."""
    batch_size: int
    """Patches per optimiser step, over all processes."""
    levels: tuple[int, ...]
    """Maps of the pyramid that carry detection heads, finest first."""
    anchors: Mapping[str, Any]
    """{"sizes_zyx_voxels": (A, 3) at the first level, "mean_best_iou": float or None}."""
    spacing_zyx_mm: tuple[float, float, float] | None = None
    dataset: str | None = None
    dataset_fingerprint_sha256: str | None = None
    classes: tuple[str, ...] | None = None
    modalities: tuple[str, ...] | None = None
    normalisation: Mapping[str, Any] | None = None
    objects_per_patch_p95: float | None = None
    queries: int | None = None
    memory_budget_bytes: int | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the plan as the content of a plan.json."""
        return {"schema": SCHEMA, **asdict(self)}


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
        ValueError: neither a preset nor a file, or a field of the file is missing, unknown or wrong; it is named.
    """
    if name_or_path in PRESETS:
        return PRESETS[name_or_path]
    path = Path(name_or_path)
    if not path.is_file():
        raise ValueError(f"plan {name_or_path!r} is neither a preset ({', '.join(PRESETS)}) nor a file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    return plan_from_json(content, str(path))


def plan_from_json(content: Any, where: str) -> Plan:
    """Return the plan that `to_json` wrote; `where` names its source in errors.

    Raises:
        ValueError: a field is missing, unknown or of the wrong form; it is named with the found and the wanted value.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{where}: a plan is a JSON object, found {type(content).__name__}")
    content = dict(content)
    if (schema := content.pop("schema", None)) != SCHEMA:
        raise ValueError(f"{where}: schema is {schema!r}, wanted {SCHEMA}")
    required = {"encoder", "neck", "patch_zyx", "batch_size", "levels", "anchors"}
    if unknown := sorted(set(content) - set(_FORMS)):
        raise ValueError(f"{where}: unknown field {unknown[0]!r}; known: {', '.join(sorted(_FORMS))}")
    if missing := sorted(required - set(content)):
        raise ValueError(f"{where}: field {missing[0]!r} is missing")
    for name, found in content.items():
        good, wanted = _FORMS[name]
        optional = name not in required or name == "neck"
        if not (good(found) or (optional and found is None)):
            raise ValueError(f"{where}: field {name!r} is {found!r}, wanted {wanted}{' or null' if optional else ''}")
    values: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in content.items()}
    return Plan(**values)


def _is_description(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("class"), str) and isinstance(value.get("kwargs"), dict)


def _is_number(value: Any, kind: Any = (int, float), low: float | int = 0) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value) and value >= low


def _is_triple(value: Any, kind: Any = (int, float), low: float | int = 1e-3) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_number(item, kind, low) for item in value)


def _is_levels(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) > 0 and all(_is_number(item, int) for item in value)
    return numbers and value == sorted(set(value))


def _is_anchors(value: Any) -> bool:
    sizes = value.get("sizes_zyx_voxels") if isinstance(value, dict) else None
    return isinstance(sizes, list) and len(sizes) > 0 and all(_is_triple(size) for size in sizes)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_whole(value: Any) -> bool:
    return _is_number(value, int, 1)


_DESCRIPTION = (_is_description, 'an object with "class" and "kwargs"')
_TEXT = (lambda value: isinstance(value, str), "text")
_TEXTS = (_is_texts, "a list of texts")
_WHOLE = (_is_whole, "a whole number >= 1")
_FORMS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "encoder": _DESCRIPTION,
    "neck": _DESCRIPTION,
    "patch_zyx": (lambda value: _is_triple(value, int, 1), "three whole numbers >= 1"),
    "batch_size": _WHOLE,
    "levels": (_is_levels, "increasing whole numbers, finest first"),
    "anchors": (_is_anchors, 'an object with "sizes_zyx_voxels", a list of (z, y, x) sizes > 0'),
    "spacing_zyx_mm": (_is_triple, "three numbers > 0"),
    "dataset": _TEXT,
    "dataset_fingerprint_sha256": _TEXT,
    "classes": _TEXTS,
    "modalities": _TEXTS,
    "normalisation": (lambda value: isinstance(value, dict), "an object"),
    "objects_per_patch_p95": (_is_number, "a number >= 0"),
    "queries": _WHOLE,
    "memory_budget_bytes": _WHOLE,
    "notes": _TEXTS,
}
