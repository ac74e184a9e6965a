"""LUNA16: a submission (seriesuid, coordX, coordY, coordZ, probability) and a folder with the challenge's truth.

The folder holds annotations.csv (seriesuid, coordX, coordY, coordZ, diameter_mm) and may hold annotations_excluded.csv,
the same for findings that count as nothing, and seriesuids.csv, one scan a line. Points are LPS world millimetres.
"""

import csv
from pathlib import Path

import numpy as np

from girih_metrics.convert import from_world_lps, to_world_lps
from girih_metrics.formats.loaded import Loaded, known_cases
from girih_metrics.formats.table import by_key, decimals, read_rows
from girih_metrics.interfaces import Case

POINT = ("coordX", "coordY", "coordZ")
FINDING = (*POINT, "diameter_mm")
UNKNOWN_DIAMETER_MM = 10.0
"""What the challenge's script takes where a diameter is negative."""


def read(predictions: Path, truth: Path) -> Loaded:
    """Return one case per scan, in millimetres, with one class; marks are boxes without extent.

    Without seriesuids.csv the scans are those with a finding: scans without any are then missing from the rate of
    false positives.

    Raises:
        ValueError: a missing file or column, a number that is none, or a mark in an unknown scan.
    """
    columns, listed = ("seriesuid", *FINDING), truth / "seriesuids.csv"
    annotations, excluded = truth / "annotations.csv", truth / "annotations_excluded.csv"
    included = by_key(read_rows(annotations, columns), "seriesuid")
    irrelevant = by_key(read_rows(excluded, columns), "seriesuid") if excluded.exists() else {}
    with_finding = [*included, *irrelevant]
    scans = list(dict.fromkeys(_lines(listed) if listed.exists() else with_finding))
    known_cases(set(with_finding), set(scans), str(truth))
    marks = by_key(read_rows(predictions, ("seriesuid", *POINT, "probability")), "seriesuid")
    known_cases(set(marks), set(scans), str(predictions))
    cases: list[Case] = []
    for scan in scans:
        counted, ignored, found = (rows.get(scan, []) for rows in (included, irrelevant, marks))
        findings = np.concatenate([decimals(counted, FINDING, annotations), decimals(ignored, FINDING, excluded)])
        points, diameters = findings[:, :3], findings[:, 3]
        diameters = np.where(diameters < 0, UNKNOWN_DIAMETER_MM, diameters)
        boxes, centers = from_world_lps(points, diameters)
        found_at = decimals(found, (*POINT, "probability"), predictions)
        cases.append(
            {
                "case_id": scan,
                "gt_boxes": boxes,
                "gt_labels": np.zeros(len(boxes), dtype=np.int64),
                "gt_centers": centers,
                "gt_diameters": diameters,
                "gt_ignore": np.arange(len(boxes)) >= len(counted),
                "pred_boxes": from_world_lps(found_at[:, :3], np.zeros(len(found)))[0],
                "pred_scores": found_at[:, 3],
                "pred_labels": np.zeros(len(found), dtype=np.int64),
            }
        )
    return Loaded(cases, ("nodule",), "mm")


def write(loaded: Loaded, predictions: Path, truth: Path) -> None:
    """Write the submission and the truth folder; classes are dropped.

    A finding is its `gt_centers` and `gt_diameters`, a mark its `pred_points`; else the box's centre and longest side.
    """
    truth.mkdir(parents=True, exist_ok=True)
    predictions.parent.mkdir(parents=True, exist_ok=True)
    included: list[list[object]] = []
    excluded: list[list[object]] = []
    marks: list[list[object]] = []
    for case in loaded.cases:
        points, diameters = to_world_lps(case["gt_boxes"])
        points = _lps(case["gt_centers"]) if "gt_centers" in case else points
        diameters = case.get("gt_diameters", diameters)
        found = _lps(case["pred_points"]) if "pred_points" in case else to_world_lps(case["pred_boxes"])[0]
        ignore = case.get("gt_ignore", np.zeros(len(points), dtype=bool))
        for point, diameter, ignored in zip(points.tolist(), diameters.tolist(), ignore, strict=True):
            (excluded if ignored else included).append([case["case_id"], *point, diameter])
        for point, score in zip(found.tolist(), case["pred_scores"], strict=True):
            marks.append([case["case_id"], *point, float(score)])
    _write(truth / "annotations.csv", ["seriesuid", *FINDING], included)
    _write(truth / "annotations_excluded.csv", ["seriesuid", *FINDING], excluded)
    _write(predictions, ["seriesuid", *POINT, "probability"], marks)
    (truth / "seriesuids.csv").write_text("".join(f"{case['case_id']}\n" for case in loaded.cases), encoding="utf-8")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not text: {error}") from error


def _lps(points_zyx: np.ndarray) -> np.ndarray:
    mirrored: np.ndarray = points_zyx[:, ::-1] * np.array([-1.0, -1.0, 1.0])
    return mirrored


def _write(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
