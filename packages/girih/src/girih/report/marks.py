"""The boxes of a case as they are drawn: their kinds and colours, their words, and the order to look at them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from girih.report.verdicts import Judged, PredictionKind, TruthKind
from girih.report.volumes import Volume
from girih_data3d import move_boxes

Kind = PredictionKind | TruthKind
OUTLINES: Mapping[Kind, tuple[str, bool, str]] = {
    "tp": ("#009E73", False, "predicted, true positive"),
    "fp": ("#E69F00", False, "predicted, false positive"),
    "found": ("#56B4E9", True, "true object, found"),
    "missed": ("#D55E00", True, "true object, missed"),
    "ignored": ("#BBBBBB", True, "true object, not scored"),
    "neither": ("#BBBBBB", False, "predicted, not scored"),
    "prediction": ("#56B4E9", False, "predicted, not judged"),
}
"""Kind -> colour (Okabe and Ito's palette), dashed, meaning. What is true is dashed, what was predicted is solid."""
WORST_FIRST: tuple[Kind, ...] = ("missed", "fp", "found", "ignored", "neither", "prediction")
"""The order of findings; a true positive is shown with its object. Of one kind, `marks_of` has the order."""


@dataclass(frozen=True)
class Mark:
    """A box to draw, in voxel edges of the volume."""

    kind: Kind
    box: Float64[np.ndarray, "6"]
    name: str
    """Class."""
    score: float | None
    """None for a true object."""
    slice_index: int
    """The slice to look at it."""
    found_at: float | None = None
    """Score of the prediction that found a true object."""

    @property
    def said(self) -> str:
        """What the box is, in words."""
        score = self.found_at if self.score is None else self.score
        return f"{OUTLINES[self.kind][2]}: {self.name}" + ("" if score is None else f", score {score:.2f}")

    @property
    def said_below(self) -> str | None:
        """What a found object is while boxes of the score that found it are hidden; rounded down, as a limit is."""
        if self.found_at is None:
            return None
        limit = math.floor(self.found_at * 100 + 1e-9) / 100
        return f"true object, missed at this score, found at {limit:.2f}: {self.name}"


def marks_of(judged: Judged, volume: Volume) -> list[Mark]:
    """Return all boxes of an arm in the voxels of the volume, true objects before predictions.

    Objects: missed, then found, the lowest score first, then not scored. Predictions: the highest score first.
    """
    predictions, truth, kinds, n_slices = judged.predictions, judged.truth, judged.kinds(), volume.shape_zyx[0]
    moved = move_boxes(predictions.boxes, predictions.affine, volume.affine)
    objects: list[Mark] = []
    if truth is not None:
        true_boxes = move_boxes(truth.boxes, truth.affine, volume.affine)
        for row, (kind, box, label) in enumerate(zip(judged.true_kinds(), true_boxes, truth.labels, strict=True)):
            finder = [moved[judged.finders[row]]] if row in judged.finders else []
            slice_index = slice_of(box, finder, n_slices)
            objects.append(Mark(kind, box, truth.classes[label], None, slice_index, judged.found_at(row)))
    objects.sort(key=lambda mark: (WORST_FIRST.index(mark.kind), mark.found_at or 0.0))
    return objects + [
        Mark(
            kinds[row],
            moved[row],
            predictions.classes[predictions.labels[row]],
            float(predictions.scores[row]),
            slice_of(moved[row], [], n_slices),
        )
        for row in judged.by_score()
    ]


def slice_of(box: Float64[np.ndarray, "6"], partners: Sequence[Float64[np.ndarray, "6"]], n_slices: int) -> int:
    """Return the slice to look at a box: of those it cuts and most of its partners cut, the nearest to its middle."""
    first, last = (min(max(edge, 0), n_slices - 1) for edge in (math.floor(box[0]), math.ceil(box[3]) - 1))
    slices = np.arange(first, max(first, last) + 1)
    cut = sum(((other[0] < slices + 1) & (other[3] > slices) for other in partners), np.zeros(len(slices), int))
    best = slices[cut == cut.max()]
    return int(best[np.abs(best + 0.5 - (box[0] + box[3]) / 2).argmin()])
