"""Write one case: the views of it that were asked for, then its JSON file, whose presence means that it is done.

    out/<case_id>.json               every box; what `girih evaluate` and `girih look` read
    out/slicer/<case_id>.mrk.json    3D Slicer: one region of interest per box
    out/nifti/<case_id>.nii.gz       the scan's grid: 0, or the number of the box's row, counted from 1
    out/boxes.csv                    the boxes of all cases, see `write_table`

Each file is whole or not there. No other *.json lies directly in `out`: its readers take every one for a case.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from girih.atomic import write_bytes, write_json
from girih.outputs.case_boxes import case_boxes, check_min_score, read_case
from girih.outputs.instances import instance_volume
from girih.outputs.slicer import markups
from girih_data3d import write_nifti

Format = Literal["csv", "slicer", "nifti"]
FORMATS: tuple[Format, ...] = get_args(Format)
View = Literal["slicer", "nifti"]
VIEWS: tuple[View, ...] = get_args(View)


def write_case(
    out: Path, detections: Mapping[str, Any], *, formats: Sequence[Format] = FORMATS, min_score: float = 0.0
) -> None:
    """Write the detections of one case, as `girih_detectors.inference.restore` returns them, into the folder `out`.

    Other detections of the case that are there go first, with all views of them. Without a box that has `min_score`
    there is no .mrk.json: 3D Slicer does not open an empty one.

    Args:
        out: made if missing.
        detections: a JSON-ready dict of the schema girih-detections/1; keys beyond it are written too.
        formats: the views. "csv" is the table of all cases: `write_table` writes it, after the last case.
        min_score: boxes below it are left out of the views. The JSON file has all boxes, because scoring needs them.

    Raises:
        ValueError: an unknown format, detections that are not of the schema or not JSON-ready, or with "slicer" a
            sheared affine; case and field are named, and nothing was touched.
        OSError: a file cannot be written (a full disk, for one). It is named and not there, nor is the JSON file,
            unless it lay there before, of the same content.
    """
    if unknown := set(formats) - set(FORMATS):
        raise ValueError(f"formats are {list(formats)}, unknown: {sorted(unknown)}; wanted some of {list(FORMATS)}")
    check_min_score(min_score)
    where = f"case {detections.get('case_id')!r}"
    found = case_boxes(detections, where)
    content = _json(detections, where)
    regions = markups(found, min_score=min_score) if "slicer" in formats else None
    record = place = out / f"{found.case_id}.json"
    try:
        if not (record.is_file() and record.read_bytes() == content):
            for place in (record, *(view_path(out, found.case_id, view) for view in VIEWS)):
                place.unlink(missing_ok=True)
        if regions is not None:
            place = view_path(out, found.case_id, "slicer")
            if regions["markups"]:
                write_json(place, regions)
            else:
                place.unlink(missing_ok=True)
        if "nifti" in formats:
            place = view_path(out, found.case_id, "nifti")
            place.parent.mkdir(parents=True, exist_ok=True)
            write_nifti(instance_volume(found, min_score=min_score), place, affine=found.affine)
        place = record
        write_bytes(place, content)
    except OSError as error:
        raise OSError(error.errno, f"{where}: {place} cannot be written: {error.strerror or error}") from error


def missing_formats(
    out: Path, case_id: str, formats: Sequence[Format], *, min_score: float = 0.0
) -> tuple[Format, ...]:
    """Return those of `formats` that a finished case in `out` lacks.

    The table of all cases is not counted, and a case without a box that has `min_score` lacks no .mrk.json.

    Raises:
        ValueError: the JSON file of the case is missing or not as it should be, or `min_score` is not in [0, 1].
    """
    check_min_score(min_score)
    missing = [name for name in formats if name != "csv" and not view_path(out, case_id, name).exists()]
    if "slicer" in missing and not (read_case(out / f"{case_id}.json").scores >= min_score).any():
        missing.remove("slicer")
    return tuple(missing)


def view_path(out: Path, case_id: str, view: View) -> Path:
    """Return where the view of a case lies."""
    return out / view / f"{case_id}{'.mrk.json' if view == 'slicer' else '.nii.gz'}"


def _json(detections: Mapping[str, Any], where: str) -> bytes:
    try:
        return f"{json.dumps(dict(detections), indent=1, allow_nan=False)}\n".encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: not JSON-ready: {error}") from error
