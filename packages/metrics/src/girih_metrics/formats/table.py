"""Two CSV files of boxes, for any tool.

Predictions: case_id, class, score, z0, y0, x0, z1, y1, x1. Truth: case_id, class, z0, y0, x0, z1, y1, x1 and, if
wanted, patient_id and ignore (0 or 1). Every case stands in the truth: one without objects as a row whose class and
box are empty. Boxes are edges in voxels.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from girih_metrics.formats.loaded import Loaded, known_cases
from girih_metrics.interfaces import Case

LINE = "#line"
"""Key under which a row of `read_rows` keeps its line in the file."""
BOX = ("z0", "y0", "x0", "z1", "y1", "x1")


def read(predictions: Path, truth: Path, classes: Sequence[str] | None = None) -> Loaded:
    """Return the cases of the truth, in voxels.

    The classes are `classes`, else the names in truth or predictions, sorted.

    Raises:
        ValueError: a missing file or column, a number that is none, an unknown case or class.
    """
    real = read_rows(truth, ("case_id", "class", *BOX))
    found = read_rows(predictions, ("case_id", "class", "score", *BOX))
    named = {row["class"] for row in [*real, *found] if row["class"]}
    names = tuple(sorted(named)) if classes is None else tuple(classes)
    truths, preds = by_key(real, "case_id"), by_key(found, "case_id")
    known_cases(set(preds), set(truths), str(predictions))
    for path, rows in ((predictions, found), (truth, [row for row in real if row["class"]])):
        for row in rows:
            if row["class"] not in names:
                raise ValueError(f"{path}: {_place(row)}: class is {row['class']!r}; wanted one of {names}")
    cases: list[Case] = []
    for case_id, here in truths.items():
        objects = [row for row in here if row["class"]]
        ours = preds.get(case_id, [])
        cases.append(
            {
                "case_id": case_id,
                "group": here[0].get("patient_id") or case_id,
                "gt_boxes": decimals(objects, BOX, truth),
                "gt_labels": np.array([names.index(row["class"]) for row in objects], dtype=np.int64),
                "gt_ignore": np.array([_flag(row, truth) for row in objects], dtype=bool),
                "pred_boxes": decimals(ours, BOX, predictions),
                "pred_scores": decimals(ours, ("score",), predictions)[:, 0],
                "pred_labels": np.array([names.index(row["class"]) for row in ours], dtype=np.int64),
            }
        )
    return Loaded(cases, names, "voxel")


def write(loaded: Loaded, predictions: Path, truth: Path) -> None:
    """Write both files."""
    real, found = [], []
    for case in loaded.cases:
        case_id, patient = case["case_id"], case.get("group", case["case_id"])
        ignore = case.get("gt_ignore", np.zeros(len(case["gt_labels"]), dtype=bool))
        for box, label, ignored in zip(case["gt_boxes"].tolist(), case["gt_labels"], ignore, strict=True):
            real.append([case_id, loaded.classes[label], *box, patient, int(ignored)])
        if not len(case["gt_labels"]):
            real.append([case_id, "", *[""] * 6, patient, 0])
        for box, label, score in zip(
            case["pred_boxes"].tolist(), case["pred_labels"], case["pred_scores"].tolist(), strict=True
        ):
            found.append([case_id, loaded.classes[label], score, *box])
    for path, header, rows in (
        (truth, ["case_id", "class", *BOX, "patient_id", "ignore"], real),
        (predictions, ["case_id", "class", "score", *BOX], found),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a CSV file with a header.

    Raises:
        ValueError: not a file, a missing column, a row that is too short or too long; names the line.
    """
    if not path.is_file():
        raise ValueError(f"{path}: is not a file; wanted CSV with columns {', '.join(columns)}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [row | {LINE: str(reader.line_num)} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: is not CSV: {error}") from error
    header = list(reader.fieldnames or [])
    missing = [name for name in columns if name not in header]
    if missing:
        raise ValueError(f"{path}: column {missing[0]!r} is missing; found {header}")
    for row in rows:
        if None in row or None in row.values():
            raise ValueError(f"{path}: line {row[LINE]} does not have {len(header)} columns")
    return rows


def by_key(rows: list[dict[str, str]], key: str) -> dict[str, list[dict[str, str]]]:
    """Group rows by a column, groups in the order of their first row."""
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def decimals(rows: list[dict[str, str]], columns: Sequence[str], path: Path) -> Float64[np.ndarray, "rows columns"]:
    """Return columns of `read_rows` as numbers.

    Raises:
        ValueError: a cell that is no finite number; names line and column.
    """
    values = np.empty((len(rows), len(columns)))
    for k, row in enumerate(rows):
        for column, key in enumerate(columns):
            try:
                values[k, column] = float(row[key])
            except ValueError:
                values[k, column] = np.nan
            if not np.isfinite(values[k, column]):
                raise ValueError(f"{path}: {_place(row)}: {key} is {row[key]!r}; wanted a finite number")
    return values


def _place(row: dict[str, str]) -> str:
    case = row["case_id"] if "case_id" in row else row["seriesuid"]
    return f"line {row[LINE]}, case {case!r}"


def _flag(row: dict[str, str], path: Path) -> bool:
    text = row.get("ignore", "0") or "0"
    if text not in ("0", "1"):
        raise ValueError(f"{path}: {_place(row)}: ignore is {text!r}; wanted 0 or 1")
    return text == "1"
