"""Match predictions with objects once; everything after counts from the result."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from girih_metrics.assignment import Assigner, AssignmentName, assigner
from girih_metrics.boxes import volume
from girih_metrics.cases import Checked, check_cases
from girih_metrics.criteria import MISS, OVERLAPS, Closeness, CriterionName, closeness, cut
from girih_metrics.interfaces import Case, Numbers
from girih_metrics.matches import Matches

IOU = 0.1
"""The overlap of a hit in nnDetection's and the study's main score."""


def match(
    cases: Sequence[Case],
    *,
    classes: Sequence[str],
    criterion: CriterionName = "box_iou",
    iou: float | int | Numbers = IOU,
    distance: float | int | Numbers | None = None,
    assignment: AssignmentName = "greedy",
    duplicates: Literal["false_positive", "ignored"] = "false_positive",
    boundary: Literal["inclusive", "exclusive"] = "inclusive",
    ignored: Literal["absorb", "once"] = "absorb",
    max_detections: int | None = 100,
    order: Literal["content", "given"] = "content",
    unit: Literal["voxel", "mm"] = "voxel",
) -> Matches:
    """Pair the predictions of every case with its objects, class by class.

    The result does not depend on the order of cases, predictions or objects.

    Args:
        cases: see `Case`; any order, unique ids. Cases without objects or without predictions count as images.
        classes: names; label i is `classes[i]`.
        criterion: "box_iou" | "mask_iou" (overlap `iou`), "component_iou" (the same by connected pieces of
            intersection and union, as RibFrac), "center_distance" (prediction point to object centre),
            "point_in_mask" | "point_in_box" (prediction point inside the object, no threshold).
        iou: overlap(s) from which a pair is a hit, in (0, 1]; for the three overlaps only.
        distance: largest centre distance(s) of a hit in the boxes' unit; None: the object's own radius,
            gt_diameters / 2 (threshold 1, in radii).
        assignment: "greedy" by score, "hungarian", "max_overlap" (each prediction stands for its closest object),
            "each_object" (each object takes its best-scored hit).
        duplicates: what further hits on found objects count as.
        boundary: whether a pair exactly at the threshold is a hit.
        ignored: whether an ignored object absorbs all predictions that hit it, or only one. Predictions are offered
            to counted objects first; absorbed ones count neither as true nor as false positives.
        max_detections: predictions kept per case and class, best scores first; None: all.
        order: what decides between equals. "content": of equal scores the closer prediction comes first; equally
            close objects go by their boxes, centres, diameters and masks. "given": the order of the arrays, and the
            last of equally close objects, as nnDetection and COCO do.
        unit: of boxes, centres, diameters and points; written down in the result. Masks are always on voxels.

    Raises:
        ValueError: bad cases (see `check_cases`), thresholds or switches, or one that the criterion does not have.
    """
    names = tuple(classes)
    if isinstance(classes, str):
        raise ValueError(f"classes are the text {classes!r}; wanted a list of names")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"classes are {names}; wanted at least one, no name twice")
    thresholds = _thresholds(criterion, iou, distance)
    for name, value, wanted in (
        ("duplicates", duplicates, ("false_positive", "ignored")),
        ("boundary", boundary, ("inclusive", "exclusive")),
        ("ignored", ignored, ("absorb", "once")),
        ("order", order, ("content", "given")),
        ("unit", unit, ("voxel", "mm")),
    ):
        if value not in wanted:
            raise ValueError(f"{name} is {value!r}; wanted one of {wanted}")
    if unit == "mm" and criterion == "point_in_mask":
        raise ValueError("unit is 'mm', criterion is 'point_in_mask'; wanted points in voxels, as the masks are")
    if max_detections is not None and max_detections < 1:
        raise ValueError(f"max_detections is {max_detections}; wanted None or at least 1")
    rules = _Rules(
        measure=closeness(criterion, fixed_radius=distance is not None),
        cuts=cut(criterion, thresholds)[:, None, None],
        assign=assigner(assignment),
        inclusive=boundary == "inclusive",
        duplicates_count=duplicates == "false_positive",
        absorb=ignored == "absorb",
        max_detections=max_detections,
        by_content=order == "content",
    )
    checked = check_cases(cases, len(names))
    collected = _Collected(len(thresholds))
    for index, case in enumerate(checked):
        for label in np.union1d(case.gt_labels, case.pred_labels):
            collected.add(index, int(label), case, rules)
    settings = {
        "criterion": criterion,
        "distance": "" if criterion != "center_distance" else "radii" if distance is None else "absolute",
        "assignment": assignment,
        "duplicates": duplicates,
        "boundary": boundary,
        "ignored": ignored,
        "max_detections": str(max_detections),
        "order": order,
        "unit": unit,
    }
    return collected.matches(names, thresholds, checked, tuple(settings.items()))


@dataclass(frozen=True)
class _Rules:
    measure: Closeness
    cuts: Float64[np.ndarray, "t 1 1"]
    assign: Assigner
    inclusive: bool
    duplicates_count: bool
    absorb: bool
    max_detections: int | None
    by_content: bool

    def pair(
        self, value: Float64[np.ndarray, "n m"], counted: Bool[np.ndarray, " m"]
    ) -> tuple[Int64[np.ndarray, "t m"], Bool[np.ndarray, "t n"]]:
        """Return found_by and judged of one case and class, predictions best first."""
        hit = ((value >= self.cuts) if self.inclusive else (value > self.cuts)) & (value > MISS)
        n_thresholds, n, m = hit.shape
        found_by = np.full((n_thresholds, m), -1, dtype=np.int64)
        judged = np.ones((n_thresholds, n), dtype=bool)
        if not hit.any():
            return found_by, judged
        if counted.any():
            found_by[:, counted] = self.assign(value[:, counted], hit[:, :, counted])
        credited = np.zeros((n_thresholds, n), dtype=bool)
        t, j = np.nonzero(found_by >= 0)
        credited[t, found_by[t, j]] = True
        if not self.duplicates_count:
            judged &= credited | ~hit[:, :, counted].any(axis=2)
        if not counted.all():
            offered = hit[:, :, ~counted] & ~credited[:, :, None]
            if self.absorb:
                judged &= ~offered.any(axis=2)
            else:
                absorbed_by = self.assign(value[:, ~counted], offered)
                t, j = np.nonzero(absorbed_by >= 0)
                judged[t, absorbed_by[t, j]] = False
        return found_by, judged


class _Collected:
    """Grows the flat arrays of `Matches` case by case."""

    def __init__(self, n_thresholds: int) -> None:
        self.n_preds = 0
        self.preds: list[tuple[np.ndarray, ...]] = [_empty(5)]
        self.gts: list[tuple[np.ndarray, ...]] = [_empty(5)]
        self.judged = [np.zeros((n_thresholds, 0), dtype=bool)]
        self.found_by = [np.zeros((n_thresholds, 0), dtype=np.int64)]

    def add(self, index: int, label: int, case: Checked, rules: _Rules) -> None:
        preds, gts = np.flatnonzero(case.pred_labels == label), np.flatnonzero(case.gt_labels == label)
        if rules.max_detections is not None and len(preds) > rules.max_detections:
            # Among equal scores at the cut, the content decides: not the order in the file, not the ground truth.
            keys = _content(preds, case.pred_boxes, case.pred_points, case.pred_masks) if rules.by_content else [preds]
            order = np.lexsort((*keys, -case.pred_scores[preds]))
            preds = np.sort(preds[order[: rules.max_detections]])
        if len(gts) > 1:
            sizes = np.column_stack([case.gt_centers, case.gt_diameters])
            keys = _content(gts, case.gt_boxes, sizes, case.gt_masks) if rules.by_content else [-gts]
            gts = gts[np.lexsort((*keys, case.gt_ignore[gts]))]
        value = rules.measure(case, preds, gts)
        order = _order(case.pred_scores[preds], value if rules.by_content else value[:, :0])
        preds, value = preds[order], value[order]
        found_by, judged = rules.pair(value, ~case.gt_ignore[gts])
        self.judged.append(judged)
        self.found_by.append(np.where(found_by >= 0, found_by + self.n_preds, -1))
        self.n_preds += len(preds)
        pred_size, gt_size = np.cbrt(volume(case.pred_boxes[preds])), np.cbrt(volume(case.gt_boxes[gts]))
        self.preds.append((*_placed(index, label, preds), case.pred_scores[preds], pred_size))
        self.gts.append((*_placed(index, label, gts), gt_size, ~case.gt_ignore[gts]))

    def matches(
        self,
        classes: tuple[str, ...],
        thresholds: Sequence[float],
        cases: Sequence[Checked],
        settings: tuple[tuple[str, str], ...],
    ) -> Matches:
        pred_case, pred_row, pred_label, pred_score, pred_size = map(np.concatenate, zip(*self.preds, strict=True))
        gt_case, gt_row, gt_label, gt_size, gt_counted = map(np.concatenate, zip(*self.gts, strict=True))
        return Matches(
            classes=classes,
            thresholds=np.asarray(thresholds, dtype=np.float64),
            case_ids=tuple(case.case_id for case in cases),
            groups=tuple(case.group for case in cases),
            pred_case=pred_case.astype(np.int64),
            pred_row=pred_row.astype(np.int64),
            pred_label=pred_label.astype(np.int64),
            pred_score=pred_score.astype(np.float64),
            pred_size=pred_size.astype(np.float64),
            judged=np.concatenate(self.judged, axis=1),
            gt_case=gt_case.astype(np.int64),
            gt_row=gt_row.astype(np.int64),
            gt_label=gt_label.astype(np.int64),
            gt_size=gt_size.astype(np.float64),
            gt_counted=gt_counted.astype(bool),
            found_by=np.concatenate(self.found_by, axis=1),
            settings=settings,
        )


def _placed(index: int, label: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.full(len(rows), index), rows, np.full(len(rows), label)


def _empty(n: int) -> tuple[np.ndarray, ...]:
    return tuple(np.zeros(0, dtype=np.int64) for _ in range(n))


def _content(
    rows: np.ndarray, boxes: np.ndarray, more: np.ndarray, masks: list[tuple[np.ndarray, np.ndarray]] | None
) -> list[np.ndarray]:
    """Keys for lexsort, least important first: masks, points and diameters, boxes."""
    keys = [*more[rows].T[::-1], *boxes[rows].T[::-1]]
    if masks is not None:
        texts = [(*masks[row][0].tolist(), *masks[row][1].shape, masks[row][1].tobytes()) for row in rows]
        place = {text: k for k, text in enumerate(sorted(set(texts)))}
        keys.insert(0, np.array([place[text] for text in texts]))
    return keys


def _order(scores: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Best score first; equal scores by best closeness, then by the whole row of closeness."""
    order = np.argsort(-scores, kind="stable")
    if value.shape[1] == 0 or len(order) < 2 or (np.diff(scores[order]) != 0).all():
        return order
    return np.lexsort((*(-value).T[::-1], -value.max(axis=1), -scores))


def _thresholds(
    criterion: CriterionName, iou: float | int | Numbers, distance: float | int | Numbers | None
) -> list[float]:
    if criterion != "center_distance" and distance is not None:
        raise ValueError(f"distance is {distance}, criterion {criterion!r}; it applies to 'center_distance' only")
    if criterion not in OVERLAPS and not np.array_equal(np.asarray(iou), IOU):
        raise ValueError(f"iou is {iou}, criterion {criterion!r}; it applies to {', '.join(OVERLAPS)} only")
    if criterion in OVERLAPS:
        values = [float(x) for x in np.atleast_1d(np.asarray(iou, dtype=np.float64))]
        if not values or len(set(values)) < len(values) or not all(0 < x <= 1 for x in values):
            raise ValueError(f"iou is {iou}; wanted distinct thresholds in (0, 1]")
        return values
    if criterion != "center_distance" or distance is None:
        return [1.0]
    values = [float(x) for x in np.atleast_1d(np.asarray(distance, dtype=np.float64))]
    if not values or len(set(values)) < len(values) or not all(0 < x < np.inf for x in values):
        raise ValueError(f"distance is {distance}; wanted distinct positive numbers in the boxes' unit")
    return values
