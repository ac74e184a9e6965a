"""What each prediction turned out to be: predictions, truth and scores of a case brought together and compared."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64

from girih.report.files import Boxes, CaseScore, Scores, read_boxes
from girih_metrics import match, pairwise_iou

PredictionKind = Literal["tp", "fp", "neither", "prediction"]
"""True positive, false positive, neither (not counted by the scores: on an ignored object, say), not judged."""
TruthKind = Literal["found", "missed", "ignored"]

GRID_TOLERANCE = 1e-3
"""Largest difference (mm) between the affines of two files of one case."""


@dataclass(frozen=True)
class Judged:
    """Predictions of one arm for one case, with the truth and the verdict if there are any."""

    predictions: Boxes
    truth: Boxes | None
    score: CaseScore | None
    finders: Mapping[int, int] = field(default_factory=dict)
    """Found object -> the prediction that is credited with it, rows of their files. Predictions are paired with objects
    from the highest score down, so hiding those below some score changes no other pair."""

    def kinds(self) -> list[PredictionKind]:
        """Return the kind of every prediction, as the scores have it."""
        if self.score is None:
            return ["prediction"] * len(self.predictions.boxes)
        return ["tp" if tp else "fp" if fp else "neither" for tp, fp in zip(self.score.tp, self.score.fp, strict=True)]

    def true_kinds(self) -> list[TruthKind]:
        """Return the kind of every true object."""
        if self.truth is None or self.score is None:
            return []
        return [
            "ignored" if ignore else "found" if hit else "missed"
            for ignore, hit in zip(self.truth.ignore, self.score.hit, strict=True)
        ]

    def at(self, box: Float64[np.ndarray, "6"], iou: float, *, centre: bool = False) -> list[int]:
        """Return the predictions at a place, highest score first, whatever their class.

        Args:
            box: the place.
            iou: least overlap.
            centre: also take a prediction that holds the centre of `box`.
        """
        boxes, middle = self.predictions.boxes, (box[:3] + box[3:]) / 2
        there = pairwise_iou(boxes, box[None])[:, 0] >= iou
        if centre:
            there |= ((boxes[:, :3] <= middle) & (middle < boxes[:, 3:])).all(axis=1)
        return [row for row in self.by_score() if there[row]]

    def found_at(self, row: int) -> float | None:
        """Return the score of the prediction that found a true object; None if it is missed or not scored."""
        return float(self.predictions.scores[self.finders[row]]) if row in self.finders else None

    def by_score(self) -> list[int]:
        """Return all predictions, highest score first, ties in file order."""
        return [int(row) for row in np.argsort(-self.predictions.scores, kind="stable")]


def read_judged(arms: Mapping[str, tuple[Path, Scores]], truth: Path) -> dict[str, dict[str, Judged]]:
    """Return case -> arm -> what it predicted, from the predictions folder and the scores of each arm.

    Raises:
        ValueError: a file is missing or malformed, arms differ in their cases, or truth, predictions and scores of a
            case do not belong together; the file is named.
    """
    cases = _same_cases({arm: sorted(scores.cases) for arm, (_, scores) in arms.items()}, truth)
    return {
        case_id: {arm: _scored(case_id, folder, scores, truth) for arm, (folder, scores) in arms.items()}
        for case_id in cases
    }


def judge(arms: Mapping[str, Path], truth: Path | None, iou: float) -> dict[str, dict[str, Judged]]:
    """Return case -> arm -> what it predicted, compared with the truth as `girih evaluate` does.

    A case without a truth file has no verdicts.

    Args:
        arms: name -> folder of detections files, one per case.
        truth: folder of truth files; None: there is none.
        iou: overlap of a hit.

    Raises:
        ValueError: a file is missing or malformed, arms differ in their cases, no case has a truth file, or predictions
            and truth of a case do not belong together; the file is named.
    """
    listed = {arm: sorted(path.stem for path in folder.glob("*.json")) for arm, folder in arms.items()}
    cases = _same_cases(listed, next(iter(arms.values())))
    if truth is not None and not any((truth / f"{case_id}.json").is_file() for case_id in cases):
        raise ValueError(f"{truth}: has the truth of none of {len(cases)} cases, wanted {cases[0]}.json and so on")
    return {case_id: {arm: _compared(case_id, folder, truth, iou) for arm, folder in arms.items()} for case_id in cases}


def _same_cases(cases: Mapping[str, list[str]], where: Path) -> list[str]:
    first, *others = cases
    for other in others:
        differing = sorted(set(cases[first]) ^ set(cases[other]))
        if differing:
            raise ValueError(f"arms {first!r} and {other!r} have different cases, for example {differing[0]!r}")
    if not cases[first]:
        raise ValueError(f"{where}: no cases, wanted one <case_id>.json per case")
    return cases[first]


def _scored(case_id: str, folder: Path, scores: Scores, truth: Path) -> Judged:
    judged, verdict = _matched(*_read_pair(case_id, folder, truth), scores.iou), scores.cases[case_id]
    for name in ("tp", "fp", "hit"):
        given, found = getattr(verdict, name).tolist(), getattr(judged.score, name).tolist()
        if given != found:
            raise ValueError(
                f"{folder / case_id}.json: {name} is {given} in the scores, but {found} when matched again: "
                "predictions, truth and scores must belong together"
            )
    return judged


def _compared(case_id: str, folder: Path, truth: Path | None, iou: float) -> Judged:
    if truth is None or not (truth / f"{case_id}.json").is_file():
        return Judged(read_boxes(folder / f"{case_id}.json", "detections"), None, None)
    return _matched(*_read_pair(case_id, folder, truth), iou)


def _matched(predictions: Boxes, objects: Boxes, iou: float) -> Judged:
    """Pair predictions with true objects as `girih evaluate` does."""
    matches = match(
        [
            {
                "case_id": objects.case_id,
                "gt_boxes": objects.boxes,
                "gt_labels": objects.labels,
                "gt_ignore": objects.ignore,
                "pred_boxes": predictions.boxes,
                "pred_scores": predictions.scores,
                "pred_labels": predictions.labels,
            }
        ],
        classes=objects.classes,
        iou=iou,
        ignored="once",
    )
    rows = matches.outcome(objects.case_id)
    n, m = len(predictions.boxes), len(objects.boxes)
    tp, fp, hit = (np.isin(np.arange(k), rows[name]) for k, name in ((n, "tp"), (n, "fp"), (m, "found")))
    finders = {
        int(row): int(matches.pred_row[finder])
        for row, finder, counted in zip(matches.gt_row, matches.found_by[0], matches.gt_counted, strict=True)
        if counted and finder >= 0
    }
    return Judged(predictions, objects, CaseScore(tp=tp, fp=fp, hit=hit), finders)


def _read_pair(case_id: str, folder: Path, truth: Path) -> tuple[Boxes, Boxes]:
    """Predictions and truth of a case, of the same classes on the same grid."""
    path = folder / f"{case_id}.json"
    predictions, objects = read_boxes(path, "detections"), read_boxes(truth / f"{case_id}.json", "truth")
    for what, found, wanted in (
        ("classes", predictions.classes, objects.classes),
        ("shape_zyx", predictions.shape_zyx, objects.shape_zyx),
    ):
        if found != wanted:
            raise ValueError(f"{path}: {what} is {found}, wanted the truth's, {wanted}")
    if not np.allclose(predictions.affine, objects.affine, rtol=0, atol=GRID_TOLERANCE):
        raise ValueError(
            f"{path}: affine is {predictions.affine.tolist()}, wanted the truth's, {objects.affine.tolist()}"
        )
    return predictions, objects
