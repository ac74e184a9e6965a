"""Which boxes to draw, on which slices, under which heading; `gallery` and `montage` make the pictures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8

from girih.report.files import Boxes
from girih.report.marks import WORST_FIRST, Kind, Mark, marks_of, slice_of
from girih.report.slices import Plane, Region, Window, grey, plane_of, read_region, window_for
from girih.report.summary import counted
from girih.report.verdicts import GRID_TOLERANCE, Judged, PredictionKind
from girih.report.volumes import Volume, open_volumes
from girih_data3d import move_boxes
from girih_metrics import pairwise_iou

MAX_CASES = 12
"""Cases on a page, the worst ones; `montage` draws all of them."""
FALSE_POSITIVES = 3
"""False positives shown per case and arm: those with the highest scores."""
MAX_OBJECTS = 10
"""True objects shown per case, missed ones first, and as many that are not scored."""
FIELD_MM = 60.0
"""Least width of a close-up."""


@dataclass(frozen=True)
class Finding:
    """A place worth looking at."""

    heading: str
    slice_index: int
    field: Region
    remarks: Mapping[str, str]
    """Arm -> what it did here."""


@dataclass(frozen=True)
class CaseView:
    """What is to be seen of one case."""

    case_id: str
    volume: Volume
    plane: Plane
    n_slices: int
    judged: Mapping[str, Judged]
    """Arm -> predictions."""
    marks: Mapping[str, Sequence[Mark]]
    """Arm -> boxes to draw."""
    findings: Sequence[Finding]
    """In the order of `WORST_FIRST`."""
    ignored: Sequence[Finding]
    """The objects that are not scored."""
    left_out: str
    """The objects that are no findings because there are too many, in words; empty: none."""
    remarks: Mapping[str, str]
    """Arm -> how it did in this case."""

    @property
    def named_remarks(self) -> list[str]:
        """How each arm did, with its name."""
        return [f"{arm}: {remark}" if arm else remark for arm, remark in self.remarks.items()]

    @property
    def remark(self) -> str:
        """How all arms did."""
        return "; ".join(self.named_remarks)

    def pictures(
        self, finding: Finding
    ) -> tuple[UInt8[np.ndarray, "Rows Columns"], UInt8[np.ndarray, "rows columns"], Window]:
        """Return the grey pixels of the finding's slice and of its field, and their window."""
        whole = read_region(self.volume, finding.slice_index, self.plane.whole)
        field = read_region(self.volume, finding.slice_index, finding.field)
        window = window_for(field, whole, hounsfield=self.volume.hounsfield)
        return grey(whole, window), grey(field, window), window

    def drawn(self, arm: str, finding: Finding) -> list[Mark]:
        """Return the marks of `arm` that cut the finding's slice within its field, true objects first."""
        y0, x0, y1, x1 = finding.field
        low, high = np.array([finding.slice_index, y0, x0]), np.array([finding.slice_index + 1, y1, x1])
        return [mark for mark in self.marks[arm] if (mark.box[:3] < high).all() and (mark.box[3:] > low).all()]


@dataclass(frozen=True)
class _Place:
    """A place in source voxels, and the prediction of each arm that belongs to it."""

    heading: str
    kind: Kind
    """The worst one that an arm made of it."""
    box: Float64[np.ndarray, "6"]
    rows: Mapping[str, int | None]
    remarks: Mapping[str, str]


def view_cases(
    judged: Mapping[str, Mapping[str, Judged]], data: Path, iou: float, *, modality: str | None = None
) -> Iterator[CaseView]:
    """Yield what is to be seen of every case, worst first: by misses, then by the highest false positive.

    A scan is opened when its turn comes, and can be forgotten with its view.

    Args:
        judged: case -> arm -> predictions.
        data: the prepared dataset, or the scans.
        iou: overlap from which a box belongs to a place.
        modality: of scans that do not say it themselves.

    Raises:
        ValueError: there is no scan of a case, it is damaged, or it is not the one that the boxes are of.
    """
    scans = open_volumes(data, modality=modality)
    missing = sorted(set(judged) - set(scans))
    if missing:
        raise ValueError(f"{data}: has no case {missing[0]!r}; {len(missing)} of {len(judged)} cases are missing")
    for case_id in sorted(judged, key=lambda case_id: _badness(judged[case_id]), reverse=True):
        yield view_case(scans[case_id](), judged[case_id], iou)


def view_case(volume: Volume, arms: Mapping[str, Judged], iou: float) -> CaseView:
    """Choose what to draw and where to look in one case. All arms have the same truth.

    Raises:
        ValueError: the boxes are of another grid than the volume's source.
    """
    for arm, judged in arms.items():
        _check_grid(volume, arm, judged.predictions)
    kinds = {arm: judged.kinds() for arm, judged in arms.items()}
    truth = next(iter(arms.values())).truth
    objects, ignored = list[_Place](), list[_Place]()
    if truth is not None:
        objects = [_object_place(truth, row, arms) for row in _scored_rows(arms)]
        ignored = [_ignored_place(truth, int(row), arms, iou) for row in np.flatnonzero(truth.ignore)]
    wrong = _prediction_places(arms, kinds, iou)
    marks = {
        arm: _few_marks(judged, volume, {place.rows[arm] for place in (*objects, *ignored, *wrong)})
        for arm, judged in arms.items()
    }
    plane = plane_of(volume)
    findings = sorted((*objects[:MAX_OBJECTS], *wrong), key=lambda place: WORST_FIRST.index(place.kind))
    more = ((len(objects), "true object"), (len(ignored), "unscored object"))

    def look(place: _Place) -> Finding:
        return _finding(place, arms, volume, plane)

    return CaseView(
        case_id=volume.case_id,
        volume=volume,
        plane=plane,
        n_slices=volume.shape_zyx[0],
        judged=arms,
        marks=marks,
        findings=[look(place) for place in findings],
        ignored=[look(place) for place in ignored[:MAX_OBJECTS]],
        left_out=", ".join(counted(n - MAX_OBJECTS, f"more {what}") for n, what in more if n > MAX_OBJECTS),
        remarks={arm: _remark(judged, kinds[arm]) for arm, judged in arms.items()},
    )


def _badness(arms: Mapping[str, Judged]) -> tuple[int, float]:
    """Misses of all arms, and the highest score of a false positive."""
    return (
        sum(judged.true_kinds().count("missed") for judged in arms.values()),
        max(score for judged in arms.values() for score in (0.0, *_wrong_scores(judged, judged.kinds()))),
    )


def _check_grid(volume: Volume, arm: str, boxes: Boxes) -> None:
    same = np.allclose(boxes.affine, volume.source_affine, rtol=0, atol=GRID_TOLERANCE)
    if boxes.shape_zyx != volume.source_shape_zyx or not same:
        raise ValueError(
            f"case {volume.case_id!r}: the boxes{f' of {arm!r}' * bool(arm)} are of a scan of shape {boxes.shape_zyx} "
            f"with affine {boxes.affine.tolist()}, the scan's are {volume.source_shape_zyx} and "
            f"{volume.source_affine.tolist()}"
        )


def _scored_rows(arms: Mapping[str, Judged]) -> list[int]:
    """The true objects that count, those missed by most arms first, then those found with the lowest score."""
    by_arm = [judged.true_kinds() for judged in arms.values()]
    misses = [sum(kind == "missed" for kind in each) for each in zip(*by_arm, strict=True)]
    scored = [row for row, kind in enumerate(by_arm[0]) if kind != "ignored"]

    def merit(row: int) -> tuple[int, float]:
        scores = [score for judged in arms.values() if (score := judged.found_at(row)) is not None]
        return -misses[row], min(scores, default=0.0)

    return sorted(scored, key=merit)


def _object_place(truth: Boxes, row: int, arms: Mapping[str, Judged]) -> _Place:
    rows = {arm: judged.finders.get(row) for arm, judged in arms.items()}
    remarks = {
        arm: "missed" if (score := judged.found_at(row)) is None else f"found, score {score:.2f}"
        for arm, judged in arms.items()
    }
    kind: Kind = "missed" if None in rows.values() else "found"
    return _Place(f"Object {row + 1}, {truth.classes[truth.labels[row]]}", kind, truth.boxes[row], rows, remarks)


def _ignored_place(truth: Boxes, row: int, arms: Mapping[str, Judged], iou: float) -> _Place:
    rows, remarks = dict[str, int | None](), dict[str, str]()
    for arm, judged in arms.items():
        hits = judged.at(truth.boxes[row], iou, centre=True)
        rows[arm] = hits[0] if hits else None
        remarks[arm] = "miss, no box here"
        if hits:
            rank, n = judged.by_score().index(hits[0]) + 1, len(judged.predictions.boxes)
            overlap = pairwise_iou(judged.predictions.boxes[hits[:1]], truth.boxes[row][None])[0, 0]
            score = judged.predictions.scores[hits[0]]
            remarks[arm] = f"hit, score {score:.2f} (rank {rank} of {n} boxes in this scan), IoU {overlap:.2f}"
    heading = f"Object {row + 1}, {truth.classes[truth.labels[row]]}"
    return _Place(heading, "ignored", truth.boxes[row], rows, remarks)


def _prediction_places(
    arms: Mapping[str, Judged], kinds: Mapping[str, Sequence[PredictionKind]], iou: float
) -> list[_Place]:
    """The best-scored false (without truth: all) predictions of every arm; a place that two arms share comes once."""
    places: list[_Place] = []
    for arm, judged in arms.items():
        for row in _wrong_rows(judged, kinds[arm])[:FALSE_POSITIVES]:
            if any(place.rows[arm] == row for place in places):
                continue
            box = judged.predictions.boxes[row]
            rows = {other: next(iter(arms[other].at(box, iou)), None) for other in arms} | {arm: row}
            heading = "Prediction" if kinds[arm][row] == "prediction" else "False positive"
            remarks = {other: _prediction_remark(arms[other], kinds[other], at) for other, at in rows.items()}
            name = judged.predictions.classes[judged.predictions.labels[row]]
            places.append(_Place(f"{heading}, {name}", kinds[arm][row], box, rows, remarks))
    return places


def _prediction_remark(judged: Judged, kinds: Sequence[PredictionKind], row: int | None) -> str:
    if row is None:
        return "no box here"
    words = {"tp": "true positive, ", "fp": "false positive, ", "neither": "not scored, ", "prediction": ""}
    return f"{words[kinds[row]]}score {judged.predictions.scores[row]:.2f}"


def _wrong_rows(judged: Judged, kinds: Sequence[PredictionKind]) -> list[int]:
    return [row for row in judged.by_score() if kinds[row] in ("fp", "prediction")]


def _wrong_scores(judged: Judged, kinds: Sequence[PredictionKind]) -> list[float]:
    return [float(judged.predictions.scores[row]) for row in _wrong_rows(judged, kinds)]


def _remark(judged: Judged, kinds: Sequence[PredictionKind]) -> str:
    scores = _wrong_scores(judged, kinds)
    if judged.truth is None:
        return f"{len(scores)} box{'' if len(scores) == 1 else 'es'}" + (
            f", best score {scores[0]:.2f}" if scores else ""
        )
    true_kinds = judged.true_kinds()
    found, n = true_kinds.count("found"), len(true_kinds) - true_kinds.count("ignored")
    best = f"highest false positive {scores[0]:.2f}" if scores else "no false positive"
    return f"found {found} of {n} at any score, {best}"


def _few_marks(judged: Judged, volume: Volume, looked_at: set[int | None]) -> list[Mark]:
    """The true objects, then true positives, the highest false positives and what belongs to a place, by score."""
    kinds = judged.kinds()
    few = set(_wrong_rows(judged, kinds)[:FALSE_POSITIVES]) | looked_at
    marks, order = marks_of(judged, volume), judged.by_score()
    n_true = len(marks) - len(order)
    predicted = zip(order, marks[n_true:], strict=True)
    return marks[:n_true] + [mark for row, mark in predicted if kinds[row] == "tp" or row in few]


def _finding(place: _Place, arms: Mapping[str, Judged], volume: Volume, plane: Plane) -> Finding:
    box = move_boxes(place.box[None], next(iter(arms.values())).predictions.affine, volume.affine)[0]
    partners = [
        move_boxes(judged.predictions.boxes[[row]], judged.predictions.affine, volume.affine)[0]
        for arm, judged in arms.items()
        if (row := place.rows[arm]) is not None
    ]
    return Finding(
        heading=place.heading,
        slice_index=slice_of(box, partners, volume.shape_zyx[0]),
        field=plane.around(box, FIELD_MM),
        remarks=place.remarks,
    )
