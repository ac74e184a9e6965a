"""Boxes of a prepared volume, back on the grid of the source scan and in patient space.

An affine maps voxel centres (x, y, z index) to millimetres; a box is voxel edges (z, y, x), so edge e is index e - 0.5.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

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
        ValueError: a number that is not finite, a label without a class, an affine that is not invertible.
    """
    boxes = np.asarray(detections["boxes"], dtype=np.float64)
    scores, labels = np.asarray(detections["scores"]), np.asarray(detections["labels"])
    _check(boxes, scores, labels, case_id, len(classes))
    source_affine = _affine(prepared, "source_affine", case_id)
    world = _map(_corners(boxes), _affine(prepared, "affine", case_id))
    index = _map(world, np.linalg.inv(source_affine))  # (n, 8, xyz), voxel centres
    source = _hull(index[..., ::-1] + 0.5)
    return {
        "schema": SCHEMA,
        "case_id": case_id,
        "classes": list(classes),
        "shape_zyx": [int(n) for n in prepared["source_shape_zyx"]],
        "affine": source_affine.tolist(),
        "space": "source",
        "boxes": source.tolist(),
        "scores": scores.astype(np.float64).tolist(),
        "labels": labels.astype(np.int64).tolist(),
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


def _affine(prepared: Mapping[str, Any], key: str, case_id: str) -> Float64[np.ndarray, "4 4"]:
    affine = np.asarray(prepared[key], dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or np.linalg.matrix_rank(affine) < 4:
        raise ValueError(f"case {case_id}: `{key}` is not an invertible (4, 4) matrix: {affine.tolist()}")
    return affine


def _check(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, case_id: str, classes: int) -> None:
    if boxes.shape != (len(scores), 6) or labels.shape != scores.shape:
        raise ValueError(
            f"case {case_id}: boxes {boxes.shape}, scores {scores.shape}, labels {labels.shape}; "
            "wanted (n, 6), (n,), (n,)"
        )
    good = np.isfinite(boxes).all(axis=1) & np.isfinite(scores) & (labels >= 0) & (labels < classes)
    if not good.all():
        row = int((~good).argmax())
        raise ValueError(
            f"case {case_id}, row {row}: box {boxes[row].tolist()}, score {scores[row]}, label {labels[row]}; "
            f"wanted finite numbers and a label in 0..{classes - 1}"
        )
