"""boxes.csv: one row per box of all cases in a folder of predictions."""

import csv
import io
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from girih.atomic import write_aside
from girih.outputs.case_boxes import CaseBoxes, check_min_score, read_case

NAME = "boxes.csv"
CORNERS = ("x0", "y0", "z0", "x1", "y1", "z1")
HEADER = (
    *("case_id", "class", "score", "box"),
    *("z0", "y0", "x0", "z1", "y1", "x1"),
    *(f"center_{axis}_{space}_mm" for space in ("ras", "lps") for axis in "xyz"),
    *(f"size_{axis}_mm" for axis in "zyx"),
    *(f"{corner}_{space}_mm" for space in ("ras", "lps") for corner in CORNERS),
)
DECIMALS_MM = 4
FORMULA = re.compile("(?:^|(?<=[;\"\t\r\n]))(?=[=+\\-@\uff1d\uff0b\uff0d\uff20\t\r\n'])")
"""Where a spreadsheet would begin a cell that it takes for a formula (the signs in full width too; see OWASP, "CSV
Injection"), or would take an apostrophe for a mark. Where it takes a semicolon or a tab for the separator, as in many
languages, quotation marks hold nothing together but in a row's first cell: cells begin after each of these too."""


def write_table(out: Path, *, min_score: float = 0.0) -> Path:
    """Write boxes.csv for all cases that are in the folder `out` now, and return its path.

    Rows are sorted by case id, then by descending score. Columns: case_id, class, score; box, which is the value in the
    instance NIfTI; z0 to x1, the voxel edges; centre, in RAS and in LPS mm; size in mm along the scan's own axes;
    x0 to z1, the hull in patient space, in RAS and in LPS mm. A case without boxes has no row. Text is in quotation
    marks, and has an apostrophe before all that a spreadsheet would take for a formula or a mark.

    The table is made anew of the JSON files. Of processes that share `out` each may call this after its last case: who
    is done last finds all cases, and who saw another one end meanwhile writes once more.

    Raises:
        ValueError: `min_score` is not in [0, 1], or `out` is not a folder, or holds a *.json that cannot be read or is
            not a case's; the file is named. Folders and hidden files are passed over.
        OSError: the table cannot be written; the one before is still there.
    """
    check_min_score(min_score)
    if not out.is_dir():
        raise ValueError(f"{out} is not a folder of predictions")
    place = out / NAME
    for _ in range(2):  # the second time if a case came while the first was under way
        cases = _cases(out)
        try:
            _write(place, cases, min_score)
        except OSError as error:
            raise OSError(error.errno, f"{place} cannot be written: {error.strerror or error}") from error
        if _cases(out) == cases:
            break
    return place


def _cases(out: Path) -> Mapping[Path, int]:
    """The JSON files of `out` by case id, and when they were written."""
    found = [path for path in out.glob("*.json") if not path.name.startswith(".") and not path.is_dir()]
    try:
        return {path: path.stat().st_mtime_ns for path in sorted(found, key=lambda path: path.stem)}
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from error


def _write(place: Path, cases: Iterable[Path], min_score: float) -> None:
    with tempfile.TemporaryFile(dir=place.parent) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(HEADER)
        for path in cases:
            writer.writerows(_rows(read_case(path), min_score))
        text.detach()
        file.seek(0)
        write_aside(place, file)


def _rows(found: CaseBoxes, min_score: float) -> Iterator[list[Any]]:
    spacing_zyx = found.spacing_xyz_mm[::-1]
    for row in (-found.scores).argsort(kind="stable"):
        if found.scores[row] < min_score:
            return
        box, ras = found.boxes[row], found.boxes_ras_mm[row]
        x0, y0, z0, x1, y1, z1 = ras
        lps = [-x1, -y1, z0, -x0, -y0, z1]
        cx, cy, cz = (ras[:3] + ras[3:]) / 2
        size = (box[3:] - box[:3]) * spacing_zyx
        mm = [round(float(value), DECIMALS_MM) + 0.0 for value in (cx, cy, cz, -cx, -cy, cz, *size, *ras, *lps)]
        name = found.classes[int(found.labels[row])]
        yield [_text(found.case_id), _text(name), float(found.scores[row]), int(row) + 1, *box.tolist(), *mm]


def _text(value: str) -> str:
    return FORMULA.sub("'", value)
