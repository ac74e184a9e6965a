"""Checks at the border: what a case must hold before anything is counted."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from girih_metrics.boxes import centers
from girih_metrics.interfaces import Case


class Checked:
    """One case with every array present, float64 / int64, and known to be sound.

    Raises:
        ValueError: a missing key, a wrong shape, ragged rows, a NaN or infinite number, an inverted box, a negative
            size, a label outside the classes; the message names case, key and row.
    """

    def __init__(self, case: Case, n_classes: int) -> None:
        data: Mapping[str, Any] = case
        self.case_id = str(_required(data, "case_id", "?"))
        self.group = str(data.get("group", self.case_id))
        self.gt_boxes: Float64[np.ndarray, "m 6"] = _boxes(data, "gt_boxes", self.case_id)
        self.pred_boxes: Float64[np.ndarray, "n 6"] = _boxes(data, "pred_boxes", self.case_id)
        m, n = len(self.gt_boxes), len(self.pred_boxes)
        self.gt_labels: Int64[np.ndarray, " m"] = _labels(data, "gt_labels", self.case_id, m, n_classes)
        self.pred_labels: Int64[np.ndarray, " n"] = _labels(data, "pred_labels", self.case_id, n, n_classes)
        self.pred_scores: Float64[np.ndarray, " n"] = _numbers(data, "pred_scores", self.case_id, (n,))
        self.gt_centers: Float64[np.ndarray, "m 3"] = (
            _numbers(data, "gt_centers", self.case_id, (m, 3)) if "gt_centers" in data else centers(self.gt_boxes)
        )
        self.pred_points: Float64[np.ndarray, "n 3"] = (
            _numbers(data, "pred_points", self.case_id, (n, 3)) if "pred_points" in data else centers(self.pred_boxes)
        )
        self.gt_diameters: Float64[np.ndarray, " m"] = (
            _numbers(data, "gt_diameters", self.case_id, (m,))
            if "gt_diameters" in data
            else (self.gt_boxes[:, 3:] - self.gt_boxes[:, :3]).max(axis=1)
        )
        _refuse(self.gt_diameters < 0, "gt_diameters", self.case_id, self.gt_diameters, "a diameter of at least 0")
        self.gt_ignore: Bool[np.ndarray, " m"] = _flags(data, "gt_ignore", self.case_id, m)
        self.gt_masks = _masks(data, "gt_masks", self.case_id, m)
        self.pred_masks = _masks(data, "pred_masks", self.case_id, n)


def check_cases(cases: Sequence[Case], n_classes: int) -> list[Checked]:
    """Return the cases, checked.

    Raises:
        ValueError: as `Checked`, and when two cases share an id.
    """
    checked = [Checked(case, n_classes) for case in cases]
    seen: set[str] = set()
    for case in checked:
        if case.case_id in seen:
            raise ValueError(f"case {case.case_id!r} occurs more than once; wanted unique case ids")
        seen.add(case.case_id)
    return checked


def _required(data: Mapping[str, Any], key: str, case_id: str) -> Any:
    if key not in data:
        raise ValueError(f"case {case_id!r}: {key} is missing; found keys {sorted(data)}")
    return data[key]


def _array(data: Mapping[str, Any], key: str, case_id: str) -> np.ndarray:
    found = _required(data, key, case_id)
    try:
        return np.asarray(found)
    except ValueError as error:
        raise ValueError(f"case {case_id!r}: {key} is ragged; wanted rows of one length") from error


def _numbers(data: Mapping[str, Any], key: str, case_id: str, shape: tuple[int, ...]) -> np.ndarray:
    raw = _array(data, key, case_id)
    if raw.dtype.kind not in "fiu":
        raise ValueError(f"case {case_id!r}: {key} has dtype {raw.dtype}; wanted real numbers")
    values = raw.astype(np.float64)
    if values.size == 0 and 0 in shape:
        values = values.reshape(shape)
    if values.shape != shape:
        raise ValueError(f"case {case_id!r}: {key} has shape {values.shape}; wanted {shape}")
    bad = ~np.isfinite(values)
    _refuse(np.asarray(bad.any(axis=tuple(range(1, bad.ndim)))), key, case_id, values, "finite numbers")
    return values


def _boxes(data: Mapping[str, Any], key: str, case_id: str) -> np.ndarray:
    raw = _array(data, key, case_id)
    boxes = _numbers(data, key, case_id, (0 if raw.size == 0 else len(np.atleast_1d(raw)), 6))
    inverted = np.asarray((boxes[:, 3:] < boxes[:, :3]).any(axis=1))
    _refuse(inverted, key, case_id, boxes, "z0 <= z1, y0 <= y1, x0 <= x1")
    return boxes


def _labels(data: Mapping[str, Any], key: str, case_id: str, n: int, n_classes: int) -> np.ndarray:
    raw = _array(data, key, case_id)
    if raw.size and raw.dtype.kind not in "iu":
        raise ValueError(f"case {case_id!r}: {key} has dtype {raw.dtype}; wanted integers")
    if raw.size != n or raw.ndim > 1:
        raise ValueError(f"case {case_id!r}: {key} has shape {raw.shape}; wanted ({n},)")
    labels = raw.reshape(n).astype(np.int64)
    _refuse((labels < 0) | (labels >= n_classes), key, case_id, labels, f"0 <= label < {n_classes}")
    return labels


def _flags(data: Mapping[str, Any], key: str, case_id: str, n: int) -> np.ndarray:
    if key not in data:
        return np.zeros(n, dtype=bool)
    raw = _array(data, key, case_id)
    if (raw.size and raw.dtype != np.bool_) or raw.size != n or raw.ndim > 1:
        raise ValueError(f"case {case_id!r}: {key} is {raw.dtype} {raw.shape}; wanted bool ({n},)")
    return raw.reshape(n).astype(bool)


def _masks(data: Mapping[str, Any], key: str, case_id: str, n: int) -> list[tuple[np.ndarray, np.ndarray]] | None:
    if key not in data:
        return None
    if not isinstance(data[key], list | tuple):
        raise ValueError(f"case {case_id!r}: {key} is {type(data[key]).__name__}; wanted a list, one mask per box")
    if len(data[key]) != n:
        raise ValueError(f"case {case_id!r}: {key} has {len(data[key])} masks; wanted {n}, one per box")
    masks = []
    for row, entry in enumerate(data[key]):
        if not isinstance(entry, tuple | list) or len(entry) != 2:
            raise ValueError(f"case {case_id!r}: {key} row {row} is {entry!r}; wanted (start_zyx, bool array)")
        start, voxels = entry
        corner, array = _array({key: start}, key, case_id), np.asarray(voxels)
        if corner.shape != (3,) or corner.dtype.kind not in "iu" or array.ndim != 3 or array.dtype != np.bool_:
            raise ValueError(
                f"case {case_id!r}: {key} row {row} is a start {start} and {array.dtype} {array.shape}; "
                "wanted three integers and a 3D bool array"
            )
        masks.append((corner.astype(np.int64), array))
    return masks


def _refuse(bad: np.ndarray, key: str, case_id: str, values: np.ndarray, wanted: str) -> None:
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(f"case {case_id!r}: {key} row {row} is {values[row].tolist()}; wanted {wanted}")
