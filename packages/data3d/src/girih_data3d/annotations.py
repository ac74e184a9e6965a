"""Objects of a case: which numbers a label file holds, their classes, and the ground truth in the file's own voxels."""

from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Int32

from girih_data3d.affine import boxes_to_ras, move_boxes
from girih_data3d.errors import ScanError
from girih_data3d.instances import boxes_of, compact
from girih_data3d.manifest import CaseSource
from girih_data3d.scan import read_labels


def read_objects(
    source: CaseSource, scan: xr.DataArray, classes: tuple[str, ...]
) -> tuple[list[dict[str, Any]], Int32[np.ndarray, "z y x"] | None]:
    """Return the objects, those to ignore last, and the map in which object k has the value k + 1.

    Raises:
        ScanError: the label file cannot be read, or its numbers and the case's classes do not agree.
    """
    if source.instances is None:
        return [], None
    found, packed = compact(read_labels(source.instances, like=scan).values)
    wanted = source.instance_classes or (dict.fromkeys(found.tolist(), 0) if len(classes) == 1 else {})
    for name, numbers, others in (
        ("has no class", found.tolist(), wanted),
        ("has a class, but no voxel", wanted, found.tolist()),
        ("is to be ignored, but has no voxel", source.ignore, found.tolist()),
    ):
        lost = sorted(set(numbers) - set(others))
        if lost:
            raise ScanError(f"{source.instances}: object {lost[0]} {name} ({len(lost)} such objects)")
    for number, index in wanted.items():
        if not 0 <= index < len(classes):
            raise ScanError(f"{source.instances}: object {number} has class {index}, wanted 0 to {len(classes) - 1}")
    order = sorted(found.tolist(), key=lambda number: (number in source.ignore, number))
    rank = {number: k + 1 for k, number in enumerate(order)}
    instances = np.array([0, *(rank[number] for number in found.tolist())], np.int32)[packed]
    return [{"id": n, "class": wanted[n], "ignore": n in source.ignore} for n in order], instances


def ground_truth(
    source: CaseSource,
    scan: xr.DataArray,
    instances: Int32[np.ndarray, "z y x"] | None,
    objects: list[dict[str, Any]],
    classes: tuple[str, ...],
) -> dict[str, Any] | None:
    """Return the ground truth in the source file's voxels, measured on its own grid before any resampling."""
    if instances is None:
        return None
    boxes = boxes_of(instances, len(objects))
    affine, source_affine = scan.attrs["affine"], scan.attrs["source_affine"]
    return {
        "schema": "girih-detections/1",
        "case_id": source.case_id,
        "patient_id": source.patient_id or source.case_id,
        "classes": list(classes),
        "shape_zyx": [int(n) for n in scan.attrs["source_shape_zyx"]],
        "affine": source_affine.tolist(),
        "space": "source",
        "boxes": np.round(move_boxes(boxes, affine, source_affine), 6).tolist(),  # whole edges, but for rounding
        "labels": [record["class"] for record in objects],
        "ignore": [record["ignore"] for record in objects],
        "boxes_ras_mm": boxes_to_ras(boxes, affine).tolist(),
    }
