"""Boxes of a prepared volume, back on the grid of the source scan and in patient space.

An affine maps voxel centres (x, y, z index) to millimetres; a box is voxel edges (z, y, x), so edge e is index e - 0.5.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ..interfaces import Detections

SCHEMA = "girih-detections/1"


def restore(
    detections: Detections, prepared: Mapping[str, Any], *, case_id: str, classes: Sequence[str]
) -> dict[str, Any]:
    """Return the detections in the source scan's voxels as a JSON-ready dict.

    The eight corners of a box go through `prepared["affine"]` to RAS millimetres and through the inverse of
    `prepared["source_affine"]` to source voxels, where their extremes are the box. Nothing is clipped: a border box may
    reach a fraction of a voxel out of a source that resampling rounded.

    Args:
        detections: boxes in voxel edges of the prepared volume.
        prepared: `source_shape_zyx`, `source_affine` and `affine` (4, 4) of voxel centres (x, y, z) -> RAS mm.
        case_id: name of the case.
        classes: names of the labels.

    Returns:
        schema, case_id, classes, shape_zyx, affine, space ("source"), boxes (z0, y0, x0, z1, y1, x1), scores, labels,
        boxes_ras_mm: the hull (x0, y0, z0, x1, y1, z1) of each source box in patient space.

    Raises:
        ValueError: a field is missing or has another shape or kind of numbers; a row of it is not finite, an inverted
            box, a score outside [0, 1] or a label without a class; an affine is not invertible, or its last row is not
            (0, 0, 0, 1). Case, field and row are named.
    """
    try:
        boxes, scores, labels = _columns(detections, len(classes))
        shape = _array(prepared, "source_shape_zyx", "iu", (3,))
        _rows("source_shape_zyx", shape, shape >= 1, "at least one voxel")
        affine, source_affine = _affine(prepared, "affine"), _affine(prepared, "source_affine")
    except ValueError as error:
        raise ValueError(f"case {case_id}: {error}") from error
    world = _map(_corners(boxes), affine)
    index = _map(world, np.linalg.inv(source_affine))  # (n, 8, xyz), voxel centres
    source = _hull(index[..., ::-1] + 0.5)
    return {
        "schema": SCHEMA,
        "case_id": case_id,
        "classes": list(classes),
        "shape_zyx": shape.tolist(),
        "affine": source_affine.tolist(),
        "space": "source",
        "boxes": source.tolist(),
        "scores": scores.tolist(),
        "labels": labels.tolist(),
        "boxes_ras_mm": _hull(_map(_corners(source), source_affine)).tolist(),
    }


def _corners(boxes: Float64[np.ndarray, "n 6"]) -> Float64[np.ndarray, "n 8 3"]:
    """Corners of boxes in voxel edges (z, y, x) as voxel indices (x, y, z)."""
    picks = np.array([(2 + 3 * x, 1 + 3 * y, 3 * z) for x, y, z in itertools.product((0, 1), repeat=3)])
    return np.asarray(boxes[:, picks] - 0.5)


def _map(points: Float64[np.ndarray, "n 8 3"], affine: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "n 8 3"]:
    return np.asarray(points @ affine[:3, :3].T + affine[:3, 3])


def _hull(points: Float64[np.ndarray, "n 8 3"]) -> Float64[np.ndarray, "n 6"]:
    return np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)


def _columns(
    detections: Mapping[str, Any], classes: int
) -> tuple[Float64[np.ndarray, "n 6"], Float64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    scores = _array(detections, "scores", "fiu", None).astype(np.float64)
    boxes = _array(detections, "boxes", "fiu", (scores.size, 6)).astype(np.float64)
    labels = _array(detections, "labels", "iu", (scores.size,)).astype(np.int64)
    sound = np.all(np.isfinite(boxes) & (boxes <= boxes[:, [3, 4, 5, 3, 4, 5]]), axis=1)
    _rows("boxes", boxes, sound, "finite edges, z0 <= z1, y0 <= y1, x0 <= x1")
    _rows("scores", scores, (scores >= 0) & (scores <= 1), "0..1")
    _rows("labels", labels, (labels >= 0) & (labels < classes), f"one of {classes} classes")
    return boxes, scores, labels


def _rows(field: str, column: np.ndarray, sound: Bool[np.ndarray, " n"], wanted: str) -> None:
    if not sound.all():
        row = int((~sound).argmax())
        raise ValueError(f"`{field}` row {row} is {column[row].tolist()}, wanted {wanted}")


def _affine(prepared: Mapping[str, Any], field: str) -> Float64[np.ndarray, "4 4"]:
    affine = _array(prepared, field, "fiu", (4, 4)).astype(np.float64)
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine) < 4:
        raise ValueError(f"`{field}` is not an invertible (4, 4) matrix: {affine.tolist()}")
    if affine[3].tolist() != [0, 0, 0, 1]:
        raise ValueError(f"`{field}` has the last row {affine[3].tolist()}, wanted [0, 0, 0, 1]")
    return affine


def _array(fields: Mapping[str, Any], field: str, kinds: str, shape: tuple[int, ...] | None) -> np.ndarray:
    """A field as an array of this shape, or with one axis, of numpy's kinds of numbers: f(loat), i(nt), u(nsigned)."""
    wanted = "numbers" if "f" in kinds else "integers"
    wanted += f" of shape {shape}" if shape else " along one axis"
    if field not in fields:
        raise ValueError(f"`{field}` is missing, wanted {wanted}")
    try:
        array = np.asarray(fields[field])
    except (TypeError, ValueError) as error:  # rows of other lengths; a tensor that numpy cannot take
        raise ValueError(f"`{field}` is no array, wanted {wanted}: {error}") from error
    if array.dtype.kind not in kinds or (array.shape != shape if shape else array.ndim != 1):
        raise ValueError(f"`{field}` holds {array.dtype} of shape {array.shape}, wanted {wanted}")
    return array
