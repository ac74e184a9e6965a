"""Our own: two folders of `<case_id>.json`, girih-detections/1; see `girih_metrics.files`."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from girih_metrics.files import SCHEMA, read_cases, read_classes
from girih_metrics.formats.loaded import Loaded, Unit
from girih_metrics.interfaces import Case


def read(predictions: Path, truth: Path, *, unit: Unit = "voxel") -> Loaded:
    """Return the cases of both folders in the unit asked for.

    Raises:
        ValueError: see `read_cases`.
    """
    return Loaded(read_cases(predictions, truth, unit=unit), read_classes(truth), unit)


def write(loaded: Loaded, predictions: Path, truth: Path) -> None:
    """Write both folders; what the cases do not tell (shape, affine, boxes in the other unit) is null or left out."""
    for folder in (predictions, truth):
        folder.mkdir(parents=True, exist_ok=True)
    for case in loaded.cases:
        common = {
            "schema": SCHEMA,
            "case_id": case["case_id"],
            "classes": list(loaded.classes),
            "shape_zyx": None,
            "affine": None,
            "space": "source",
        }
        real = common | {"patient_id": case.get("group", case["case_id"]), "labels": case["gt_labels"].tolist()}
        real |= _boxes(case["gt_boxes"], loaded.unit) | _extras(case, loaded.unit)
        found = common | {"scores": case["pred_scores"].tolist(), "labels": case["pred_labels"].tolist()}
        found |= _boxes(case["pred_boxes"], loaded.unit)
        for folder, document in ((truth, real), (predictions, found)):
            (folder / f"{case['case_id']}.json").write_text(json.dumps(document), encoding="utf-8")


def _boxes(boxes: np.ndarray, unit: Unit) -> dict[str, Any]:
    return {"boxes": boxes.tolist()} if unit == "voxel" else {"boxes_ras_mm": boxes[:, [2, 1, 0, 5, 4, 3]].tolist()}


def _extras(case: Case, unit: Unit) -> dict[str, Any]:
    extras: dict[str, Any] = {}
    if "gt_ignore" in case:
        extras["ignore"] = case["gt_ignore"].tolist()
    if unit == "mm" and "gt_centers" in case:
        extras["centers_ras_mm"] = case["gt_centers"][:, ::-1].tolist()
    if unit == "mm" and "gt_diameters" in case:
        extras["diameters_mm"] = case["gt_diameters"].tolist()
    return extras
