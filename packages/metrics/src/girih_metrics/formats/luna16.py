"""LUNA16: a submission (seriesuid, coordX, coordY, coordZ, probability) and a folder with the challenge's truth.

The folder holds annotations.csv (seriesuid, coordX, coordY, coordZ, diameter_mm) and may hold annotations_excluded.csv,
the same for findings that count as nothing, and seriesuids.csv, one scan a line. Points are LPS world millimetres.
"""

import csv
from pathlib import Path

import numpy as np

from girih_metrics.convert import from_world_lps, to_world_lps
from girih_metrics.formats.loaded import Loaded, known_cases, numbers
from girih_metrics.formats.table import by_key, read_rows
from girih_metrics.interfaces import Case

POINT = ("coordX", "coordY", "coordZ")
UNKNOWN_DIAMETER_MM = 10.0
"""What the challenge's script takes where a diameter is negative."""


def read(predictions: Path, truth: Path) -> Loaded:
    """Return one case per scan, in millimetres, with one class; marks are boxes without extent.

    Without seriesuids.csv the scans are those with a finding: scans without any are then missing from the rate of
    false positives.

    Raises:
        ValueError: a missing file or column, a number that is none, or a mark in an unknown scan.
    """
    columns, listed = ("seriesuid", *POINT, "diameter_mm"), truth / "seriesuids.csv"
    included = by_key(read_rows(truth / "annotations.csv", columns), "seriesuid")
    excluded = truth / "annotations_excluded.csv"
    irrelevant = by_key(read_rows(excluded, columns), "seriesuid") if excluded.exists() else {}
    with_finding = [*included, *irrelevant]
    scans = list(dict.fromkeys(listed.read_text(encoding="utf-8").split() if listed.exists() else with_finding))
    known_cases(set(with_finding), set(scans), str(truth))
    marks = by_key(read_rows(predictions, ("seriesuid", *POINT, "probability")), "seriesuid")
    known_cases(set(marks), set(scans), str(predictions))
    cases: list[Case] = []
    for scan in scans:
        real = [(row, False) for row in included.get(scan, [])] + [(row, True) for row in irrelevant.get(scan, [])]
        found = marks.get(scan, [])
        diameters = numbers([row["diameter_mm"] for row, _ in real], None, f"{truth}: {scan}")
        diameters = np.where(diameters < 0, UNKNOWN_DIAMETER_MM, diameters)
        boxes, centers = from_world_lps(_points([row for row, _ in real], f"{truth}: {scan}"), diameters)
        points = _points(found, f"{predictions}: {scan}")
        cases.append(
            {
                "case_id": scan,
                "gt_boxes": boxes,
                "gt_labels": np.zeros(len(real), dtype=np.int64),
                "gt_centers": centers,
                "gt_diameters": diameters,
                "gt_ignore": np.array([ignore for _, ignore in real], dtype=bool),
                "pred_boxes": from_world_lps(points, np.zeros(len(points)))[0],
                "pred_scores": numbers([row["probability"] for row in found], None, f"{predictions}: {scan}"),
                "pred_labels": np.zeros(len(found), dtype=np.int64),
            }
        )
    return Loaded(cases, ("nodule",), "mm")


def write(loaded: Loaded, predictions: Path, truth: Path) -> None:
    """Write the submission and the truth folder; a box becomes its centre and longest side, classes are dropped."""
    truth.mkdir(parents=True, exist_ok=True)
    predictions.parent.mkdir(parents=True, exist_ok=True)
    included: list[list[object]] = []
    excluded: list[list[object]] = []
    marks: list[list[object]] = []
    for case in loaded.cases:
        points, diameters = to_world_lps(case["gt_boxes"])
        ignore = case.get("gt_ignore", np.zeros(len(points), dtype=bool))
        for point, diameter, ignored in zip(points.tolist(), diameters.tolist(), ignore, strict=True):
            (excluded if ignored else included).append([case["case_id"], *point, diameter])
        for point, score in zip(to_world_lps(case["pred_boxes"])[0].tolist(), case["pred_scores"], strict=True):
            marks.append([case["case_id"], *point, float(score)])
    _write(truth / "annotations.csv", ["seriesuid", *POINT, "diameter_mm"], included)
    _write(truth / "annotations_excluded.csv", ["seriesuid", *POINT, "diameter_mm"], excluded)
    _write(predictions, ["seriesuid", *POINT, "probability"], marks)
    (truth / "seriesuids.csv").write_text("".join(f"{case['case_id']}\n" for case in loaded.cases), encoding="utf-8")


def _points(rows: list[dict[str, str]], where: str) -> np.ndarray:
    return numbers([[row[key] for key in POINT] for row in rows], 3, where)


def _write(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
