"""A plan says what network a dataset gets: encoder, neck, patch, detection levels, anchors. It is JSON to edit."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from girih_data3d.affine import MAX_SPACING_MM
from girih_data3d.atomic import write_text
from girih_data3d.checked_json import is_whole, read_json
from girih_data3d.grid_checks import MAX_VOXELS
from girih_data3d.normalisation import Scheme, check_normalisation
from girih_data3d.readable_json import plain, readable_json
from girih_data3d.resampling import Number
from girih_data3d.spec import PrepareSpec

SCHEMA = 1
LARGEST = 10**9
"""Of any number in a plan but the bytes of memory."""
REQUIRED = {"encoder", "neck", "patch_zyx", "batch_size", "levels", "anchors"}
Size = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a detector for one dataset is built from. Spatial tuples are (z, y, x).

    A field that is None is not known (yet): a preset knows no dataset.

    Raises:
        ValueError: fields that do not fit together; the message names the field.
    """

    dataset: str | None = None
    dataset_fingerprint_sha256: str | None = None
    classes: tuple[str, ...] | None = None
    modalities: tuple[str, ...] | None = None
    spacing_zyx_mm: tuple[Number, Number, Number] | None = None
    """Voxel size that the dataset is prepared to."""
    patch_zyx: Size
    """Training patch and inference tile, voxels."""
    batch_size: int
    """Patches per optimiser step, over all processes."""
    normalisation: Mapping[str, Any] | None = None
    """{"scheme", "clip", "mean", "std"}, as `normalize` takes them."""
    encoder: Mapping[str, Any]
    """{"class", "kwargs"} of an encoder."""
    neck: Mapping[str, Any] | None
    """{"class", "kwargs"} of a neck."""
    levels: tuple[int, ...]
    """Maps of the pyramid that carry detection heads, finest first."""
    anchors: Mapping[str, Any]
    """{"sizes_zyx_voxels": (A, 3) at the first level, "mean_best_iou": float or None}; on a later level times its
    stride over that of the first."""
    objects_per_patch_p95: Number | None = None
    queries: int | None = None
    """Of Deformable DETR."""
    memory_budget_bytes: int | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("field 'levels' is empty, wanted at least one")
        _check_stages(self)
        _check_anchors(self.anchors)
        if self.normalisation is not None:
            object.__setattr__(self, "normalisation", _check_normalisation(self.normalisation))
        if self.classes is not None and (len(set(self.classes)) < len(self.classes) or not all(self.classes)):
            raise ValueError(f"field 'classes' is {list(self.classes)}, wanted names, each once")
        if math.prod(self.patch_zyx) > MAX_VOXELS:
            raise ValueError(f"field 'patch_zyx' is {list(self.patch_zyx)}, wanted at most {MAX_VOXELS} voxels")
        if self.neck is not None:
            first = self.neck["kwargs"].get("first_level")
            if first is not None and (not _is_number(first, int) or first > self.levels[0]):
                raise ValueError(
                    f"field 'neck.kwargs.first_level' is {first!r}, wanted 0 to levels[0] = {self.levels[0]}"
                )

    def to_json(self) -> dict[str, Any]:
        """Return the plan as the content of a plan.json, always in the same order."""
        return {"schema": SCHEMA, **{f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}}

    def prepare_spec(self, spec: PrepareSpec | None = None) -> PrepareSpec:
        """Return `spec` (default: `PrepareSpec()`) with the voxel size and the normalisation that the plan names."""
        changes: dict[str, Any] = {}
        if self.spacing_zyx_mm is not None:
            changes["target_zyx_mm"] = self.spacing_zyx_mm
        if self.normalisation is not None:
            changes["normalisation"] = self.normalisation["scheme"]
            for name in ("clip", "mean", "std"):
                value = self.normalisation.get(name)
                changes[name] = None if value is None else tuple(value)
        return dataclasses.replace(spec or PrepareSpec(), **changes)


def write_plan(plan: Plan, path: Path | str) -> None:
    """Write a plan.json, whole or not at all.

    Raises:
        OSError: it cannot be written, or is a folder.
    """
    write_text(Path(path), plan_text(plan))


def plan_text(plan: Plan) -> str:
    """Return the text of a plan.json."""
    return readable_json(plan.to_json()) + "\n"


def read_plan(path: Path | str) -> Plan:
    """Read a plan.json.

    Raises:
        ValueError: no such file, not JSON, or as `plan_from_json`.
    """
    path = Path(path)
    return plan_from_json(read_json(path), str(path))


def plan_from_json(content: Any, where: str) -> Plan:
    """Return the plan that `to_json` wrote; `where` names its source in errors.

    Raises:
        ValueError: a field is missing, unknown, of the wrong form, or does not fit the others; it is named with the
            found and the wanted value.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{where}: a plan is a JSON object, found {type(content).__name__}")
    content = dict(content)
    if "schema" not in content:
        raise ValueError(f"{where}: field 'schema' is missing, wanted {SCHEMA}")
    if not is_whole(schema := content.pop("schema"), SCHEMA, SCHEMA):
        raise ValueError(f"{where}: schema is {schema!r}, wanted {SCHEMA}")
    if unknown := sorted(set(content) - set(_FORMS)):
        raise ValueError(f"{where}: unknown field {unknown[0]!r}; known: {', '.join(sorted(_FORMS))}")
    if missing := sorted(REQUIRED - set(content)):
        raise ValueError(f"{where}: field {missing[0]!r} is missing")
    for name, found in content.items():
        good, wanted = _FORMS[name]
        optional = name not in REQUIRED or name == "neck"
        if not (good(found) or (optional and found is None)):
            raise ValueError(f"{where}: field {name!r} is {found!r}, wanted {wanted}{' or null' if optional else ''}")
    values: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in content.items()}
    if values.get("notes", ()) is None:
        values["notes"] = ()
    try:
        return Plan(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def refuse_beside_plan(plan: Path | str, given: Mapping[str, bool]) -> None:
    """Refuse options that a plan decides; `given` says of each whether it was given.

    Raises:
        ValueError: one was; it is named.
    """
    for option, is_given in given.items():
        if is_given:
            raise ValueError(f"{option} is given beside --plan {plan}, which decides it; leave one of them out")


def _check_stages(plan: Plan) -> None:
    """Check that the encoder's stages agree with each other, the patch and the levels, if it says what they are."""
    kwargs = plan.encoder["kwargs"]
    channels = kwargs.get("channels")
    if channels is None:
        return
    name = "field 'encoder.kwargs.{}'".format
    if not (isinstance(channels, Sequence) and len(channels) and all(_is_number(c, int, 1) for c in channels)):
        raise ValueError(f"{name('channels')} is {channels!r}, wanted a list of whole numbers >= 1, one per stage")
    stages = len(channels)
    for key in ("blocks", "convs", "kernels", "downsampling"):
        values = kwargs.get(key)
        if values is None:
            continue
        if not isinstance(values, Sequence) or len(values) != stages:
            found = f"has {len(values)} entries" if isinstance(values, Sequence) else f"is {values!r}"
            raise ValueError(f"{name(key)} {found}, wanted one for each of the {stages} channels")
        for i, value in enumerate(values):
            triple = key in ("kernels", "downsampling")
            if not (_is_triple(value, int, 1) if triple else _is_number(value, int, 1)):
                wanted = "three whole numbers >= 1" if triple else "a whole number >= 1"
                raise ValueError(f"{name(f'{key}[{i}]')} is {value!r}, wanted {wanted}")
            if key == "kernels" and not all(k % 2 for k in value):
                raise ValueError(f"{name(f'{key}[{i}]')} is {value!r}, wanted odd sizes")
    if plan.levels[-1] >= stages:
        raise ValueError(f"field 'levels' is {list(plan.levels)}, the encoder has the stages 0 to {stages - 1}")
    steps = kwargs.get("downsampling") or [(1, 1, 1)] + [(2, 2, 2)] * (stages - 1)
    total = [math.prod(axis) for axis in zip(*steps, strict=True)]
    if any(size % stride for size, stride in zip(plan.patch_zyx, total, strict=True)) or list(plan.patch_zyx) == total:
        raise ValueError(
            f"field 'patch_zyx' is {list(plan.patch_zyx)}, wanted multiples of {total}, the product of the encoder's "
            "downsampling, and more than one cell"
        )


def _check_anchors(anchors: Mapping[str, Any]) -> None:
    if unknown := sorted(set(anchors) - {"sizes_zyx_voxels", "mean_best_iou"}):
        raise ValueError(f"field 'anchors' has the unknown key {unknown[0]!r}, wanted sizes_zyx_voxels, mean_best_iou")
    overlap = anchors.get("mean_best_iou")
    if overlap is not None and not (_is_number(overlap) and overlap <= 1):
        raise ValueError(f"field 'anchors.mean_best_iou' is {overlap!r}, wanted 0 to 1 or null")
    if not anchors.get("sizes_zyx_voxels"):
        raise ValueError("field 'anchors' has no 'sizes_zyx_voxels', wanted at least one (z, y, x)")
    for i, size in enumerate(anchors["sizes_zyx_voxels"]):
        if not _is_triple(size):
            raise ValueError(f"field 'anchors.sizes_zyx_voxels[{i}]' is {size!r}, wanted three numbers > 0 (z, y, x)")


def _check_normalisation(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole record, as `check_normalisation` does: null where a key is absent, numbers as floats."""
    keys = {"scheme", "clip", "mean", "std"}
    if "scheme" not in record or not set(record) <= keys:
        raise ValueError(f"field 'normalisation' has the keys {sorted(record)}, wanted {sorted(keys)}")
    if record["scheme"] not in get_args(Scheme):
        wanted = ", ".join(get_args(Scheme))
        raise ValueError(f"field 'normalisation.scheme' is {record['scheme']!r}, wanted one of {wanted}")
    for key, count in (("clip", 2), ("mean", None), ("std", None)):
        values = record.get(key)
        good = isinstance(values, Sequence) and all(_is_number(v, low=-math.inf) for v in values)
        if values is not None and not (good and (len(values) == count if count else len(values))):
            raise ValueError(
                f"field 'normalisation.{key}' is {values!r}, wanted {count or 'a list of'} numbers or null"
            )
    clip, mean, std = (None if record.get(k) is None else tuple(record[k]) for k in ("clip", "mean", "std"))
    try:
        return dict(check_normalisation(record["scheme"], clip=clip, mean=mean, std=std))
    except ValueError as error:
        raise ValueError(f"field 'normalisation': {error}") from error


def _is_description(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"class", "kwargs"}:
        return False
    return isinstance(value["class"], str) and isinstance(value["kwargs"], dict)


def _is_number(value: Any, kind: Any = (int, float), low: float | int = 0) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and low <= value <= LARGEST


def _is_triple(value: Any, kind: Any = (int, float), low: float | int = 1e-3) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(_is_number(item, kind, low) for item in value)


def _is_levels(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) > 0 and all(_is_number(item, int) for item in value)
    return numbers and value == sorted(set(value))


def _is_anchors(value: Any) -> bool:
    sizes = value.get("sizes_zyx_voxels") if isinstance(value, dict) else None
    return isinstance(sizes, list) and len(sizes) > 0


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_DESCRIPTION = (_is_description, 'an object with "class" and "kwargs", and no other key')
_TEXT = (lambda value: isinstance(value, str), "text")
_TEXTS = (_is_texts, "a list of texts")
_WHOLE = (lambda value: _is_number(value, int, 1), "a whole number >= 1")
_FORMS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "dataset": _TEXT,
    "dataset_fingerprint_sha256": _TEXT,
    "classes": _TEXTS,
    "modalities": _TEXTS,
    "spacing_zyx_mm": (
        lambda value: _is_triple(value) and max(value) < MAX_SPACING_MM,
        f"three numbers > 0 and < {MAX_SPACING_MM:g}",
    ),
    "patch_zyx": (lambda value: _is_triple(value, int, 1), "three whole numbers >= 1"),
    "batch_size": _WHOLE,
    "normalisation": (lambda value: isinstance(value, dict), "an object"),
    "encoder": _DESCRIPTION,
    "neck": _DESCRIPTION,
    "levels": (_is_levels, "increasing whole numbers, finest first"),
    "anchors": (_is_anchors, 'an object with "sizes_zyx_voxels", a list of (z, y, x) sizes > 0'),
    "objects_per_patch_p95": (_is_number, "a number >= 0"),
    "queries": _WHOLE,
    "memory_budget_bytes": (lambda value: is_whole(value, 1, 2**63 - 1), "a whole number >= 1"),
    "notes": _TEXTS,
}
