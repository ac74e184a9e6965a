"""Two CSV files of boxes, for any tool.

Predictions: case_id, class, score, z0, y0, x0, z1, y1, x1. Truth: case_id, class, z0, y0, x0, z1, y1, x1 and, if
wanted, patient_id and ignore (0 or 1). Every case stands in the truth: one without objects as a row whose class and
box are empty. Boxes are edges in voxels.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from girih_metrics.formats.loaded import Loaded, known_cases, numbers
from girih_metrics.interfaces import Case

BOX = ("z0", "y0", "x0", "z1", "y1", "x1")


def read(predictions: Path, truth: Path) -> Loaded:
    """Return the cases of the truth, in voxels; classes are the names in the truth, sorted.

    Raises:
        ValueError: a missing file or column, a number that is none, an unknown case or class.
    """
    real = read_rows(truth, ("case_id", "class", *BOX))
    found = read_rows(predictions, ("case_id", "class", "score", *BOX))
    classes = tuple(sorted({row["class"] for row in real if row["class"]}))
    truths, preds = by_key(real, "case_id"), by_key(found, "case_id")
    known_cases(set(preds), set(truths), str(predictions))
    unknown = sorted({row["class"] for row in found} - set(classes))
    if unknown:
        raise ValueError(f"{predictions}: class is {unknown[0]!r}; wanted one of {classes}")
    cases: list[Case] = []
    for case_id, here in truths.items():
        objects = [row for row in here if row["class"]]
        ours = preds.get(case_id, [])
        cases.append(
            {
                "case_id": case_id,
                "group": here[0].get("patient_id") or case_id,
                "gt_boxes": _boxes(objects, f"{truth}: {case_id}"),
                "gt_labels": np.array([classes.index(row["class"]) for row in objects], dtype=np.int64),
                "gt_ignore": np.array([_flag(row, f"{truth}: {case_id}") for row in objects], dtype=bool),
                "pred_boxes": _boxes(ours, f"{predictions}: {case_id}"),
                "pred_scores": numbers([row["score"] for row in ours], None, f"{predictions}: {case_id}"),
                "pred_labels": np.array([classes.index(row["class"]) for row in ours], dtype=np.int64),
            }
        )
    return Loaded(cases, classes, "voxel")


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
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(f"{path}: column {missing[0]!r} is missing; found {reader.fieldnames}")
        rows = []
        for line, row in enumerate(reader, start=2):
            if None in row or None in row.values():
                raise ValueError(f"{path}: line {line} does not have {len(reader.fieldnames or [])} columns")
            rows.append(row)
        return rows


def by_key(rows: list[dict[str, str]], key: str) -> dict[str, list[dict[str, str]]]:
    """Group rows by a column, groups in the order of their first row."""
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def _boxes(rows: list[dict[str, str]], where: str) -> np.ndarray:
    return numbers([[row[key] for key in BOX] for row in rows], 6, where)


def _flag(row: dict[str, str], where: str) -> bool:
    text = row.get("ignore", "0") or "0"
    if text not in ("0", "1"):
        raise ValueError(f"{where}: ignore is {text!r}; wanted 0 or 1")
    return text == "1"
