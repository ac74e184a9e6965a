"""What is known of the objects of a case: masks, boxes, or points with a diameter, on the grid of its scan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float64, Int32

from girih_data3d.affine import boxes_to_ras, move_boxes
from girih_data3d.case_source import CaseSource
from girih_data3d.errors import ScanError
from girih_data3d.instances import Mask, find_windows, stack_masks
from girih_data3d.object_label import ObjectLabel
from girih_data3d.object_rules import ObjectRule, tight
from girih_data3d.painting import Paint, paint_mask
from girih_data3d.prepare import Grid, labels_on_grid
from girih_data3d.scan import read_labels

THINNEST = 0.01
"""Shortest side of an object in voxels; nnDetection drops boxes below it. Less inside the scan means: outside."""
DECIMALS = 6
"""Of box edges in voxels: a whole edge that went through two affines is whole again."""


@dataclass(frozen=True)
class Annotations:
    """Objects in voxel edges (z, y, x) of the canonical scan; those to ignore come last."""

    records: list[dict[str, Any]]
    """{"id", "class", "ignore"}; the id is the number in the label file, or the place among all that were listed or
    found, from 0."""
    boxes: Float64[np.ndarray, "n 6"]
    """Clipped to the scan."""
    layers: list[Int32[np.ndarray, "z y x"]]
    """Object k has the value k + 1 in one of them; empty if the objects have no masks."""
    spheres: tuple[ObjectLabel | None, ...]
    """Of each object, its centre and diameter if that is how it was labelled."""
    clipped: int = 0
    """Number of objects that reach out of the scan."""
    found: Mapping[str, int] = field(default_factory=dict)
    """What a rule found and dropped."""
    whole: Float64[np.ndarray, "n 6"] | None = None
    """Of objects without masks: the boxes before they were clipped."""
    paint: Paint | None = None
    """What fills these to make masks of them."""


def read_annotations(source: CaseSource, scan: xr.DataArray, classes: tuple[str, ...]) -> Annotations | None:
    """Return the objects of a case; None if it is unlabelled.

    Raises:
        ScanError: a label file cannot be read or holds an object of another one, its numbers and the case's classes do
            not agree, an object lies outside the scan, or a rule gives an empty mask or one outside the scan.
    """
    if source.instances:
        return _from_masks(source, scan, classes)
    if source.rule is not None:
        return _from_rule(source, source.rule, scan, classes)
    if source.objects is not None:
        return _from_labels(source, source.objects, scan, classes)
    return None


def ground_truth(
    source: CaseSource, scan: xr.DataArray, annotations: Annotations | None, classes: tuple[str, ...]
) -> dict[str, Any] | None:
    """Return the ground truth in the source file's voxels, before any resampling; None if unlabelled."""
    if annotations is None:
        return None
    affine, source_affine = scan.attrs["affine"], scan.attrs["source_affine"]
    truth = {
        "schema": "girih-detections/1",
        "case_id": source.case_id,
        "patient_id": source.patient_id or source.case_id,
        "classes": list(classes),
        "shape_zyx": [int(n) for n in scan.attrs["source_shape_zyx"]],
        "affine": source_affine.tolist(),
        "space": "source",
        "boxes": np.round(move_boxes(annotations.boxes, affine, source_affine), DECIMALS).tolist(),
        "labels": [record["class"] for record in annotations.records],
        "ignore": [record["ignore"] for record in annotations.records],
        "boxes_ras_mm": boxes_to_ras(annotations.boxes, affine).tolist(),
    }
    spheres = [sphere for sphere in annotations.spheres if sphere is not None]
    if len(spheres) == len(annotations.records) and not annotations.layers:
        truth["centers_ras_mm"] = [list(sphere.center_ras_mm or ()) for sphere in spheres]
        truth["diameters_mm"] = [sphere.diameter_mm for sphere in spheres]
    return truth


def objects_on_grid(
    annotations: Annotations, grid: Grid
) -> tuple[list[dict[str, Any]], list[Int32[np.ndarray, "Z Y X"]]]:
    """Return the records of the objects on a prepared grid, as `Objects.from_record` takes them, and their layers.

    With masks, boxes are those of the masks on this grid, to which they are resampled. Without, boxes and spheres are
    moved; the exact voxel size of the grid counts. They stay as labelled where masks are painted, which is done here,
    so that no resampling blurs them: `paint_mask` tells how far a mask is from its box.
    """
    start = np.array(grid.start)
    scale = np.tile(np.array(grid.shape) / (np.array(grid.stop) - start), 2)
    boxes = (annotations.boxes - np.tile(start, 2)) * scale
    layers = [labels_on_grid(layer, grid) for layer in annotations.layers]
    if annotations.whole is not None and annotations.paint is not None:
        whole = np.round((annotations.whole - np.tile(start, 2)) * scale, DECIMALS)
        layers = stack_masks([paint_mask(box, grid.shape, annotations.paint) for box in whole], grid.shape)
    records = [{**record, "box": box} for record, box in zip(annotations.records, boxes.tolist(), strict=True)]
    for level, layer in enumerate(layers):
        for value, window in find_windows(layer).items():
            records[value - 1] |= {"voxels": int(np.count_nonzero(layer[window] == value)), "layer": level}
            if annotations.paint is None:
                records[value - 1]["box"] = [float(s.start) for s in window] + [float(s.stop) for s in window]
    for record, sphere in zip(records, annotations.spheres, strict=True):
        if sphere is not None and not layers:
            centre, radii = sphere.sphere_in(grid.affine)
            record |= {"centre": centre.tolist(), "radii": radii.tolist()}
    return records, layers


def _from_masks(source: CaseSource, scan: xr.DataArray, classes: tuple[str, ...]) -> Annotations:
    masks: dict[int, Mask] = {}
    for path in source.instances:
        labels = read_labels(path, like=scan).values
        for number, window in find_windows(labels).items():
            if number in masks:
                raise ScanError(f"{path}: object {number} is in another label file of the case too")
            masks[number] = (window, labels[window] == number)
    given = source.instance_classes
    if given is None:
        given = dict.fromkeys(masks, 0) if len(classes) == 1 else {}
    _check_numbers(source, masks, given, classes)
    order = sorted(masks, key=lambda number: (number in source.ignore, number))
    return Annotations(
        records=[{"id": n, "class": given[n], "ignore": n in source.ignore} for n in order],
        boxes=_edges([masks[number] for number in order]),
        layers=stack_masks([masks[number] for number in order], _shape(scan)),
        spheres=(None,) * len(order),
    )


def _from_rule(source: CaseSource, rule: ObjectRule, scan: xr.DataArray, classes: tuple[str, ...]) -> Annotations:
    found = rule.find(scan)
    where = f"case {source.case_id!r}, {type(rule).__name__}"
    if len(found.masks) != len(found.classes):
        raise ScanError(f"{where}: {len(found.masks)} masks and {len(found.classes)} classes, wanted one of each")
    masks = []
    for k, (mask, index) in enumerate(zip(found.masks, found.classes, strict=True)):
        if not 0 <= index < len(classes):
            raise ScanError(f"{where}: object {k} has class {index}, wanted 0 to {len(classes) - 1}")
        masks.append(_checked_mask(mask, _shape(scan), f"{where}: object {k}"))
    return Annotations(
        records=[{"id": k, "class": int(index), "ignore": False} for k, index in enumerate(found.classes)],
        boxes=_edges(masks),
        layers=stack_masks(masks, _shape(scan)),
        spheres=(None,) * len(masks),
        found=found.counts,
    )


def _checked_mask(mask: Mask, shape: tuple[int, int, int], where: str) -> Mask:
    """Return a rule's mask without the empty planes around it."""
    window, inside = mask
    ends = [(side.start, side.stop) for side in window]
    sizes = tuple(stop - start for start, stop in ends)
    if not all(0 <= start < stop <= n for (start, stop), n in zip(ends, shape, strict=True)) or sizes != inside.shape:
        raise ScanError(f"{where}: a mask of shape {inside.shape} at {ends}, wanted one inside the scan of {shape}")
    found = tight(mask)
    if found is None:
        raise ScanError(f"{where}: its mask has no voxel")
    return found


def _edges(masks: Sequence[Mask]) -> Float64[np.ndarray, "n 6"]:
    """Return the boxes of masks in voxel edges."""
    edges = [[side.start for side in window] + [side.stop for side in window] for window, _ in masks]
    return np.array(edges, np.float64).reshape(-1, 6)


def _check_numbers(
    source: CaseSource, masks: Mapping[int, Mask], given: Mapping[int, int], classes: tuple[str, ...]
) -> None:
    where = f"case {source.case_id!r}, {', '.join(str(path) for path in source.instances)}"
    for name, numbers, others in (
        ("has no class in instance_classes", masks, given),
        ("has a class, but no voxel", given, masks),
        ("is to be ignored, but has no voxel", source.ignore, masks),
    ):
        lost = sorted(set(numbers) - set(others))
        if lost:
            raise ScanError(f"{where}: object {lost[0]} {name} ({len(lost)} such objects)")
    for number, index in given.items():
        if not 0 <= index < len(classes):
            raise ScanError(f"{where}: object {number} has class {index}, wanted 0 to {len(classes) - 1}")


def _from_labels(
    source: CaseSource, labels: Sequence[ObjectLabel], scan: xr.DataArray, classes: tuple[str, ...]
) -> Annotations:
    limits = np.tile(np.array(_shape(scan), np.float64), 2)
    boxes, whole = np.zeros((len(labels), 6)), np.zeros((len(labels), 6))
    for k, label in enumerate(labels):
        where = f"case {source.case_id!r}: objects[{k}]"
        if not 0 <= label.class_index < len(classes):
            raise ScanError(f"{where} has class {label.class_index}, wanted 0 to {len(classes) - 1}")
        whole[k] = np.round(label.box_in(scan.attrs["affine"], scan.attrs["source_affine"]), DECIMALS)
        boxes[k] = whole[k].clip(0, limits)
        if (boxes[k, 3:] - boxes[k, :3]).min() < THINNEST:
            place = label.box_zyx or label.box_ras_mm or label.center_ras_mm
            raise ScanError(
                f"{where} at {list(place or ())} is the box {whole[k].tolist()} in voxels of the canonical scan of "
                f"shape {_shape(scan)}: along one axis less than {THINNEST} voxels lie inside, wanted more"
            )
        if label.box_zyx is not None and np.abs(whole[k] - boxes[k]).max() > 1:
            raise ScanError(
                f"{where} at {list(label.box_zyx)} reaches out of the image's array by more than a voxel, whose shape "
                f"(z, y, x) is {tuple(scan.attrs['source_shape_zyx'])}"
            )
    order = sorted(range(len(labels)), key=lambda k: labels[k].ignore)
    return Annotations(
        records=[{"id": k, "class": labels[k].class_index, "ignore": labels[k].ignore} for k in order],
        boxes=boxes[order],
        layers=[],
        spheres=tuple(labels[k] if labels[k].center_ras_mm is not None else None for k in order),
        clipped=int((boxes != whole).any(axis=1).sum()),
        whole=whole[order],
        paint=source.paint,
    )


def _shape(scan: xr.DataArray) -> tuple[int, int, int]:
    return scan.sizes["z"], scan.sizes["y"], scan.sizes["x"]
