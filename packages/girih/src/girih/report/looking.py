"""Look at any predictions: a picture of the findings of every case, and a page to scroll through the worst ones."""

import re
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path

from girih.atomic import write_bytes
from girih.report.markup import items, section, table
from girih.report.montage import case_png
from girih.report.overlays import FALSE_POSITIVES, MAX_CASES, MAX_OBJECTS, view_cases
from girih.report.summary import counted
from girih.report.verdicts import Judged, judge
from girih.report.viewer import FIRST_CHANNEL, case_block, labelled, start_score, viewer_page, viewer_section

MONTAGE = re.compile(r"[0-9]{4,}_.*\.png", re.DOTALL)


def look(
    out: Path,
    *,
    predictions: Mapping[str, Path],
    data: Path,
    truth: Path | None = None,
    iou: float = 0.1,
    worst: int = MAX_CASES,
    case_bytes: int = 4_000_000,
    modality: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `out`/montages/<rank>_<case_id>.png for every case, worst first, and the page `out`/report.html.

    Worst are the cases with the most missed objects, then with the highest false positive; without truth, those with
    the highest score. Every file is written whole or not at all; montages of an earlier call are removed at the end.

    Args:
        out: folder, made if missing.
        predictions: name -> folder of detections files, one per case; all of the same cases.
        data: the prepared dataset, a folder of scans, or one scan.
        truth: folder of truth files; cases that it lacks are shown without verdicts.
        iou: overlap of a hit, in (0, 1].
        worst: cases on the page.
        case_bytes: what one case may add to the page.
        modality: of scans that do not say it themselves; CT brings windows in Hounsfield units.
        progress: called with cases done and all cases.

    Returns:
        The page.

    Raises:
        ValueError: no predictions, a file is missing or malformed, files do not belong together, or a case does not fit
            into `case_bytes`; it is named.
    """
    if not predictions:
        raise ValueError("predictions is empty, wanted at least one folder")
    if worst < 1:
        raise ValueError(f"worst is {worst}, wanted at least 1")
    if not 0 < iou <= 1:
        raise ValueError(f"iou is {iou}, wanted above 0 and at most 1")
    arms = dict(predictions) if len(predictions) > 1 else {"": next(iter(predictions.values()))}
    judged = judge(arms, truth, iou)
    montages, blocks, remarks, start = out / "montages", list[str](), dict[str, str](), start_score(judged)
    written, channels = set[Path](), 1
    montages.mkdir(parents=True, exist_ok=True)
    for view in view_cases(judged, data, iou, modality=modality):
        picture = montages / f"{len(remarks) + 1:04d}_{view.case_id}.png"
        write_bytes(picture, case_png(view))
        written.add(picture)
        channels = max(channels, view.volume.channels)
        if len(blocks) < worst:
            blocks.append(case_block(view, len(blocks), max_bytes=case_bytes, start=start))
        remarks[view.case_id] = view.remark
        del view  # or its scan stays in memory while the next one is read
        if progress is not None:
            progress(len(remarks), len(judged))
    for other in montages.iterdir():
        if MONTAGE.fullmatch(other.name) and other not in written:
            other.unlink()
    shown = dict(list(remarks.items())[:worst])
    order = "Worst first." if labelled(judged) else "Highest score first."
    sections = [
        _head(list(predictions), judged, iou),
        viewer_section(blocks, shown, judged),
        section("Cases", table(("case", "how it went"), remarks.items(), order, words=True)),
        section("Notes", items(_notes(judged, truth, len(shown), channels))),
    ]
    report = out / "report.html"
    write_bytes(report, viewer_page(_title(list(predictions)), sections))
    return report


def _head(names: list[str], judged: Mapping[str, Mapping[str, Judged]], iou: float) -> str:
    first = [next(iter(arms.values())) for arms in judged.values()]
    objects = sum(len(case.truth.boxes) - int(case.truth.ignore.sum()) for case in first if case.truth is not None)
    with_truth = sum(case.truth is not None for case in first)
    said = counted(len(judged), "case")
    if with_truth:
        said += f", {counted(objects, 'true object')}; a prediction is a hit from an IoU of {iou:g}"
        said += "" if with_truth == len(judged) else f". {counted(len(judged) - with_truth, 'case')} without truth"
    return f'<h1>{escape(_title(names))}</h1><p class="summary">{escape(said)}.</p>'


def _title(names: list[str]) -> str:
    return f"Predicted boxes: {', '.join(names)}"


def _notes(judged: Mapping[str, Mapping[str, Judged]], truth: Path | None, shown: int, channels: int) -> list[str]:
    """What the page leaves out."""
    of_each = f"the {FALSE_POSITIVES} boxes with the highest scores of each folder of predictions"
    if labelled(judged):
        of_each = (
            f"at most {MAX_OBJECTS} objects, as many that are not scored, and {of_each} that are false positives, or "
            "of a case without truth"
        )
    notes = [
        "Pictures are for looking, not for measuring: compressed with loss, large scans averaged down. Radiological "
        "view: the patient's right is on the left.",
        f"The folder montages beside this page has a picture of every case with {of_each}.",
    ]
    if labelled(judged):
        notes.append(
            "At a score, an object counts as found if the one prediction that is credited with it has at least that "
            "score, as if girih evaluate had been given no lower one."
        )
    if channels > 1:
        notes.append(FIRST_CHANNEL)
    if shown < len(judged):
        notes.append(f"Slices are shown of the first {shown} of {counted(len(judged), 'case')}.")
    if truth is not None:
        others = sorted({path.stem for path in truth.glob("*.json")} - set(judged))
        if others:
            notes.append(f"{counted(len(others), 'case')} with truth and without predictions: {', '.join(others[:5])}.")
    return notes
