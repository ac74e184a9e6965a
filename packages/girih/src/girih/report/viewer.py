"""A section of a page in which one scrolls slices with true and predicted boxes.

viewer.js works it. A case costs its pictures, 4/3 as long in base64, and some 200 bytes a box.
"""

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from girih.report.gallery import legend, outline_css
from girih.report.marks import WORST_FIRST, Mark, marks_of
from girih.report.markup import package_text, page, section, soft
from girih.report.overlays import FIELD_MM, CaseView
from girih.report.slices import read_region, window_for
from girih.report.stack import Stack, box_on_stack, make_stack
from girih.report.verdicts import Judged

BOXES_AT_START = 8
"""Boxes per case that the score slider leaves at first: the most false positives per image that FROC looks at."""
RESERVED_BYTES = 3000
"""Of a case beside its boxes and pictures, with what base64 rounds up."""
SIDES = {"axial": ("R", "L", "A", "P"), "coronal": ("R", "L", "S", "I"), "sagittal": ("A", "P", "S", "I")}
"""Anatomical letters at the left, right, top and bottom of a plane."""
FIRST_CHANNEL = "Of scans with several channels the first is shown."
KEYS = (
    "Wheel over a picture, or click it and use the arrow keys: slices. Click: the other planes go there. "
    "N, P: next and previous finding. B: boxes on and off."
)


def case_block(view: CaseView, number: int, *, max_bytes: int, start: float) -> str:
    """Return the data of one case, for `viewer_section`.

    Args:
        view: the case.
        number: its place in the list of cases.
        max_bytes: what it may add to the page.
        start: the score that hides boxes at first.

    Raises:
        ValueError: the boxes leave no room, or the pictures cannot be made so small.
    """
    marks = [marks_of(judged, view.volume) for judged in view.judged.values()]
    arms = [[_box(mark, row, view) for row, mark in enumerate(arm)] for arm in marks]
    room = max_bytes - RESERVED_BYTES - len(_json(arms))
    if room <= 0:
        raise ValueError(
            f"case {view.case_id!r}: its {sum(map(len, arms)):,} boxes take {len(_json(arms)):,} of {max_bytes:,} "
            "bytes, which leaves no room for pictures, allow more"
        )
    stack = make_stack(view.volume, room * 3 // 4)
    z, y, x = stack.shape_zyx
    content = {
        "shape": [x, y, z],
        "step": stack.step_zyx_mm[::-1],
        "merged": stack.merged_slices,
        "slices": stack.n_slices,
        "codes": stack.codes,
        "windows": [(window.said, window.low, window.high) for window in stack.windows],
        "window": _first_window(view, stack, _first_finding(marks[0], start)),
        "labelled": any(judged.truth is not None for judged in view.judged.values()),
        "arms": arms,
        "pictures": [base64.b64encode(picture).decode() for picture in stack.pictures],
    }
    return f'<script type="application/json" id="viewer-case-{number}">{_json(content)}</script>'


def viewer_page(title: str, sections: Iterable[str]) -> bytes:
    """Return a whole page that has a viewer."""
    style = package_text("page.css") + package_text("viewer.css") + outline_css()
    return page(title, sections, style=style, script=package_text("viewer.js")).encode()


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
    places_named = "findings, worst first" if labelled(judged) else "boxes, highest score first"
    score = _slider("score", 0, 1, 0.01, start_score(judged))
    choices = (
        f'<label class="wide">case <select name="case" autocomplete="off">{cases}</select></label>',
        chooser,
        '<label><input type="checkbox" name="boxes" checked autocomplete="off"> boxes</label>',
    )
    controls = (
        f'<label>score from {score} <output class="threshold"></output></label>',
        '<label>window <select name="window"></select></label>',
        *(
            f'<label>{name} <input type="range" name="{name}"><output class="number"></output></label>'
            for name in ("level", "width")
        ),
        f"<label>zoom {_slider('zoom', 1, 8, 0.5, 1.0)}</label>",
    )
    places = (
        '<p class="counts soft"></p><p class="status" role="status"></p>'
        '<p><button type="button" name="previous">previous</button> <button type="button" name="next">next</button></p>'
        f'<ol aria-label="{places_named}"></ol>'
    )
    parts = (
        soft(KEYS),
        '<noscript><p class="soft">Scrolling needs JavaScript, which this browser does not run.</p></noscript>',
        '<div class="viewer" role="group" aria-label="slices with boxes" aria-busy="true">',
        f'<div class="controls">{"".join(choices)}</div><div class="controls">{"".join(controls)}</div>',
        _legend(judged),
        f'<div class="planes"><div>{_plane("axial")}<div class="places">{places}</div></div>'
        f"<div>{_plane('coronal')}{_plane('sagittal')}</div></div></div>",
        f'<script type="application/json" id="viewer-order">{_json(WORST_FIRST)}</script>',
        *blocks,
    )
    return section("Slices", "".join(parts))


def start_score(judged: Mapping[str, Mapping[str, Judged]]) -> float:
    """Return the score that leaves eight boxes per case and arm on average, rounded down to 0.01, in [0, 1]."""
    predictions = [arm.predictions.scores for arms in judged.values() for arm in arms.values()]
    scores = np.sort(np.concatenate(predictions))[::-1]
    n = BOXES_AT_START * len(predictions)
    return 0.0 if len(scores) <= n else min(max(math.floor(float(scores[n - 1]) * 100) / 100, 0.0), 1.0)


def labelled(judged: Mapping[str, Mapping[str, Judged]]) -> bool:
    """Return whether any case has truth."""
    return any(arm.truth is not None for arms in judged.values() for arm in arms.values())


def _legend(judged: Mapping[str, Mapping[str, Judged]]) -> str:
    unjudged = any(arm.truth is None for arms in judged.values() for arm in arms.values())
    return legend(truth=labelled(judged), unjudged=unjudged)


def _slider(name: str, low: int, high: int, step: float, value: float) -> str:
    limits = f'min="{low}" max="{high}" step="{step}" value="{value:g}"'
    return f'<input type="range" name="{name}" {limits} autocomplete="off">'


def _plane(name: str) -> str:
    places = zip(("left", "right", "top", "bottom"), SIDES[name], strict=True)
    letters = "".join(f'<span class="side {place}">{letter}</span>' for place, letter in places)
    return (
        f'<figure class="plane {name}"><div class="picture"><canvas role="img" aria-label="{name} slice"></canvas>'
        f'<svg class="marks" aria-hidden="true" preserveAspectRatio="none"></svg>{letters}</div>'
        f'<div class="at">{name} <output></output> '
        f'<input type="range" min="1" step="1" aria-label="{name} slice" autocomplete="off"></div></figure>'
    )


def _box(mark: Mark, row: int, view: CaseView) -> dict[str, Any]:
    return {
        "row": row,
        "kind": mark.kind,
        "said": mark.said,
        "below": mark.said_below,
        "score": mark.score,
        "foundAt": mark.found_at,
        "slice": mark.slice_index,
        "box": [round(float(mm), 2) for mm in box_on_stack(mark, view.volume)],
    }


def _first_finding(marks: Sequence[Mark], start: float) -> Mark | None:
    """The finding that the page opens at: viewer.js sorts by the same kinds at the score of the slider."""

    def kind(mark: Mark) -> str:
        return "missed" if mark.found_at is not None and mark.found_at < start else mark.kind

    shown = [mark for mark in marks if kind(mark) in WORST_FIRST and (mark.score is None or mark.score >= start)]
    return min(shown, key=lambda mark: WORST_FIRST.index(kind(mark)), default=None)


def _first_window(view: CaseView, stack: Stack, finding: Mark | None) -> int:
    """The window that suits a finding, or the middle of the scan."""
    volume = view.volume
    if not volume.hounsfield:
        return 0
    index, field = volume.shape_zyx[0] // 2, view.plane.whole
    if finding is not None:
        index, field = finding.slice_index, view.plane.around(finding.box, FIELD_MM)
    values = read_region(volume, index, field)
    return stack.windows.index(window_for(values, values, hounsfield=True))


def _json(content: Any) -> str:
    """JSON that can stand inside a script element: no tag and no comment begins in it."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
