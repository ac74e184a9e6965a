"""The formats by name."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from girih_metrics.formats import coco, girih, luna16, monai, nndetection, table
from girih_metrics.formats.loaded import Loaded, Unit

Reader = Callable[[Path, Path], Loaded]
Writer = Callable[[Loaded, Path, Path], None]

FORMATS: dict[str, tuple[Reader, Writer]] = {
    "girih": (girih.read, girih.write),
    "csv": (table.read, table.write),
    "nndetection": (nndetection.read, nndetection.write),
    "monai": (monai.read, monai.write),
    "coco": (coco.read, coco.write),
    "luna16": (luna16.read, luna16.write),
}
"""{name: (read, write)}; see the module of that name ("csv": table)."""

OPEN = {"csv": table.read, "nndetection": nndetection.read, "monai": monai.read}
"""Formats that do not list their classes."""

OPTIONAL = ("group", "gt_ignore", "gt_centers", "gt_diameters", "pred_points", "gt_masks", "pred_masks")
KEPT: dict[str, frozenset[str]] = {
    "girih": frozenset({"group", "gt_ignore", "gt_centers", "gt_diameters"}),
    "csv": frozenset({"group", "gt_ignore"}),
    "nndetection": frozenset(),
    "monai": frozenset(),
    "coco": frozenset({"gt_ignore"}),
    "luna16": frozenset({"gt_ignore", "gt_centers", "gt_diameters", "pred_points"}),
}
"""Which optional keys of a case the files of each format hold."""


def read_format(
    name: str,
    predictions: Path | str,
    truth: Path | str,
    *,
    unit: Unit | None = None,
    classes: Sequence[str] | None = None,
) -> Loaded:
    """Read predictions and truth of the format `name`.

    Args:
        name: one of `FORMATS`.
        predictions: file or folder.
        truth: file or folder.
        unit: which of the two boxes that girih files hold; None: voxel. Other formats have one unit.
        classes: for "csv" the classes and their order, for "nndetection" and "monai" the names of labels 0, 1 ...;
            None: those that occur in truth or predictions. Other formats state their classes.

    Raises:
        ValueError: an unknown format, files that are not of it, a unit or classes that the format does not have.
    """
    pair = Path(predictions), Path(truth)
    if name == "girih":
        loaded = girih.read(*pair, unit=unit or "voxel")
    elif name in OPEN:
        loaded = OPEN[name](*pair, classes=classes)
    else:
        loaded = _of(name)[0](*pair)
    if unit is not None and loaded.unit != unit:
        raise ValueError(f"unit is {unit!r}; {name} files hold boxes in {loaded.unit}")
    if classes is not None and loaded.classes != tuple(classes):
        raise ValueError(f"classes are {tuple(classes)}; the files of {name} state {loaded.classes}")
    return loaded


def common_classes(name: str, found: Sequence[Loaded]) -> tuple[str, ...]:
    """Return classes that hold those of several readings of one truth, each with other predictions."""
    if name == "csv":
        return tuple(sorted({label for loaded in found for label in loaded.classes}))
    return max((loaded.classes for loaded in found), key=len)


def write_format(name: str, loaded: Loaded, predictions: Path | str, truth: Path | str) -> tuple[str, ...]:
    """Write predictions and truth in the format `name`.

    Returns:
        What the cases held and the files do not: "classes", or keys of `Case`. A group that is the case's own id does
        not count.

    Raises:
        ValueError: an unknown format, boxes in voxels for one that knows world millimetres only, or the reverse, or
            an ignored object for one that cannot mark it.
    """
    wanted = {"girih": loaded.unit, "monai": "mm", "luna16": "mm"}.get(name, "voxel")
    write = _of(name)[1]
    if loaded.unit != wanted:
        raise ValueError(f"the boxes are in {loaded.unit}; {name} wants {wanted}")
    kept = KEPT[name]
    if "gt_ignore" not in kept:
        for case in loaded.cases:
            rows = np.flatnonzero(case.get("gt_ignore", ()))
            if len(rows):
                raise ValueError(
                    f"case {case['case_id']!r}: gt_ignore row {rows[0]} is set; {name} cannot mark ignored objects"
                )
    held = {key for case in loaded.cases for key in case if key != "group" or case["group"] != case["case_id"]}
    if name == "girih" and loaded.unit == "voxel":
        kept = kept - {"gt_centers", "gt_diameters"}  # its keys for them are in millimetres
    dropped = [key for key in OPTIONAL if key in held - kept - {"gt_ignore"}]
    if name == "luna16" and len(loaded.classes) > 1:
        dropped.insert(0, "classes")
    if name in ("nndetection", "monai") and loaded.classes != tuple(f"class{k}" for k in range(len(loaded.classes))):
        dropped.insert(0, "classes")  # their files hold numbers, not names
    write(loaded, Path(predictions), Path(truth))
    return tuple(dropped)


def _of(name: str) -> tuple[Reader, Writer]:
    if name not in FORMATS:
        raise ValueError(f"format is {name!r}; wanted one of {sorted(FORMATS)}")
    return FORMATS[name]
