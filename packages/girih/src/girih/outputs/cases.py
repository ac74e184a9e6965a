"""Write one case: the views of it that were asked for, then its JSON file, whose presence means that it is done.

    out/<case_id>.json               every box; what `girih evaluate` and `girih look` read
    out/slicer/<case_id>.mrk.json    3D Slicer: one region of interest per box
    out/nifti/<case_id>.nii.gz       the scan's grid: 0, or the number of the box's row, counted from 1
    out/boxes.csv                    the boxes of all cases, see `write_table`

Each file is whole or not there. No other *.json lies directly in `out`: its readers take every one for a case.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from girih.atomic import write_json
from girih.outputs.case_boxes import case_boxes
from girih.outputs.instances import instance_volume
from girih.outputs.slicer import markups
from girih_data3d import write_nifti

Format = Literal["csv", "slicer", "nifti"]
FORMATS: tuple[Format, ...] = get_args(Format)


def write_case(
    out: Path, detections: Mapping[str, Any], *, formats: Sequence[Format] = FORMATS, min_score: float = 0.0
) -> None:
    """Write the detections of one case, as `girih_detectors.inference.restore` returns them, into the folder `out`.

    Args:
        out: made if missing.
        detections: a JSON-ready dict of the schema girih-detections/1; keys beyond it are written too.
        formats: the views. "csv" is the table of all cases: `write_table` writes it, after the last case.
        min_score: boxes below it are left out of the views. The JSON file has all boxes, because scoring needs them.

    Raises:
        ValueError: an unknown format, or detections that are not of the schema; case and field are named.
        OSError: a file cannot be written (a full disk, for one). It is named and not there, nor is the JSON file.
    """
    if unknown := set(formats) - set(FORMATS):
        raise ValueError(f"formats are {list(formats)}, unknown: {sorted(unknown)}; wanted some of {list(FORMATS)}")
    found = case_boxes(detections, f"case {detections.get('case_id')!r}")
    place = out
    try:
        if "slicer" in formats:
            place = view_path(out, found.case_id, "slicer")
            write_json(place, markups(found, min_score=min_score))
        if "nifti" in formats:
            place = view_path(out, found.case_id, "nifti")
            place.parent.mkdir(parents=True, exist_ok=True)
            write_nifti(instance_volume(found, min_score=min_score), place, affine=found.affine)
        place = out / f"{found.case_id}.json"
        write_json(place, dict(detections))
    except OSError as error:
        raise OSError(
            error.errno, f"case {found.case_id!r}: {place} cannot be written: {error.strerror or error}"
        ) from error


def missing_formats(out: Path, case_id: str, formats: Sequence[Format]) -> tuple[Format, ...]:
    """Return those of `formats` that a case in `out` lacks; the table of all cases is not counted."""
    return tuple(name for name in formats if name != "csv" and not view_path(out, case_id, name).exists())


def view_path(out: Path, case_id: str, view: Literal["slicer", "nifti"]) -> Path:
    """Return where the view of a case lies."""
    return out / view / f"{case_id}{'.mrk.json' if view == 'slicer' else '.nii.gz'}"
