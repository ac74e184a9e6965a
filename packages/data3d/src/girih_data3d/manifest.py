"""dataset.json: which files belong to which case. A folder without one is a set of unlabelled scans."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from girih_data3d.errors import ManifestError
from girih_data3d.scan import holds_dicom, is_scan, scan_name

SCHEMA = 1
CASE_ID = re.compile(r"(?!\.)[^\x00-\x1f\x7f/\\:*?\"<>|]{1,200}(?<![. ])")
"""A case id names a folder: no separators, no control characters, no leading or trailing dot."""


@dataclass(frozen=True)
class CaseSource:
    """The files of one case and what is known about its objects."""

    case_id: str
    images: tuple[Path, ...]
    """One file (or DICOM folder) per channel, all on one grid."""
    instances: Path | None = None
    """Label file with one number per object, 0 = background."""
    instance_classes: Mapping[int, int] = field(default_factory=dict)
    """Object number -> index of its class; may be left out where there is one class only."""
    ignore: tuple[int, ...] = ()
    """Objects that are real, but neither trained on nor scored."""
    semantic: Path | None = None
    """Label file with one number per tissue."""
    patient_id: str | None = None
    """None: every case is its own patient."""
    modality: str | None = None


@dataclass(frozen=True)
class Dataset:
    """A named list of cases; `classes[i]` is the name of class i."""

    name: str
    classes: tuple[str, ...]
    sources: tuple[CaseSource, ...]


def read_manifest(path: Path | str) -> Dataset:
    """Read a dataset: its dataset.json, a folder that holds one, a folder of scans, or a single scan.

    dataset.json is {"schema": 1, "name", "classes": [...], "modality"?, "cases": [{"case_id", "images": [...],
    "patient_id"?, "instances"?, "instance_classes"?: {"1": 0}, "ignore"?: [...], "semantic"?}]}; paths are relative to
    its folder. In a folder without it every scan file and every folder of a DICOM series is one unlabelled case, named
    as the file without extension.

    Raises:
        ManifestError: missing or broken JSON, an unknown or missing key, a value of another type, a repeated case id, a
            path that leaves the folder, a missing file, or no cases.
    """
    path = Path(path)
    if not path.exists():
        raise ManifestError(f"{path}: no such file or folder")
    if path.is_file() and is_scan(path):
        return _scans(path.parent, [path])
    if path.is_dir():
        if not (path / "dataset.json").is_file():
            return _scans(path, _scans_in(path))
        path = path / "dataset.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: not a readable dataset.json: {error}") from error
    top = _Checked(content, f"{path}", {"schema", "name", "classes", "cases"}, {"modality"})
    if top["schema"] != SCHEMA:
        raise ManifestError(f"{path}: schema is {top['schema']!r}, wanted {SCHEMA}")
    classes = top.strings("classes")
    if len(set(classes)) != len(classes):
        raise ManifestError(f"{path}: classes has a repeated name: {list(classes)}")
    modality = top.string("modality")
    cases = top["cases"]
    if not isinstance(cases, list) or not cases:
        raise ManifestError(f"{path}: cases is {cases!r}, wanted a list of at least one case")
    sources = tuple(_case(case, f"{path}: cases[{i}]", path.parent, classes, modality) for i, case in enumerate(cases))
    _refuse_repeated(path, sources)
    return Dataset(top.string("name") or "", classes, sources)


def _scans_in(folder: Path) -> list[Path]:
    if holds_dicom(folder):
        return [folder]
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    scans = [p for p in entries if (p.is_file() and is_scan(p)) or (p.is_dir() and holds_dicom(p))]
    if not scans:
        raise ManifestError(f"{folder}: no dataset.json, no scan file and no DICOM series in this folder")
    return scans


def _scans(folder: Path, scans: list[Path]) -> Dataset:
    sources = tuple(CaseSource(case_id=_case_id(scan_name(p), str(p)), images=(p,)) for p in scans)
    _refuse_repeated(folder, sources)
    return Dataset(folder.resolve().name, (), sources)


def _case(content: Any, where: str, folder: Path, classes: tuple[str, ...], modality: str | None) -> CaseSource:
    optional = {"patient_id", "instances", "instance_classes", "ignore", "semantic"}
    case = _Checked(content, where, {"case_id", "images"}, optional)
    case_id = _case_id(case.string("case_id") or "", where)
    where = f"{where} ({case_id})"
    names = case.strings("images")
    if not names:
        raise ManifestError(f"{where}: images is empty, wanted one file per channel")
    images = tuple(_inside(folder, name, f"{where}: images") for name in names)
    instances, semantic = (
        None if case.get(key) is None else _inside(folder, case.string(key) or "", f"{where}: {key}")
        for key in ("instances", "semantic")
    )
    instance_classes = _instance_classes(case.get("instance_classes", {}), f"{where}: instance_classes", classes)
    ignore = case.get("ignore", [])
    if not isinstance(ignore, list) or not all(_is_number(i, 1) for i in ignore):
        raise ManifestError(f"{where}: ignore is {ignore!r}, wanted a list of object numbers")
    if instances is None and (instance_classes or ignore):
        raise ManifestError(f"{where}: instance_classes or ignore is given, but no instances file")
    return CaseSource(
        case_id=case_id,
        images=images,
        instances=instances,
        instance_classes=instance_classes,
        ignore=tuple(ignore),
        semantic=semantic,
        patient_id=case.string("patient_id"),
        modality=modality,
    )


def _instance_classes(content: Any, where: str, classes: tuple[str, ...]) -> dict[int, int]:
    if not isinstance(content, dict):
        raise ManifestError(f'{where} is {content!r}, wanted an object such as {{"1": 0}}')
    for number, index in content.items():
        if not number.isascii() or not number.isdigit() or int(number) < 1:
            raise ManifestError(f"{where}: object {number!r}, wanted a whole number above 0")
        if not _is_number(index, 0) or index >= len(classes):
            raise ManifestError(f"{where}: class {index!r} of object {number}, wanted 0 to {len(classes) - 1}")
    return {int(number): index for number, index in content.items()}


def _is_number(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _case_id(case_id: str, where: str) -> str:
    if not CASE_ID.fullmatch(case_id):
        raise ManifestError(f"{where}: case_id {case_id!r} cannot name a folder")
    return case_id


def _inside(folder: Path, name: str, where: str) -> Path:
    """Return the file, which has to exist inside the folder (links are followed)."""
    path = folder / name
    try:
        found = path.resolve(strict=True)
    except (OSError, ValueError) as error:
        raise ManifestError(f"{where}: {name!r}: no such file") from error
    if not found.is_relative_to(folder.resolve()):
        raise ManifestError(f"{where}: {name!r} is {found}, outside the dataset's folder {folder.resolve()}")
    return path


def _refuse_repeated(where: Path, sources: tuple[CaseSource, ...]) -> None:
    seen: set[str] = set()
    for source in sources:
        if source.case_id.casefold() in seen:  # two such folders are one on a file system that ignores case
            raise ManifestError(f"{where}: case_id {source.case_id!r} is given twice")
        seen.add(source.case_id.casefold())


class _Checked(dict[str, Any]):
    """A JSON object with exactly the expected keys."""

    def __init__(self, content: Any, where: str, required: set[str], optional: set[str]) -> None:
        if not isinstance(content, dict):
            raise ManifestError(f"{where}: found {type(content).__name__}, wanted an object")
        for key in content:
            if key not in required | optional:
                raise ManifestError(f"{where}: unknown key {key!r}, known are {sorted(required | optional)}")
        for key in sorted(required - set(content)):
            raise ManifestError(f"{where}: key {key!r} is missing")
        super().__init__(content)
        self.where = where

    def string(self, key: str) -> str | None:
        value = self.get(key)
        if value is None and key in self:
            return None
        if key in self and (not isinstance(value, str) or not value):
            raise ManifestError(f"{self.where}: {key} is {value!r}, wanted text")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        value = self[key]
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            raise ManifestError(f"{self.where}: {key} is {value!r}, wanted a list of texts")
        return tuple(value)
