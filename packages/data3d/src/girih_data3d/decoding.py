"""Decode a whole case and compare its voxels with its record."""

import math

import numpy as np
from jaxtyping import Bool, Int32, Int64, Shaped
from scipy import ndimage

from girih_data3d.case import Case
from girih_data3d.errors import CorruptCaseError
from girih_data3d.objects import Objects

SLAB = 64
"""Planes that are decoded at a time."""
ROUNDING = 1e-3
"""Voxels by which float32 may move a box's edge."""


def check_content(case: Case) -> None:
    """Decode every chunk; check that values are finite and that labels agree with the recorded objects and foreground.

    Raises:
        CorruptCaseError: they do not, or a chunk cannot be decoded.
    """
    if not (math.isfinite(case.scale) and math.isfinite(case.offset)):
        raise CorruptCaseError(case.case_id, case.where.locate("0"), f"scale {case.scale}, offset {case.offset}")
    found = Found(case.objects, painted=case.source.get("paint") is not None)
    foreground = case.foreground.astype(np.int64)
    confirmed = np.zeros(len(foreground), bool)
    for z in range(0, case.shape[1], SLAB):
        start, size = (z, 0, 0), (min(SLAB, case.shape[1] - z), *case.shape[2:])
        stored = case.read_patch(start, size, raw=True)
        if not np.isfinite(stored).all():
            lost = int(np.count_nonzero(~np.isfinite(stored)))
            raise CorruptCaseError(case.case_id, case.where.locate("0"), f"{lost} values are not finite")
        layers = case.read_instance_layers(start, size)
        for number, layer in enumerate(layers):
            found.add(layer, number, z)
        classes = found.classes(layers)
        if "semantic" in case.label_kinds:
            classes = [case.read_label_patch("semantic", start, size)]
        if "valid" in case.label_kinds:
            case.read_label_patch("valid", start, size)
        here = np.flatnonzero((foreground[:, 1] >= z) & (foreground[:, 1] < z + size[0]))
        confirmed[here] = _confirmed(classes, foreground[here] - [0, z, 0, 0])
    problem = found.problem()
    if problem is not None:
        raise CorruptCaseError(case.case_id, case.where.locate("labels"), problem)
    if not confirmed.all():
        wrong = foreground[~confirmed][0].tolist()
        reason = f"{np.count_nonzero(~confirmed)} rows do not agree with the labels, first {wrong}"
        raise CorruptCaseError(case.case_id, case.where.locate("foreground"), reason)


class Found:
    """Sizes and boxes of the objects in instance layers, slab by slab."""

    def __init__(self, objects: Objects, *, painted: bool) -> None:
        self.objects, self.painted = objects, painted
        self.voxels = np.zeros(len(objects), np.int64)
        self.low = np.full((len(objects), 3), np.inf)
        self.high = np.full((len(objects), 3), -np.inf)
        self.strangers = 0
        """Voxels with a number that no object of their layer has."""

    def add(self, labels: Int32[np.ndarray, "z y x"], layer: int, z: int) -> None:
        """Count a slab of a layer that begins at plane z."""
        for k, box in enumerate(ndimage.find_objects(labels)):
            if box is None:
                continue
            count = int(np.count_nonzero(labels[box] == k + 1))
            if k >= len(self.objects) or self.objects.layer[k] != layer:
                self.strangers += count
                continue
            self.voxels[k] += count
            self.low[k] = np.minimum(self.low[k], [side.start + at for side, at in zip(box, (z, 0, 0), strict=True)])
            self.high[k] = np.maximum(self.high[k], [side.stop + at for side, at in zip(box, (z, 0, 0), strict=True)])

    def classes(self, layers: list[Int32[np.ndarray, "z y x"]]) -> list[Int64[np.ndarray, "z y x"]]:
        """Return the class of every voxel's object, -1 where there is none to train on."""
        class_of = np.array([-1, *np.where(self.objects.ignore, -1, self.objects.labels)])
        return [class_of[np.clip(layer, 0, len(class_of) - 1)] for layer in layers]

    def problem(self) -> str | None:
        """Return how the objects differ from what is recorded."""
        if self.strangers:
            return f"{self.strangers} voxels belong to no recorded object"
        masked = self.objects.layer >= 0
        boxes = np.concatenate([self.low, self.high], axis=1)
        for k in np.flatnonzero(masked).tolist():
            if self.voxels[k] != self.objects.voxels[k]:
                return f"object {k} has {self.voxels[k]} voxels, {self.objects.voxels[k]} are recorded"
            wanted = self.objects.boxes[k]
            if self.painted:  # the box is as labelled, and the mask has whole voxels
                low, high = np.floor(wanted[:3] + ROUNDING), np.ceil(wanted[3:] - ROUNDING)
                wanted = np.concatenate([np.maximum(self.low[k], low), np.minimum(self.high[k], high)])
            if not np.array_equal(boxes[k], wanted):
                return f"object {k} has the box {boxes[k].tolist()}, {self.objects.boxes[k].tolist()} is recorded"
        return None


def _confirmed(classes: list[Shaped[np.ndarray, "z y x"]], rows: Int64[np.ndarray, "n 4"]) -> Bool[np.ndarray, " n"]:
    """Return which rows (class, z, y, x) have their class in one of the label maps."""
    out = np.zeros(len(rows), bool)
    for labels in classes:
        inside = (rows[:, 1:] < labels.shape).all(axis=1)
        z, y, x = rows[inside, 1:].T
        out[inside] |= labels[z, y, x] == rows[inside, 0]
    return out
