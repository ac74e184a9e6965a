"""The findings of a case as one PNG."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle as Patch
from matplotlib.patheffects import AbstractPathEffect, withStroke

from girih.report.lettering import fitted
from girih.report.marks import OUTLINES, Kind, Mark
from girih.report.overlays import CaseView, Finding
from girih.report.plots import png_bytes
from girih.report.slices import SIDES, Plane, Region

PANEL_INCH = 2.6
FILLED = 0.92
"""Share of a width that text may take; hinted letters are drawn a few percent wider than they are measured."""
TITLE_POINTS, HEAD_POINTS = 8.0, 12.0
TITLE_INCH, HEAD_INCH, LEGEND_INCH = 0.55, 0.2, 0.7
"""Heights of a panel's title, of a line of the head, and of the legend."""
DPI = 110
FINDINGS_PER_ROW = 2
"""Of one arm; with several, a row holds one finding and a close-up for each arm."""


def case_png(view: CaseView) -> bytes:
    """Return all findings of one case as PNG."""
    return png_bytes(case_figure(view), DPI)


def case_figure(view: CaseView) -> Figure:
    """Draw all findings of one case, each as whole slice and close-up with the boxes of every arm."""
    findings = [*view.findings, *view.ignored]
    panels = 1 + len(view.marks)
    columns = panels * (FINDINGS_PER_ROW if len(view.marks) == 1 else 1)
    rows = max(1, -(-len(findings) * panels // columns))
    said = [view.case_id, *view.named_remarks, *([f"not shown: {view.left_out}"] if view.left_out else [])]
    width = columns * PANEL_INCH
    head = "\n".join(fitted(text, size=HEAD_POINTS, width_inch=FILLED * width, lines=2) for text in said)
    height = rows * (PANEL_INCH + TITLE_INCH) + HEAD_INCH * (head.count("\n") + 1) + LEGEND_INCH
    figure = Figure(figsize=(width, height), layout="constrained")
    title = figure.suptitle("", fontsize=HEAD_POINTS)
    title.set_parse_math(False)
    title.set_text(head)
    grid: list[Axes] = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes in grid:
        axes.set_axis_off()
    drawn: list[Mark] = []
    for number, finding in enumerate(findings):
        drawn += _draw(grid[panels * number : panels * (number + 1)], view, finding)
    kinds = [kind for kind in OUTLINES if any(mark.kind == kind for mark in drawn)]
    if kinds:
        figure.legend(
            [_legend_line(kind) for kind in kinds],
            [OUTLINES[kind][2] for kind in kinds],
            loc="outside lower center",
            ncols=3,
            frameon=False,
        )
    return figure


def _draw(panels: Sequence[Axes], view: CaseView, finding: Finding) -> Sequence[Mark]:
    """Draw one finding into its panels; return the boxes drawn."""
    overview, *close_ups = panels
    whole, field, window = view.pictures(finding)
    _show(overview, whole, view.plane, view.plane.whole)
    _letters(overview)
    left, top, right, bottom = view.plane.on_paper(*finding.field)
    overview.add_patch(Patch((left, top), right - left, bottom - top, fill=False, edgecolor="white", linewidth=1))
    _title(overview, finding.heading, f"slice {finding.slice_index + 1} of {view.n_slices}", window.said)
    drawn: list[Mark] = []
    for close_up, (arm, remark) in zip(close_ups, finding.remarks.items(), strict=True):
        marks = view.drawn(arm, finding)
        _show(close_up, field, view.plane, finding.field)
        _title(close_up, *([arm] if arm else []), remark)
        for mark in marks:
            _draw_mark(close_up, mark, view.plane)
        drawn += marks
    return drawn


def _draw_mark(axes: Axes, mark: Mark, plane: Plane) -> None:
    rim: list[AbstractPathEffect] = [withStroke(linewidth=3.2, foreground="black")]
    colour, dashed, _ = OUTLINES[mark.kind]
    _, y0, x0, _, y1, x1 = (float(edge) for edge in mark.box)
    left, top, right, bottom = plane.on_paper(y0, x0, y1, x1)
    line = "--" if dashed else "-"
    box = Patch((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.6, linestyle=line)
    box.set_path_effects(rim)
    axes.add_patch(box)
    if mark.score is not None:
        text = axes.text(left, top, f"{mark.score:.2f}", color="white", fontsize=9, va="bottom", clip_on=True)
        text.set_path_effects(rim)


def _show(axes: Axes, pixels: UInt8[np.ndarray, "rows columns"], plane: Plane, region: Region) -> None:
    left, top, right, bottom = plane.on_paper(*region)
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=(left, right, bottom, top), interpolation="bilinear")
    axes.set(xlim=(left, right), ylim=(bottom, top))


def _letters(axes: Axes) -> None:
    for letter, x, y in zip(SIDES, (0.03, 0.97, 0.5, 0.5), (0.5, 0.5, 0.95, 0.05), strict=True):
        text = axes.text(x, y, letter, color="white", fontsize=TITLE_POINTS, transform=axes.transAxes)
        text.set(ha="center", va="center", path_effects=[withStroke(linewidth=2, foreground="black")])


def _title(axes: Axes, *texts: str) -> None:
    """One line a text, but the last of them may take two."""
    title = axes.set_title("", fontsize=TITLE_POINTS, loc="left")
    title.set_parse_math(False)
    title.set_text(
        "\n".join(
            fitted(text, size=TITLE_POINTS, width_inch=FILLED * PANEL_INCH, lines=1 + (n == len(texts) - 1))
            for n, text in enumerate(texts)
        )
    )


def _legend_line(kind: Kind) -> Line2D:
    colour, dashed, _ = OUTLINES[kind]
    return Line2D([], [], color=colour, linewidth=2, linestyle="--" if dashed else "-")
