"""Read what the report is made from, checked, and write pictures and pages whole or not at all."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from jaxtyping import Bool, Float64, Int64

SCORES_SCHEMA = "girih-scores/1"
BOXES_SCHEMA = "girih-detections/1"
MAX_ROWS = 5000
"""Rows of metrics.jsonl that a plot reads: more than it has pixels, few enough for a run of a million steps."""


@dataclass(frozen=True)
class Interval:
    """A number with the ends of its bootstrap interval; NaN stands for undefined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class FrocCurve:
    """Sensitivity at false positives per image, with the band of the bootstrap; NaN stands for undefined."""

    fppi: Float64[np.ndarray, " n"]
    sensitivity: Float64[np.ndarray, " n"]
    low: Float64[np.ndarray, " n"]
    high: Float64[np.ndarray, " n"]


@dataclass(frozen=True)
class CaseScore:
    """What became of one case: `tp` and `fp` per prediction, `hit` per true object, in the order of their file."""

    tp: Bool[np.ndarray, " n"]
    fp: Bool[np.ndarray, " n"]
    hit: Bool[np.ndarray, " m"]


@dataclass(frozen=True)
class Scores:
    """The content of a scores.json."""

    iou: float
    n_images: int
    n_patients: int
    n_objects: int
    draws: int
    confidence: float
    ap: Interval
    froc: Interval
    per_class: Mapping[str, tuple[float, int]]
    """Class -> (AP, number of objects)."""
    froc_curve: FrocCurve
    cases: Mapping[str, CaseScore]
    notes: tuple[str, ...]
    difference: Mapping[str, tuple[Interval, Interval]]
    """Other arm -> paired difference (AP, FROC), this arm minus the other; empty if none was computed."""


@dataclass(frozen=True)
class Boxes:
    """One detections or truth file. Boxes are (z0, y0, x0, z1, y1, x1) voxel edges of the source grid."""

    case_id: str
    classes: tuple[str, ...]
    shape_zyx: tuple[int, int, int]
    affine: Float64[np.ndarray, "4 4"]
    boxes: Float64[np.ndarray, "n 6"]
    labels: Int64[np.ndarray, " n"]
    scores: Float64[np.ndarray, " n"]
    """1 for a true object."""
    ignore: Bool[np.ndarray, " n"]
    """All false for a detections file."""


def read_scores(path: Path) -> Scores:
    """Read a scores.json.

    The optional field "difference" is {other arm: {"ap": interval, "froc": interval}}.

    Raises:
        ValueError: unreadable, another schema, or a field that is missing or of another kind; file and field are named.
    """
    record = _Record(path, _read_object(path), "")
    schema = record.get("schema")
    if schema != SCORES_SCHEMA:
        raise ValueError(f"{path}: schema is {schema!r}, wanted {SCORES_SCHEMA!r}")
    curve = record.record("froc_curve")
    columns = {name: curve.numbers(name) for name in ("fppi", "sensitivity", "low", "high")}
    if len({len(column) for column in columns.values()}) != 1:
        lengths = {name: len(column) for name, column in columns.items()}
        raise ValueError(f"{path}: froc_curve has columns of lengths {lengths}, wanted one length")
    return Scores(
        iou=record.number("iou"),
        **{name: record.count(name) for name in ("n_images", "n_patients", "n_objects", "draws")},
        confidence=record.number("confidence"),
        ap=record.interval("ap"),
        froc=record.interval("froc"),
        per_class={
            name: (entry.number("ap", undefined=True), entry.count("n_objects"))
            for name, entry in record.records("per_class").items()
        },
        froc_curve=FrocCurve(**columns),
        cases={
            case_id: CaseScore(tp=entry.flags("tp"), fp=entry.flags("fp"), hit=entry.flags("hit"))
            for case_id, entry in record.records("cases").items()
        },
        notes=tuple(record.texts("notes")),
        difference={
            name: (entry.interval("ap"), entry.interval("froc"))
            for name, entry in (record.records("difference") if record.has("difference") else {}).items()
        },
    )


def read_boxes(path: Path, kind: Literal["detections", "truth"]) -> Boxes:
    """Read one file of boxes: detections have scores, truth may have `ignore` flags.

    Raises:
        ValueError: unreadable, another schema, a case id that is not the file's name, boxes that are not finite or have
            a negative side, scores outside [0, 1], or columns of different lengths; file and field are named.
    """
    record = _Record(path, _read_object(path), "")
    schema = record.get("schema")
    if schema != BOXES_SCHEMA:
        raise ValueError(f"{path}: schema is {schema!r}, wanted {BOXES_SCHEMA!r}")
    case_id = record.text("case_id")
    if f"{case_id}.json" != path.name:
        raise ValueError(f"{path}: case_id is {case_id!r}, wanted the file's name without .json")
    boxes = record.array("boxes", (None, 6))
    if (boxes[:, 3:] < boxes[:, :3]).any():
        row = int(np.flatnonzero((boxes[:, 3:] < boxes[:, :3]).any(axis=1))[0])
        raise ValueError(f"{path}: boxes row {row} is {boxes[row].tolist()}, wanted z0 <= z1, y0 <= y1, x0 <= x1")
    n = len(boxes)
    scores = record.array("scores", (n,)) if kind == "detections" else np.ones(n)
    if (outside := (scores < 0) | (scores > 1)).any():
        row = int(outside.argmax())
        raise ValueError(f"{path}: scores row {row} is {scores[row]}, wanted 0 to 1")
    classes = tuple(record.texts("classes"))
    labels = record.array("labels", (n,)).astype(np.int64)
    if n and not (labels.min() >= 0 and labels.max() < len(classes)):
        raise ValueError(f"{path}: labels are {labels.tolist()}, wanted 0 to {len(classes) - 1}, one of the classes")
    z, y, x = (int(size) for size in record.array("shape_zyx", (3,)))
    has_ignore = kind == "truth" and record.has("ignore")
    ignore = record.flags("ignore") if has_ignore else np.zeros(n, dtype=bool)
    if len(ignore) != n:
        raise ValueError(f"{path}: ignore has {len(ignore)} entries, wanted {n}, one per box")
    return Boxes(
        case_id=case_id,
        classes=classes,
        shape_zyx=(z, y, x),
        affine=record.array("affine", (4, 4)),
        boxes=boxes,
        labels=labels,
        scores=scores,
        ignore=ignore,
    )


def read_curves(path: Path, columns: tuple[str, ...] = ("step", "loss", "lr")) -> dict[str, Float64[np.ndarray, " n"]]:
    """Return columns of a metrics.jsonl, or of another file of one JSON object per line, in the order of the first.

    Of a long run, 5000 evenly spaced rows are read.

    Raises:
        ValueError: there is no such file, it has no row, or a row lacks a column; file and line are named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if not lines:
        raise ValueError(f"{path}: it is empty, wanted one JSON object per line")
    picked = np.unique(np.linspace(0, len(lines) - 1, min(len(lines), MAX_ROWS)).round().astype(int))
    rows = [_row(path, int(number), lines[number], columns) for number in picked]
    table = np.array(sorted(rows), dtype=np.float64)
    return {name: table[:, column] for column, name in enumerate(columns)}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def _row(path: Path, number: int, line: str, columns: tuple[str, ...]) -> tuple[float, ...]:
    try:
        row = json.loads(line)
        return tuple(float(row[name]) for name in columns)
    except (ValueError, KeyError, TypeError) as error:
        found = line if len(line) < 120 else f"{line[:120]}..."
        wanted = f"{', '.join(columns[:-1])} and {columns[-1]}"
        raise ValueError(f"{path}, line {number + 1}: found {found!r}, wanted numbers {wanted}") from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found {type(content).__name__}, wanted a JSON object")
    return content


class _Record:
    """A JSON object whose fields are read by kind; a wrong one raises ValueError with file, field, found and wanted."""

    def __init__(self, path: Path, content: Any, where: str) -> None:
        self._path, self._where = path, where
        if not isinstance(content, dict):
            raise ValueError(f"{path}: {where or 'content'} is {content!r}, wanted an object")
        self._content = content

    def has(self, name: str) -> bool:
        return name in self._content

    def get(self, name: str) -> Any:
        if name not in self._content:
            raise ValueError(f"{self._path}: {self._where}{name} is missing, found {sorted(self._content)}")
        return self._content[name]

    def text(self, name: str) -> str:
        value = self.get(name)
        if not isinstance(value, str):
            self._refuse(name, value, "text")
        return value

    def texts(self, name: str) -> list[str]:
        value = self.get(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self._refuse(name, value, "a list of texts")
        return value

    def number(self, name: str, *, undefined: bool = False) -> float:
        value = self.get(name)
        if value is None and undefined:
            return float("nan")
        if not _is_number(value):
            self._refuse(name, value, "a finite number" + " or null" * undefined)
        return float(value)

    def count(self, name: str) -> int:
        value = self.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            self._refuse(name, value, "a whole number of at least 0")
        return value

    def numbers(self, name: str) -> Float64[np.ndarray, " n"]:
        """A list of numbers; null becomes NaN."""
        value = self.get(name)
        if not isinstance(value, list) or not all(_is_number(item) or item is None for item in value):
            self._refuse(name, value, "a list of finite numbers or nulls")
        return np.array([np.nan if item is None else item for item in value], dtype=np.float64)

    def flags(self, name: str) -> Bool[np.ndarray, " n"]:
        value = self.get(name)
        if not isinstance(value, list) or not all(isinstance(item, bool) for item in value):
            self._refuse(name, value, "a list of true and false")
        return np.array(value, dtype=bool)

    def array(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """A nested list of finite numbers; None in `shape` is any length."""
        wanted = f"finite numbers of shape {tuple('any' if size is None else size for size in shape)}"
        value = self.get(name)
        try:
            found = np.array(value, dtype=np.float64)
        except (TypeError, ValueError):
            self._refuse(name, value, wanted)
        if found.size == 0 and shape[0] in (None, 0):
            found = found.reshape(0, *shape[1:])
        fits = len(found.shape) == len(shape) and all(
            size in (None, length) for size, length in zip(shape, found.shape, strict=True)
        )
        if not fits or not np.isfinite(found).all():
            self._refuse(name, value, wanted)
        return found

    def interval(self, name: str) -> Interval:
        entry = self.record(name)
        return Interval(*(entry.number(end, undefined=True) for end in ("value", "low", "high")))

    def record(self, name: str) -> "_Record":
        return _Record(self._path, self.get(name), f"{self._where}{name}.")

    def records(self, name: str) -> dict[str, "_Record"]:
        outer = self.record(name)
        return {key: outer.record(key) for key in outer._content}

    def _refuse(self, name: str, value: Any, wanted: str) -> NoReturn:
        found = repr(value)
        found = found if len(found) < 80 else f"{found[:80]}..."
        raise ValueError(f"{self._path}: {self._where}{name} is {found}, wanted {wanted}")
