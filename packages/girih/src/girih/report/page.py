"""The report of an experiment: one HTML file with everything inside, for reading anywhere, offline, and on paper."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import count
from pathlib import Path

import numpy as np

from girih.atomic import write_bytes
from girih.report.files import Interval, Scores, read_curves, read_scores
from girih.report.gallery import card, legend
from girih.report.markup import items, plots, section, soft, table
from girih.report.overlays import FALSE_POSITIVES, MAX_CASES, MAX_OBJECTS, CaseView, view_cases
from girih.report.plots import OPERATING_POINTS, at_fppi, froc_png, loss_png
from girih.report.summary import counted, decimals, includes_zero, limits, summary
from girih.report.verdicts import Judged, read_judged
from girih.report.viewer import FIRST_CHANNEL, case_block, start_score, viewer_page, viewer_section

CASE_BYTES = 2_000_000
"""What a case may add to the page as slices to scroll through."""


@dataclass(frozen=True)
class Arm:
    """One detector of the experiment, and what it produced."""

    scores: Path
    """scores.json of the predictions."""
    predictions: Path
    """Folder of detections files, one per case."""
    training: Path
    """metrics.jsonl of its training."""


def write_report(
    path: Path,
    *,
    title: str,
    arms: Mapping[str, Arm],
    truth: Path,
    store: Path,
    pretraining: Path | None,
    notes: Sequence[str],
    facts: Mapping[str, str],
    reconstruction: Path | None = None,
) -> None:
    """Write the report as one self-contained HTML file, whole or not at all.

    It holds a summary, the scores, loss and FROC curves, slices to scroll through, an overlay gallery with the worst
    cases first, a section on objects that are not scored, limits, and facts. It loads nothing.

    Args:
        path: the HTML file; its folder must exist.
        title: heading of the page.
        arms: name -> detector, at least one; all scored on the same cases.
        truth: folder of truth files.
        store: the prepared dataset that the slices are drawn from.
        pretraining: metrics.jsonl of a pre-training, if there was one.
        notes: sentences for the section on limits.
        facts: versions, seeds, times, command, by name.
        reconstruction: reconstruction.png of the pre-training, if it restores something.

    Raises:
        ValueError: no arm, a file is missing or malformed, or the files do not belong together; the file is named.
    """
    if not arms:
        raise ValueError("arms is empty, wanted at least one")
    scores = {name: read_scores(arm.scores) for name, arm in arms.items()}
    judged = read_judged({name: (arm.predictions, scores[name]) for name, arm in arms.items()}, truth)
    iou = next(iter(scores.values())).iou
    if any(other.iou != iou for other in scores.values()):
        raise ValueError(
            f"iou is {[other.iou for other in scores.values()]} in the scores of the arms, wanted one value"
        )
    views = list(view_cases(judged, store, iou))
    trainings = {name: arm.training for name, arm in arms.items()}
    steps = {name: _last_step(training) for name, training in trainings.items()}
    said = summary(scores, steps, None if pretraining is None else _last_step(pretraining))
    number = count()
    channels = [FIRST_CHANNEL] if any(view.volume.channels > 1 for view in views) else []
    sections = [
        f'<h1>{escape(title)}</h1><p class="summary">{escape(said)}</p>',
        _scores_section(scores),
        _loss_section(trainings, pretraining),
        "" if reconstruction is None else _reconstruction_section(reconstruction),
        _froc_section(scores),
        _viewer_section(views[:MAX_CASES], judged),
        _gallery_section(views, number),
        _ignored_section(views, number, iou),
        section("Limits and notes", items([*limits(scores), *channels, *notes])),
        section("Facts", table(("fact", "value"), facts.items(), words=True)),
    ]
    write_bytes(path, viewer_page(title, sections))


def _scores_section(scores: Mapping[str, Scores]) -> str:
    first = next(iter(scores.values()))
    header = ("arm", f"AP@{first.iou:g}", "FROC", "images", "patients", "objects")
    rows = [
        (name, _with_interval(one.ap), _with_interval(one.froc), one.n_images, one.n_patients, one.n_objects)
        for name, one in scores.items()
    ]
    said = (
        f"AP@{first.iou:g}: average precision, a prediction is a hit from an IoU of {first.iou:g}. FROC: mean "
        f"sensitivity at 1/8 to 8 false positives per image. In brackets: {first.confidence:.0%} bootstrap interval."
    )
    return section("Scores", table(header, rows, said) + _differences(scores) + _class_scores(scores))


def _differences(scores: Mapping[str, Scores]) -> str:
    rows = [
        (f"{name} minus {other}", *(text for one in pair for text in (_with_interval(one), _yes(includes_zero(one)))))
        for name, arm in scores.items()
        for other, pair in arm.difference.items()
    ]
    said = "Paired differences: both arms are scored on the same bootstrap draws."
    return table(("difference", "AP", "includes 0", "FROC", "includes 0"), rows, said) if rows else ""


def _class_scores(scores: Mapping[str, Scores]) -> str:
    first = next(iter(scores.values()))
    if len(first.per_class) < 2:
        return ""
    undefined = (float("nan"), 0)
    rows = [
        (name, *(decimals(arm.per_class.get(name, undefined)[0]) for arm in scores.values()), objects)
        for name, (_, objects) in first.per_class.items()
    ]
    return table(("class", *(f"AP, {name}" for name in scores), "objects"), rows, "AP of each class.")


def _loss_section(trainings: Mapping[str, Path], pretraining: Path | None) -> str:
    drawn = [] if pretraining is None else [("Pre-training", loss_png({"pre-training": pretraining}))]
    drawn.append(("Detector training", loss_png(trainings)))
    said = "Thin: as logged. Thick: moving average. Losses of different kinds of training cannot be compared."
    return section("Loss", soft(said) + plots(drawn, "loss over optimiser steps"))


def _reconstruction_section(png: Path) -> str:
    try:
        picture = png.read_bytes()
    except OSError as error:
        raise ValueError(f"{png}: cannot be read: {error}") from error
    said = "Middle slices of three patches: as they are, as the network was shown them, and what it made of that."
    return section("What pre-training restores", soft(said) + plots([("Pre-training", picture)], "patches restored"))


def _froc_section(scores: Mapping[str, Scores]) -> str:
    plot = froc_png({name: one.froc_curve for name, one in scores.items()})
    points = np.array(OPERATING_POINTS)
    rows = [(name, *(decimals(y) for y in at_fppi(one.froc_curve, points))) for name, one in scores.items()]
    header = ("false positives per image", *("1/8", "1/4", "1/2", "1", "2", "4", "8"))
    said = "Markers: the seven operating points whose mean is the FROC score. Band: bootstrap interval."
    if any(one.froc_curve.fppi.max(initial=0.0) < points[-1] for one in scores.values()):
        said += " Dotted: beyond the last point of the curve."
    curves = plots([("FROC", plot)], "sensitivity over false positives per image")
    return section("FROC", soft(said) + curves + table(header, rows, "Sensitivity at the operating points."))


def _viewer_section(views: Sequence[CaseView], judged: Mapping[str, Mapping[str, Judged]]) -> str:
    start = start_score(judged)
    blocks = [case_block(view, number, max_bytes=CASE_BYTES, start=start) for number, view in enumerate(views)]
    return viewer_section(blocks, {view.case_id: view.remark for view in views}, judged)


def _gallery_section(views: Sequence[CaseView], number: "count[int]") -> str:
    shown = views[:MAX_CASES]
    said = (
        "Worst cases first: by missed objects, then by the highest false positive. Each object is shown on the slice "
        f"through its middle, or the nearest that a matching box cuts. Per case: at most {MAX_OBJECTS} objects, and "
        f"the {FALSE_POSITIVES} false positives of each arm with the highest scores. Numbers beside boxes are scores. "
        "Radiological view: the patient's right is on the left."
    )
    if len(views) > len(shown):
        said += f" Shown are {len(shown)} of {counted(len(views), 'case')}."
    bar = f'<div class="bar">{legend()}<label><input type="checkbox" id="boxes" checked> show boxes</label></div>'
    return section("Overlays", soft(said) + bar + "".join(_case(view, number) for view in shown))


def _case(view: CaseView, number: "count[int]") -> str:
    cards = "".join(card(view, finding, next(number)) for finding in view.findings)
    nothing = "" if cards else soft("No object and no prediction.")
    said = view.remark + (f"; not shown: {view.left_out}" if view.left_out else "")
    return f'<h3>{escape(view.case_id)}</h3>{soft(said)}{nothing}<div class="findings">{cards}</div>'


def _ignored_section(views: Sequence[CaseView], number: "count[int]", iou: float) -> str:
    said = (
        "Lesions that the scans really contain and that are not part of the scores. A hit is a box of any class that "
        f"overlaps the lesion with an IoU of at least {iou:g}, or holds its centre; the one with the highest score "
        f"is named. Of each case at most {MAX_OBJECTS} are listed."
    )
    found = [(view, finding) for view in views for finding in view.ignored]
    if not found:
        return section("Real lesions", soft("No object of these cases is marked as a lesion outside the scores."))
    arms = list(views[0].marks)
    rows = [(view.case_id, finding.heading, *(finding.remarks[arm] for arm in arms)) for view, finding in found]
    cards = "".join(card(view, finding, next(number), with_case_id=True) for view, finding in found)
    hits = table(("case", "lesion", *arms), rows, words=True)
    return section("Real lesions", f'{soft(said)}{hits}<div class="findings">{cards}</div>')


def _with_interval(number: Interval) -> str:
    return f"{decimals(number.value)} [{decimals(number.low)}, {decimals(number.high)}]"


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _last_step(metrics_jsonl: Path) -> int:
    return int(read_curves(metrics_jsonl)["step"][-1])
