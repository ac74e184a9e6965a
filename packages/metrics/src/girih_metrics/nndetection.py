"""The numbers that nnDetection's own evaluator prints, peculiarities included, to compare with published ones."""

from collections.abc import Sequence

import numpy as np

from girih_metrics.ap import RECALL
from girih_metrics.froc import froc
from girih_metrics.interfaces import Case
from girih_metrics.matches import Matches
from girih_metrics.matching import match


def nndetection_compat(cases: Sequence[Case], *, classes: Sequence[str]) -> dict[str, float]:
    """Return nnDetection's scores under its own keys.

    For comparison with numbers published by others; do not report them. Unlike the preset `nndetection`: a class
    without ground truth has AP -1, which enters the mean; predictions of equal score count one by one in the order of
    the cases given; the IoU thresholds are numpy.linspace(0.1, 0.5, 9); FROC is NaN when there are predictions but no
    hit, and 0 without ground truth, under another key ("froc_score").
    Mirrors the evaluator under numpy 2, where recall and precision are float64; under numpy 1 they were partly float32,
    and an AP can differ in the third digit.
    Source: nndet/evaluator/detection/{matching,coco,froc}.py (Baumgartner et al. 2021).

    Raises:
        ValueError: bad cases, see `match`.
    """
    thresholds = np.union1d(np.array([0.1, 0.5]), np.linspace(0.1, 0.5, 9))
    matches = match(cases, classes=classes, iou=thresholds, ignored="once", order="given")
    ap = np.array([[_ap(matches, t, label) for label in range(len(matches.classes))] for t in range(len(thresholds))])
    scores: dict[str, float] = {}
    for key, rows in (
        ("mAP_IoU_0.10_0.50_0.05_MaxDet_100", slice(None)),
        ("AP_IoU_0.10_MaxDet_100", slice(0, 1)),
        ("AP_IoU_0.50_MaxDet_100", slice(-1, None)),
    ):
        scores[key] = float(ap[rows].mean())
        for label, name in enumerate(matches.classes):
            scores[f"{name}_{key}"] = float(ap[rows, label].mean())
    for t, suffix in ((0, "0.10"), (len(thresholds) - 1, "0.50")):
        at = matches.at(float(thresholds[t]))
        pooled, by_class = froc(at)["froc"].item(), froc(at, pooling="class_mean")["froc_class"].values[0]
        scores |= _named_froc("", suffix, pooled, at, None)
        single = [
            _named_froc(f"{name}_", suffix, by_class[label], at, label) for label, name in enumerate(matches.classes)
        ]
        for named in single:
            scores |= named
        known = [value for named in single for key, value in named.items() if not key.endswith("_froc_score")]
        scores[f"mc_FROC_score_IoU_{suffix}"] = float(sum(known) / len(matches.classes))
    return scores


def _named_froc(prefix: str, suffix: str, value: float, matches: Matches, label: int | None) -> dict[str, float]:
    counted = matches.gt_counted if label is None else matches.gt_counted & (matches.gt_label == label)
    chosen = np.ones(len(matches.pred_label), dtype=bool) if label is None else matches.pred_label == label
    right, wrong = matches.true_positives()[0][chosen], matches.false_positives()[0][chosen]
    if not counted.any():
        return {f"{prefix}froc_score": 0.0}
    missed_all = wrong.any() and not right.any()
    return {f"{prefix}FROC_score_IoU_{suffix}": float("nan") if missed_all else float(value)}


def _ap(matches: Matches, t: int, label: int) -> float:
    n_objects = int((matches.gt_counted & (matches.gt_label == label)).sum())
    if n_objects == 0:
        return -1.0
    right, wrong = matches.true_positives()[t] > 0, matches.false_positives()[t]
    kept = np.flatnonzero((matches.pred_label == label) & (right | wrong))
    kept = kept[np.argsort(-matches.pred_score[kept], kind="stable")]
    if not len(kept):
        return 0.0
    tp, fp = np.cumsum(right[kept]), np.cumsum(wrong[kept])
    envelope = np.maximum.accumulate((tp / (tp + fp))[::-1])[::-1]
    at = np.searchsorted(tp / n_objects, RECALL, side="left")
    return float(np.append(envelope, 0.0)[at].mean())
