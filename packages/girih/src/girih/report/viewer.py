"""A section of a page in which one scrolls slices with true and predicted boxes.

viewer.js works it. A case costs its pictures, 4/3 as long in base64, and some 100 bytes a box.
"""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from girih.report.gallery import legend
from girih.report.markup import section, soft
from girih.report.overlays import OUTLINES, CaseView, marks_of
from girih.report.slices import read_region, window_for
from girih.report.stack import Stack, box_on_stack, make_stack
from girih.report.verdicts import Judged

BOXES_AT_START = 8
"""Boxes per case that the score slider leaves at first: the most false positives per image that FROC looks at."""
RESERVED_BYTES = 3000
"""Of a case beside its boxes and pictures, with what base64 rounds up."""
KEYS = (
    "Wheel over a picture, or click it and use the arrow keys: slices. Click: the other planes go there. "
    "N, P: next and previous finding. B: boxes on and off."
)


def case_block(view: CaseView, number: int, *, max_bytes: int, iou: float) -> str:
    """Return the data of one case, for `viewer_section`.

    Args:
        view: the case.
        number: its place in the list of cases.
        max_bytes: what it may add to the page.
        iou: overlap of a hit.

    Raises:
        ValueError: the pictures cannot be made so small.
    """
    arms = [_boxes(view, judged, iou) for judged in view.judged.values()]
    stack = make_stack(view.volume, max(0, max_bytes - RESERVED_BYTES - len(_json(arms))) * 3 // 4)
    z, y, x = stack.shape_zyx
    content = {
        "shape": [x, y, z],
        "step": stack.step_zyx_mm[::-1],
        "merged": stack.merged_slices,
        "slices": stack.n_slices,
        "codes": stack.codes,
        "windows": [(window.name, window.low, window.high) for window in stack.windows],
        "window": _first_window(view, stack),
        "sides": stack.sides,
        "labelled": any(judged.truth is not None for judged in view.judged.values()),
        "arms": arms,
        "pictures": [base64.b64encode(picture).decode() for picture in stack.pictures],
    }
    return f'<script type="application/json" id="viewer-case-{number}">{_json(content)}</script>'


def viewer_section(
    blocks: Sequence[str], remarks: Mapping[str, str], judged: Mapping[str, Mapping[str, Judged]]
) -> str:
    """Return the viewer of some cases.

    Args:
        blocks: `case_block` of each case, in order.
        remarks: case id -> how it went, in the same order.
        judged: case -> arm -> predictions, of these cases and maybe more.
    """
    arms = list(next(iter(judged.values())))
    cases = "".join(
        f'<option value="{n}">{escape(f"{n + 1}. {case_id}: {remark}")}</option>'
        for n, (case_id, remark) in enumerate(remarks.items())
    )
    chooser = ""
    if len(arms) > 1:
        options = "".join(f'<option value="{n}">{escape(arm)}</option>' for n, arm in enumerate(arms))
        chooser = f'<label>boxes of <select name="arm">{options}</select></label>'
    kinds = _json({kind: meaning for kind, (_, _, meaning) in OUTLINES.items()})
    score = _slider("score", 0, 1, 0.01, start_score(judged))
    controls = (
        f'<label class="wide">case <select name="case" autocomplete="off">{cases}</select></label>',
        chooser,
        f'<label>score from {score} <output class="threshold"></output></label>',
        '<label>window <select name="window"></select></label>',
        '<label>level <input type="range" name="level"></label><label>width <input type="range" name="width"></label>',
        f"<label>zoom {_slider('zoom', 1, 8, 0.5, 1.0)}</label>",
        '<label><input type="checkbox" name="boxes" checked autocomplete="off"> boxes</label>',
    )
    places = (
        '<p class="counts soft"></p><p class="status" role="status"></p>'
        '<p><button type="button" name="previous">previous</button> <button type="button" name="next">next</button></p>'
        '<ol aria-label="findings, worst first"></ol>'
    )
    parts = (
        soft(KEYS),
        '<noscript><p class="soft">Scrolling needs JavaScript, which this browser does not run.</p></noscript>',
        '<div class="viewer" role="group" aria-label="slices with boxes" aria-busy="true">',
        f'<div class="controls">{"".join(controls)}</div>{_legend(judged)}',
        f'<div class="planes"><div>{_plane("axial")}<div class="places">{places}</div></div>'
        f"<div>{_plane('coronal')}{_plane('sagittal')}</div></div></div>",
        f'<script type="application/json" id="viewer-kinds">{kinds}</script>',
        *blocks,
    )
    return section("Slices", "".join(parts))


def start_score(judged: Mapping[str, Mapping[str, Judged]]) -> float:
    """Return the score that leaves eight boxes per case and arm on average, rounded down to 0.01, in [0, 1]."""
    predictions = [arm.predictions.scores for arms in judged.values() for arm in arms.values()]
    scores = np.sort(np.concatenate(predictions))[::-1]
    n = BOXES_AT_START * len(predictions)
    return 0.0 if len(scores) <= n else min(max(math.floor(float(scores[n - 1]) * 100) / 100, 0.0), 1.0)


def _legend(judged: Mapping[str, Mapping[str, Judged]]) -> str:
    labelled = [arm.truth is not None for arms in judged.values() for arm in arms.values()]
    return legend(truth=any(labelled), unjudged=not all(labelled))


def _slider(name: str, low: int, high: int, step: float, value: float) -> str:
    limits = f'min="{low}" max="{high}" step="{step}" value="{value:g}"'
    return f'<input type="range" name="{name}" {limits} autocomplete="off">'


def _plane(name: str) -> str:
    letters = "".join(f'<span class="side {side}"></span>' for side in ("left", "right", "top", "bottom"))
    return (
        f'<figure class="plane {name}"><div class="picture"><canvas role="img" aria-label="{name} slice"></canvas>'
        f'<svg class="marks" aria-hidden="true" preserveAspectRatio="none"></svg>{letters}</div>'
        f'<div class="at">{name} <output></output> '
        f'<input type="range" min="1" step="1" aria-label="{name} slice" autocomplete="off"></div></figure>'
    )


def _boxes(view: CaseView, judged: Judged, iou: float) -> list[dict[str, Any]]:
    finders = [] if judged.truth is None else [judged.found_by(row, iou) for row in range(len(judged.truth.boxes))]
    found_at = [None if row is None else round(float(judged.predictions.scores[row]), 4) for row in finders]
    marks = marks_of(judged, view.volume)
    return [
        {
            "row": row,
            "kind": mark.kind,
            "name": mark.name,
            "score": None if mark.score is None else round(mark.score, 4),
            "foundAt": at,
            "box": [round(float(mm), 2) for mm in box_on_stack(mark, view.volume)],
        }
        for row, (mark, at) in enumerate(zip(marks, found_at + [None] * (len(marks) - len(found_at)), strict=True))
    ]


def _first_window(view: CaseView, stack: Stack) -> int:
    """The window that suits the worst finding, or the middle of the scan."""
    volume, whole = view.volume, view.plane.whole
    place = view.findings[0] if view.findings else None
    index, field = (volume.shape_zyx[0] // 2, whole) if place is None else (place.slice_index, place.field)
    values = read_region(volume, index, field)
    wanted = window_for(values, values, hounsfield=volume.hounsfield)
    ranges = [(window.low, window.high) for window in stack.windows]
    return ranges.index((wanted.low, wanted.high)) if volume.hounsfield else 0


def _json(content: Any) -> str:
    """JSON that can stand inside a script element: no tag and no comment begins in it."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
