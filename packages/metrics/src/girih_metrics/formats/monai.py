"""MONAI's detection tutorials: one JSON, {"validation": [{image, box, label, score}]}.

A box is (centre x, y, z, width, height, depth) in LPS world millimetres, MONAI's mode "cccwhd"; the case is the image
file's name without .nii.gz. The truth file is the same without score.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from girih_metrics.convert import from_monai, lps_to_ras, to_monai
from girih_metrics.files import read_json
from girih_metrics.formats.loaded import Loaded, field, known_cases, labels_of, numbers
from girih_metrics.interfaces import Case

SECTION = "validation"


def read(predictions: Path, truth: Path) -> Loaded:
    """Return the cases of the section "validation", in millimetres; classes are named class0, class1 ...

    Raises:
        ValueError: a missing key, an image that occurs twice, or a prediction for an unknown image.
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
    every = np.concatenate([case[key] for case in cases for key in ("gt_labels", "pred_labels")] or [np.zeros(0)])
    return Loaded(cases, tuple(f"class{k}" for k in range(int(every.max(initial=0)) + 1)), "mm")


def write(loaded: Loaded, predictions: Path, truth: Path) -> None:
    """Write both files."""
    for path, kind in ((truth, "gt"), (predictions, "pred")):
        entries = []
        for case in loaded.cases:
            boxes, labels = (
                (case["gt_boxes"], case["gt_labels"]) if kind == "gt" else (case["pred_boxes"], case["pred_labels"])
            )
            entry: dict[str, Any] = {
                "image": f"{case['case_id']}.nii.gz",
                "box": to_monai(lps_to_ras(boxes), mode="cccwhd").tolist(),
                "label": labels.tolist(),
            }
            entries.append(entry if kind == "gt" else entry | {"score": case["pred_scores"].tolist()})
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({SECTION: entries}), encoding="utf-8")


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = {}
    for entry in field(read_json(path), SECTION, str(path)):
        name = str(field(entry, "image", str(path))).replace("\\", "/").rsplit("/", 1)[-1]
        case_id = name.removesuffix(".gz").removesuffix(".nii")
        if case_id in entries:
            raise ValueError(f"{path}: image {case_id!r} occurs more than once")
        entries[case_id] = entry
    return entries


def _boxes(entry: dict[str, Any], where: str) -> tuple[np.ndarray, np.ndarray]:
    boxes = numbers(field(entry, "box", where), 6, where)
    return lps_to_ras(from_monai(boxes, mode="cccwhd")), labels_of(field(entry, "label", where), where)
