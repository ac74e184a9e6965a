"""Detections on the grids of a prepared dataset, scored as `girih evaluate` scores those in files."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import girih_data3d
import girih_metrics
from girih_detectors import Detections
from girih_detectors.inference import restore


def read_truths(store: girih_data3d.Store, classes: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return the truth of every case in its source's voxels.

    Raises:
        ValueError: other classes than these, an unlabelled case, or no object to find in any of them.
    """
    if store.classes != classes:
        raise ValueError(f"{store.root}: classes are {store.classes}, those of the model are {classes}")
    truths = {}
    for case_id in store.case_ids:
        truth = store[case_id].truth
        if truth is None:
            raise ValueError(f"{store.root}: case {case_id!r} is unlabelled: it cannot be scored")
        truths[case_id] = truth
    if all(all(truth["ignore"]) for truth in truths.values()):
        raise ValueError(f"{store.root}: no case holds an object to find, so that there is nothing to score")
    return truths


def score_of(
    store: girih_data3d.Store, truths: Mapping[str, Mapping[str, Any]], iou: float | tuple[float, ...]
) -> Callable[[Mapping[str, Detections]], float]:
    """Return a function: detections of all cases on their prepared grids -> AP, its mean over overlaps if several."""
    prepared = {case_id: store[case_id].prepared for case_id in truths}

    def score(found: Mapping[str, Detections]) -> float:
        cases = [_case(case_id, truths[case_id], found[case_id], prepared[case_id]) for case_id in truths]
        matches = girih_metrics.match(cases, classes=store.classes, iou=iou, ignored="once")
        return float(girih_metrics.average_precision(matches)["mean_ap"])

    return score


def _case(
    case_id: str, truth: Mapping[str, Any], found: Detections, prepared: girih_data3d.Prepared
) -> girih_metrics.Case:
    boxes = restore(found, prepared, case_id=case_id, classes=truth["classes"])
    return {
        "case_id": case_id,
        "gt_boxes": _boxes(truth["boxes"]),
        "gt_labels": np.array(truth["labels"], np.int64),
        "gt_ignore": np.array(truth["ignore"], np.bool_),
        "pred_boxes": _boxes(boxes["boxes"]),
        "pred_scores": np.array(boxes["scores"], np.float64),
        "pred_labels": np.array(boxes["labels"], np.int64),
    }


def _boxes(rows: list[list[float]]) -> np.ndarray:
    return np.array(rows, np.float64).reshape(-1, 6)
