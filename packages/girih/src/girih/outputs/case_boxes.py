"""The boxes of one case, checked: the content of a file of the schema girih-detections/1.

`detections.schema.json` and `truth.schema.json` beside this file say in JSON Schema what such files hold.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64, Int64

from girih.runs import read_json

SCHEMA = "girih-detections/1"
CASE_ID = re.compile(r"(?!\.)[^/\\\x00-\x1f\x7f\ud800-\udfff]+")
"""A case id names files: no folders, control characters or halves of a character."""
CASE_ID_BYTES = 255 - len(".mrk.json")
"""A file's name has at most 255 bytes."""


SURROGATE = re.compile(r"[\ud800-\udfff]")
"""Half of a character: JSON can hold it, no UTF-8 file can."""


@dataclass(frozen=True)
class CaseBoxes:
    """Boxes found in one scan, on the scan's own grid; row k is row k of the JSON file."""

    case_id: str
    classes: tuple[str, ...]
    shape_zyx: tuple[int, int, int]
    affine: Float64[np.ndarray, "4 4"]
    """Voxel-centre index (x, y, z) -> RAS mm."""
    boxes: Float64[np.ndarray, "n 6"]
    """(z0, y0, x0, z1, y1, x1), voxel edges: edge e lies at index e - 0.5. They may reach out of the grid."""
    boxes_ras_mm: Float64[np.ndarray, "n 6"]
    """The hull (x0, y0, z0, x1, y1, z1) of each box in patient space."""
    scores: Float64[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"]

    @property
    def spacing_xyz_mm(self) -> Float64[np.ndarray, "3"]:
        """Size of a voxel along its own axes."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))


def case_boxes(detections: Mapping[str, Any], where: str) -> CaseBoxes:
    """Return the boxes of `detections`, checked; `where` names their origin in the error.

    Raises:
        ValueError: another schema or space, a case id that cannot name a file, a field that is missing or of another
            shape, numbers that are not finite, a box with a negative side, a score outside [0, 1], a label without a
            class, a class that is not text, a singular affine.
    """
    for name, wanted in (("schema", SCHEMA), ("space", "source")):
        if (value := _get(detections, where, name)) != wanted:
            raise ValueError(f"{where}: {name} is {value!r}, wanted {wanted!r}")
    case_id, classes, scores = (_get(detections, where, name) for name in ("case_id", "classes", "scores"))
    if not isinstance(case_id, str) or not CASE_ID.fullmatch(case_id) or len(case_id.encode()) > CASE_ID_BYTES:
        raise ValueError(
            f"{where}: case_id is {case_id!r}, wanted text that can name a file, of at most {CASE_ID_BYTES} bytes"
        )
    if not isinstance(classes, (list, tuple)) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"{where}: classes is {classes!r}, wanted a list of names")
    if SURROGATE.search("".join(classes)):
        raise ValueError(f"{where}: classes is {classes!r}, wanted whole characters")
    if not isinstance(scores, list):
        raise ValueError(f"{where}: scores is {scores!r}, wanted a list of numbers")
    n = len(scores)
    z, y, x = _whole(_numbers(detections, where, "shape_zyx", (3,)), where, "shape_zyx", 1, 2**31 - 1).tolist()
    affine = _numbers(detections, where, "affine", (4, 4))
    if np.linalg.matrix_rank(affine) < 4 or affine[3].tolist() != [0, 0, 0, 1]:
        raise ValueError(f"{where}: affine is {affine.tolist()}, wanted one that can be inverted")
    boxes = _numbers(detections, where, "boxes", (n, 6))
    if (bad := (boxes[:, 3:] < boxes[:, :3]).any(axis=1)).any():
        row = int(bad.argmax())
        raise ValueError(f"{where}: boxes row {row} is {boxes[row].tolist()}, wanted z0 <= z1, y0 <= y1, x0 <= x1")
    given = _numbers(detections, where, "scores", (n,))
    if (bad := (given < 0) | (given > 1)).any():
        row = int(bad.argmax())
        raise ValueError(f"{where}: scores row {row} is {given[row]}, wanted 0 to 1")
    return CaseBoxes(
        case_id=case_id,
        classes=tuple(classes),
        shape_zyx=(z, y, x),
        affine=affine,
        boxes=boxes,
        boxes_ras_mm=_numbers(detections, where, "boxes_ras_mm", (n, 6)),
        scores=given,
        labels=_whole(_numbers(detections, where, "labels", (n,)), where, "labels", 0, len(classes) - 1),
    )


def read_case(path: Path) -> CaseBoxes:
    """Return the boxes of a case's JSON file, checked.

    Raises:
        ValueError: there is no such file, it cannot be read, is not as `case_boxes` wants it, or of another case.
    """
    try:
        found = case_boxes(read_json(path, "girih-detections", "a folder of predictions"), str(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    if found.case_id != path.stem:
        raise ValueError(f"{path}: case_id is {found.case_id!r}, wanted the file's name, {path.stem!r}")
    return found


def check_min_score(min_score: float) -> None:
    """Check the score from which boxes are shown.

    Raises:
        ValueError: it is not in [0, 1].
    """
    if not 0 <= min_score <= 1:
        raise ValueError(f"min_score is {min_score}, wanted 0 to 1")


def read_schema(kind: Literal["detections", "truth"]) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the files that hold detections, or of those that hold the truth.

    It cannot say that boxes, scores and labels are of one length, or that a label has a class; writers check that.
    """
    text = files("girih.outputs").joinpath(f"{kind}.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def _get(detections: Mapping[str, Any], where: str, name: str) -> Any:
    if name not in detections:
        raise ValueError(f"{where}: {name} is missing, found {sorted(detections)}")
    return detections[name]


def _numbers(detections: Mapping[str, Any], where: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    value = _get(detections, where, name)
    wanted = f"wanted finite numbers of shape {shape}"
    try:
        found = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{where}: {name} is ragged, {wanted}") from error
    if shape[0] == 0 and found.shape[:1] == (0,):
        return np.zeros(shape)
    if found.shape != shape or found.dtype.kind not in "iuf":
        raise ValueError(f"{where}: {name} has shape {found.shape} of {found.dtype}, {wanted}")
    if any(isinstance(one, bool) for one in np.asarray(value, object).flat):  # numpy takes it for a number among others
        raise ValueError(f"{where}: {name} has a bool, {wanted}")
    if not np.isfinite(found).all():
        row = int(np.argwhere(~np.isfinite(found))[0, 0])
        raise ValueError(f"{where}: {name} row {row} is {found[row].tolist()}, {wanted}")
    return found.astype(np.float64)


def _whole(values: np.ndarray, where: str, name: str, low: int, high: int) -> Int64[np.ndarray, " n"]:
    bad = (values != np.round(values)) | (values < low) | (values > high)
    if bad.any():
        found = values[bad][0]
        raise ValueError(f"{where}: {name} has {found:g}, wanted whole numbers from {low} to {high}")
    return values.astype(np.int64)
