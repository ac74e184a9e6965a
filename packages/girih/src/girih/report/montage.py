"""Findings as one PNG per case, for a folder of predictions that somebody wants to look through."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle as Patch
from matplotlib.patheffects import AbstractPathEffect, withStroke

from girih.atomic import write_bytes
from girih.report.files import read_scores
from girih.report.overlays import OUTLINES, CaseView, Finding, Kind, Mark, view_cases
from girih.report.plots import png_bytes
from girih.report.slices import Plane, Region, grey, in_hounsfield, read_region, window_for
from girih.report.verdicts import read_judged

PANEL_INCH = 2.6
DPI = 110
FINDINGS_PER_ROW = 2
UNJUDGED_IOU = 0.1
"""Overlap that makes two places one when there are no scores to say which was asked for."""


def montage(
    out: Path, *, predictions: Path, store: Path, truth: Path | None = None, scores: Path | None = None
) -> list[Path]:
    """Draw a folder of predictions on the slices of a prepared dataset, into `out`/<case_id>.png.

    Shown are the true objects, found and missed, and the false positives with the highest scores; without truth and
    scores the predictions with the highest scores. Boxes are carried into the prepared grid through RAS.

    Args:
        out: folder, made if missing; files of the same name are replaced, each whole or not at all.
        predictions: folder of detections files, one per case.
        store: the prepared dataset.
        truth: folder of truth files.
        scores: the scores.json of these predictions against this truth.

    Returns:
        The pictures, worst case first: by misses, then by the highest false positive.

    Raises:
        ValueError: only one of `truth` and `scores`, a file is missing or malformed, or they do not belong together.
    """
    if (truth is None) != (scores is None):
        raise ValueError(f"truth is {truth} and scores is {scores}, wanted both or neither")
    scored = None if scores is None else read_scores(scores)
    views = view_cases(
        read_judged({"": (predictions, scored)}, truth), store, UNJUDGED_IOU if scored is None else scored.iou
    )
    out.mkdir(parents=True, exist_ok=True)
    pictures = []
    for view in views:
        pictures.append(out / f"{view.case_id}.png")
        write_bytes(pictures[-1], case_png(view))
    return pictures


def case_png(view: CaseView) -> bytes:
    """Draw all findings of one case, each as whole slice and close-up."""
    findings = [*view.findings, *view.ignored]
    rows = max(1, -(-len(findings) // FINDINGS_PER_ROW))
    columns = 2 * FINDINGS_PER_ROW
    figure = Figure(figsize=(columns * PANEL_INCH, rows * (PANEL_INCH + 0.45) + 1.0), layout="constrained")
    title = figure.suptitle("", fontsize=12)
    title.set_parse_math(False)
    title.set_text(f"{view.case_id}: {', '.join(view.remarks.values())}")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    drawn: list[Mark] = []
    for number, finding in enumerate(findings):
        drawn += _draw(grid[2 * number], grid[2 * number + 1], view, finding)
    kinds = [kind for kind in OUTLINES if any(mark.kind == kind for mark in drawn)]
    if kinds:
        figure.legend(
            [_legend_line(kind) for kind in kinds],
            [OUTLINES[kind][2] for kind in kinds],
            loc="outside lower center",
            ncols=3,
            frameon=False,
        )
    return png_bytes(figure, DPI)


def _draw(overview: Axes, close_up: Axes, view: CaseView, finding: Finding) -> Sequence[Mark]:
    """Draw one finding into two panels; return the boxes drawn."""
    values = read_region(view.case, finding.slice_index, finding.field)
    whole = read_region(view.case, finding.slice_index, view.plane.whole)
    window = window_for(values, whole, hounsfield=in_hounsfield(view.case))
    _show(overview, grey(whole, view.plane, window), view.plane, view.plane.whole)
    left, top, right, bottom = view.plane.on_paper(*finding.field)
    overview.add_patch(Patch((left, top), right - left, bottom - top, fill=False, edgecolor="white", linewidth=1))
    _show(close_up, grey(values, view.plane, window), view.plane, finding.field)
    _title(overview, f"{finding.heading}\nslice {finding.slice_index + 1} of {view.n_slices}")
    _title(close_up, "\n".join(finding.remarks.values()))
    marks = [mark for arm in view.marks for mark in view.drawn(arm, finding)]
    rim: list[AbstractPathEffect] = [withStroke(linewidth=3.2, foreground="black")]
    for mark in marks:
        colour, dashed, _ = OUTLINES[mark.kind]
        _, y0, x0, _, y1, x1 = (float(edge) for edge in mark.box)
        left, top, right, bottom = view.plane.on_paper(y0, x0, y1, x1)
        line = "--" if dashed else "-"
        box = Patch(
            (left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.6, linestyle=line
        )
        box.set_path_effects(rim)
        close_up.add_patch(box)
        if mark.score is not None:
            text = close_up.text(left, top, f"{mark.score:.2f}", color="white", fontsize=9, va="bottom", clip_on=True)
            text.set_path_effects(rim)
    return marks


def _show(axes: Axes, pixels: UInt8[np.ndarray, "rows columns"], plane: Plane, region: Region) -> None:
    left, top, right, bottom = plane.on_paper(*region)
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=(left, right, bottom, top), interpolation="bilinear")
    axes.set(xlim=(left, right), ylim=(bottom, top))


def _title(axes: Axes, text: str) -> None:
    title = axes.set_title("", fontsize=9, loc="left")
    title.set_parse_math(False)
    title.set_text(text)


def _legend_line(kind: Kind) -> Line2D:
    colour, dashed, _ = OUTLINES[kind]
    return Line2D([], [], color=colour, linewidth=2, linestyle="--" if dashed else "-")
