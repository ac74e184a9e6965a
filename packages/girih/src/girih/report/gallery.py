"""Findings as HTML: grey slices as PNG, boxes as SVG on top, sharp at any zoom."""

from collections.abc import Iterable
from html import escape

from girih.report.marks import OUTLINES, Mark
from girih.report.markup import data_uri
from girih.report.overlays import CaseView, Finding
from girih.report.slices import SIDES, Plane, Rectangle, Region, grey_png

WHOLE_PIXELS = 256
"""Longest side of the overview of a slice; it only says where the close-up lies."""
FIELD_PIXELS = 512
"""Longest side of a close-up; smaller ones keep the voxels of the scan."""


def legend(*, truth: bool = True, unjudged: bool = False) -> str:
    """Return what the outlines mean, as HTML: of boxes compared with a truth, of boxes without one, or of both."""
    rows = "".join(
        f'<li><svg viewBox="0 0 26 16" aria-hidden="true"><rect class="halo" x="2" y="2" width="22" height="12"/>'
        f'<rect class="{kind}" x="2" y="2" width="22" height="12"/></svg>{escape(meaning)}</li>'
        for kind, (_, _, meaning) in OUTLINES.items()
        if (unjudged if kind == "prediction" else truth)
    )
    return f'<ul class="legend">{rows}</ul>'


def outline_css() -> str:
    """Return the style of the outlines."""
    return "".join(
        f".{kind}{{stroke:{colour}{';stroke-dasharray:5 3' if dashed else ''}}}.is-{kind}{{--kind:{colour}}}"
        for kind, (colour, dashed, _) in OUTLINES.items()
    )


def card(view: CaseView, finding: Finding, number: int, *, with_case_id: bool = False) -> str:
    """Return one finding: where it lies in its slice, and a close-up with the boxes of each arm.

    `number` makes the picture's name unique on the page.
    """
    heading = f"{view.case_id}: {finding.heading}" if with_case_id else finding.heading
    whole, field, window = view.pictures(finding)
    overview, close_up = grey_png(whole, WHOLE_PIXELS), grey_png(field, FIELD_PIXELS)
    where = f"slice {finding.slice_index + 1} of {view.n_slices}"
    panels = [_overview(view.plane, finding.field, overview, where)]
    for position, (arm, remark) in enumerate(finding.remarks.items()):
        name = f"p{number}"
        image = _image(view.plane, finding.field, close_up, name) if position == 0 else f'<use href="#{name}"/>'
        panels.append(_close_up(view.plane, finding, image, view.drawn(arm, finding), arm, remark))
    return (
        f'<figure class="finding"><figcaption><b>{escape(heading)}</b> '
        f"<span>{escape(where)}; {escape(window.said)}</span></figcaption>"
        f'<div class="panels">{"".join(panels)}</div></figure>'
    )


def _overview(plane: Plane, field: Region, png: bytes, where: str) -> str:
    frame = plane.on_paper(*plane.whole)
    _, _, width, height = frame
    size = 0.07 * max(width, height)
    left, right, top, bottom = SIDES
    letters = "".join(
        f'<text class="side" x="{x:.1f}" y="{y:.1f}" font-size="{size:.1f}" text-anchor="{anchor}">{letter}</text>'
        for letter, x, y, anchor in (
            (left, 0.3 * size, height / 2, "start"),
            (right, width - 0.3 * size, height / 2, "end"),
            (top, width / 2, size, "middle"),
            (bottom, width / 2, height - 0.3 * size, "middle"),
        )
    )
    body = f"{_image(plane, plane.whole, png, '')}{_rect(plane.on_paper(*field), 'field')}{letters}"
    return f'<div class="panel">{_svg(frame, body, f"whole slice, {where}")}<p>whole slice</p></div>'


def _close_up(plane: Plane, finding: Finding, image: str, marks: Iterable[Mark], arm: str, remark: str) -> str:
    frame = plane.on_paper(*finding.field)
    boxes = "".join(_mark(mark, plane, frame) for mark in marks)
    drawing = _svg(frame, f'{image}<g class="marks">{boxes}</g>', f"{finding.heading}, {arm}: {remark}")
    return f'<div class="panel">{drawing}<p><b>{escape(arm)}:</b> {escape(remark)}</p></div>'


def _mark(mark: Mark, plane: Plane, frame: Rectangle) -> str:
    """A box with a dark rim, its score beside it, and everything known of it as tooltip."""
    _, y0, x0, _, y1, x1 = (float(edge) for edge in mark.box)
    place = plane.on_paper(y0, x0, y1, x1)
    text = ""
    if mark.score is not None:
        size = 0.06 * (frame[2] - frame[0])
        above = place[1] - 0.35 * size
        x = min(max(place[0], frame[0] + 0.2 * size), frame[2] - 2.2 * size)
        y = above if above - size > frame[1] else min(place[3] + 1.05 * size, frame[3] - 0.3 * size)
        text = f'<text class="score" x="{x:.2f}" y="{y:.2f}" font-size="{size:.2f}">{mark.score:.2f}</text>'
    return f"<g><title>{escape(mark.said)}</title>{_rect(place, 'halo')}{_rect(place, mark.kind)}{text}</g>"


def _svg(frame: Rectangle, body: str, label: str) -> str:
    left, top, right, bottom = frame
    box = f"{left:.2f} {top:.2f} {right - left:.2f} {bottom - top:.2f}"
    return f'<svg viewBox="{box}" role="img" aria-label="{escape(label)}">{body}</svg>'


def _image(plane: Plane, region: Region, png: bytes, name: str) -> str:
    left, top, right, bottom = plane.on_paper(*region)
    identity = f' id="{name}"' if name else ""
    return (
        f'<image{identity} x="{left:.2f}" y="{top:.2f}" width="{right - left:.2f}" height="{bottom - top:.2f}" '
        f'preserveAspectRatio="none" href="{data_uri(png)}"/>'
    )


def _rect(place: Rectangle, style: str) -> str:
    left, top, right, bottom = place
    return (
        f'<rect class="{style}" x="{left:.2f}" y="{top:.2f}" width="{right - left:.2f}" height="{bottom - top:.2f}"/>'
    )
