"""MONAI's detection tutorials: one JSON, {"validation": [{image, box, label, score}]}.

A box is (centre x, y, z, width, height, depth) in LPS world millimetres, MONAI's mode "cccwhd"; the case is the image
file's name without .nii.gz. The truth file is the same without score.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from girih_metrics.convert import from_monai, lps_to_ras, to_monai
from girih_metrics.files import read_json
from girih_metrics.formats.loaded import (
    Loaded,
    case_id_of,
    entries,
    field,
    known_cases,
    labels_of,
    numbered_classes,
    numbers,
)
from girih_metrics.interfaces import Case

SECTION = "validation"


def read(predictions: Path, truth: Path, classes: Sequence[str] | None = None) -> Loaded:
    """Return the cases of the section "validation", in millimetres.

    Labels are named by `classes`, else class0, class1 ... up to the highest in truth or predictions.

    Raises:
        ValueError: a missing key, an image that occurs twice, a prediction for an unknown image, a label
            beyond `classes`.
    """
    truths, found = _entries(truth), _entries(predictions)
    known_cases(set(found), set(truths), str(predictions))
    cases: list[Case] = []
    for case_id, entry in truths.items():
        if case_id not in found:
            raise ValueError(f"{predictions}: no entry for image {case_id!r}; wanted one per image of {truth}")
        gt_boxes, gt_labels = _boxes(entry, f"{truth}: {case_id}")
        pred_boxes, pred_labels = _boxes(found[case_id], f"{predictions}: {case_id}")
        where = f"{predictions}: {case_id}"
        cases.append(
            {
                "case_id": case_id,
                "gt_boxes": gt_boxes,
                "gt_labels": gt_labels,
                "pred_boxes": pred_boxes,
                "pred_scores": numbers(field(found[case_id], "score", where), None, where),
                "pred_labels": pred_labels,
            }
        )
    return Loaded(cases, numbered_classes(cases, classes), "mm")


def write(loaded: Loaded, predictions: Path, truth: Path) -> None:
    """Write both files."""
    for path, kind in ((truth, "gt"), (predictions, "pred")):
        listed = []
        for case in loaded.cases:
            boxes, labels = (
                (case["gt_boxes"], case["gt_labels"]) if kind == "gt" else (case["pred_boxes"], case["pred_labels"])
            )
            entry: dict[str, Any] = {
                "image": f"{case['case_id']}.nii.gz",
                "box": to_monai(lps_to_ras(boxes), mode="cccwhd").tolist(),
                "label": labels.tolist(),
            }
            listed.append(entry if kind == "gt" else entry | {"score": case["pred_scores"].tolist()})
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({SECTION: listed}), encoding="utf-8")


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for row, entry in enumerate(entries(field(read_json(path), SECTION, str(path)), f"{path}: {SECTION}")):
        case_id = case_id_of(str(field(entry, "image", f"{path}: {SECTION} row {row}")))
        if case_id in found:
            raise ValueError(f"{path}: image {case_id!r} occurs more than once")
        found[case_id] = entry
    return found


def _boxes(entry: dict[str, Any], where: str) -> tuple[np.ndarray, np.ndarray]:
    boxes = numbers(field(entry, "box", where), 6, where)
    return lps_to_ras(from_monai(boxes, mode="cccwhd")), labels_of(field(entry, "label", where), where)
