"""boxes.csv: one row per box of all cases in a folder of predictions."""

import csv
import io
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from girih.atomic import write_aside
from girih.outputs.case_boxes import CaseBoxes, case_boxes
from girih.runs import read_json

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
FORMULA_SIGNS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20", "\t", "\r", "'")
"""A spreadsheet takes what begins so for a formula (the four in full width too), or the apostrophe for a mark; see
OWASP, "CSV Injection"."""


def write_table(out: Path, *, min_score: float = 0.0) -> Path:
    """Write boxes.csv for all cases that are in the folder `out` now, and return its path.

    Rows are sorted by case id, then by descending score. Columns: case_id, class, score; box, which is the value in the
    instance NIfTI; z0 to x1, the voxel edges; centre, in RAS and in LPS mm; size in mm along the scan's own axes;
    x0 to z1, the hull in patient space, in RAS and in LPS mm. A case without boxes has no row. A case id or class that
    a spreadsheet would take for a formula, or that begins with an apostrophe, has an apostrophe before it.

    The table is made anew of the JSON files. Processes that share `out` may all call this, at any time: the table
    that stays is complete.

    Raises:
        ValueError: `out` is not a folder, or holds a *.json that is not a case's; the file is named.
        OSError: the table cannot be written; the one before is still there.
    """
    if not out.is_dir():
        raise ValueError(f"{out} is not a folder of predictions")
    place = out / NAME
    while True:
        cases = _cases(out)
        try:
            with tempfile.TemporaryFile(dir=out) as file:
                text = io.TextIOWrapper(file, encoding="utf-8", newline="")
                writer = csv.writer(text)
                writer.writerow(HEADER)
                for path in cases:
                    writer.writerows(_rows(_read(path), min_score))
                text.detach()
                file.seek(0)
                write_aside(place, file)
        except OSError as error:
            raise OSError(error.errno, f"{place} cannot be written: {error.strerror or error}") from error
        if _cases(out) == cases:  # else another process was done with a case after this one had looked
            return place


def _cases(out: Path) -> Mapping[Path, int]:
    """The JSON files of `out` by case id, and when they were written."""
    return {path: path.stat().st_mtime_ns for path in sorted(out.glob("*.json"), key=lambda path: path.stem)}


def _read(path: Path) -> CaseBoxes:
    found = case_boxes(read_json(path, "girih-detections", "a folder of predictions"), str(path))
    if found.case_id != path.stem:
        raise ValueError(f"{path}: case_id is {found.case_id!r}, wanted the file's name, {path.stem!r}")
    return found


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
    return f"'{value}" if value.startswith(FORMULA_SIGNS) else value
