"""The JSON header of a weights file, checked field by field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from girih_backbones.interfaces import WeightsHeader

SCHEMA = 1
LARGEST = 1e300  # of any number: JSON has whole numbers that no float holds
SCHEMES = ("zscore", "zscore_mask", "ct", "none")


def check_header(header: object) -> WeightsHeader:
    """Return `header` if every field is there and of its kind; fields of no known name are ignored.

    Raises:
        ValueError: names the first wrong field, with what was found and what was wanted.
    """
    if not isinstance(header, dict):
        raise ValueError(f"header: found {short(header)}, wanted an object")
    for name, (accepts, wanted) in _FIELDS.items():
        if name not in header:
            raise ValueError(f"header field {name!r}: not found, wanted {wanted}")
        if not accepts(header[name]):
            raise ValueError(f"header field {name!r}: found {short(header[name])}, wanted {wanted}")
    if not list_of(is_text)(header.get("notes", [])):
        raise ValueError(f"header field 'notes': found {short(header['notes'])}, wanted a list of text")
    return cast(WeightsHeader, header)


def short(value: object) -> str:
    """Return a value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def is_text(value: object) -> bool:
    """Return whether a value is text that says something."""
    return isinstance(value, str) and value != ""


def is_count(value: object, least: int = 1) -> bool:
    """Return whether a value is a whole number of at least `least`; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: object) -> bool:
    """Return whether a value is a finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def _is_object(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _is_description(value: Any) -> bool:
    return _is_object(value) and is_text(value.get("class")) and _is_object(value.get("kwargs"))


def _is_stems(value: Any) -> bool:
    return _is_object(value) and all(name and "." not in name and is_count(n) for name, n in value.items())


def _is_normalisation(value: Any) -> bool:
    if not (_is_object(value) and value.get("scheme") in SCHEMES and {"clip", "mean", "std"} <= value.keys()):
        return False
    numbers = list_of(is_number)
    clip, mean, std = value["clip"], value["mean"], value["std"]
    return all(part is None or numbers(part) for part in (clip, mean, std)) and (clip is None or len(clip) == 2)


def list_of(accepts: Callable[[Any], bool], n: int | None = None) -> Callable[[Any], bool]:
    """Return a test for lists, of `n` entries if given, of what `accepts` accepts."""
    return lambda value: isinstance(value, list) and n in (None, len(value)) and all(accepts(item) for item in value)


def _nullable(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or accepts(value)


_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "schema": (lambda value: is_count(value) and value == SCHEMA, str(SCHEMA)),
    "encoder": (_is_description, '{"class": text, "kwargs": object}'),
    "neck": (_nullable(_is_description), '{"class": text, "kwargs": object} or null'),
    "in_channels": (is_count, "a whole number of at least 1"),
    "stems": (_is_stems, "an object of dataset name (without a dot) to number of channels"),
    "patch_zyx": (_nullable(list_of(is_count, 3)), "three whole numbers of voxels or null"),
    "spacing_zyx_mm": (
        _nullable(list_of(lambda value: is_number(value) and value > 0, 3)),
        "three positive numbers of mm or null",
    ),
    "normalisation": (
        _nullable(_is_normalisation),
        f'{{"scheme": one of {SCHEMES}, "clip": [lo, hi] or null, "mean": [C] or null, "std": [C] or null}} or null',
    ),
    "modality": (_nullable(is_text), "text or null"),
    "objective": (_nullable(is_text), "text or null"),
    "objective_config": (_nullable(_is_object), "an object or null"),
    "steps": (_nullable(lambda value: is_count(value, least=0)), "a whole number or null"),
    "source": (_nullable(is_text), "text or null"),
    "versions": (
        lambda value: _is_object(value) and all(isinstance(version, str) for version in value.values()),
        "an object of package to version",
    ),
}
