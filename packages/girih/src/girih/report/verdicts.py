"""What each prediction turned out to be: predictions, truth and scores of a case brought together and compared."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64

from girih.report.files import Boxes, CaseScore, Scores, read_boxes
from girih_metrics import pairwise_iou

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

    def by_score(self) -> list[int]:
        """Return all predictions, highest score first, ties in file order."""
        return [int(row) for row in np.argsort(-self.predictions.scores, kind="stable")]


def read_judged(arms: Mapping[str, tuple[Path, Scores | None]], truth: Path | None) -> dict[str, dict[str, Judged]]:
    """Return case -> arm -> what it predicted, from the predictions folder and the scores of each arm.

    Raises:
        ValueError: a file is missing or malformed, arms differ in their cases, or truth, predictions and scores of a
            case do not belong together; the file is named.
    """
    cases = {
        arm: sorted(scores.cases) if scores is not None else sorted(path.stem for path in folder.glob("*.json"))
        for arm, (folder, scores) in arms.items()
    }
    first, *others = cases
    for other in others:
        differing = sorted(set(cases[first]) ^ set(cases[other]))
        if differing:
            raise ValueError(f"arms {first!r} and {other!r} have different cases, for example {differing[0]!r}")
    if not cases[first]:
        raise ValueError(f"{arms[first][0]}: no cases, wanted one <case_id>.json per case")
    return {
        case_id: {arm: _judged(case_id, folder, scores, truth) for arm, (folder, scores) in arms.items()}
        for case_id in cases[first]
    }


def _judged(case_id: str, folder: Path, scores: Scores | None, truth: Path | None) -> Judged:
    path = folder / f"{case_id}.json"
    predictions = read_boxes(path, "detections")
    if scores is None or truth is None:
        return Judged(predictions, None, None)
    verdict, true_path = scores.cases[case_id], truth / f"{case_id}.json"
    objects = read_boxes(true_path, "truth")
    for file, what, found, wanted in (
        (path, "classes", predictions.classes, objects.classes),
        (path, "shape_zyx", predictions.shape_zyx, objects.shape_zyx),
        (path, "number of boxes", len(predictions.boxes), len(verdict.tp)),
        (path, "number of boxes", len(predictions.boxes), len(verdict.fp)),
        (true_path, "number of boxes", len(objects.boxes), len(verdict.hit)),
    ):
        if found != wanted:
            raise ValueError(f"{file}: {what} is {found}, wanted {wanted}: predictions, truth and scores must agree")
    if not np.allclose(predictions.affine, objects.affine, rtol=0, atol=GRID_TOLERANCE):
        raise ValueError(
            f"{path}: affine is {predictions.affine.tolist()}, wanted the truth's, {objects.affine.tolist()}"
        )
    return Judged(predictions, objects, verdict)
