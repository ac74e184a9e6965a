"""In the manner of COCO, in 3D: a truth file {images, categories, annotations} and a list of predictions.

An annotation is {image_id, category_id, bbox: [x, y, z, width, height, depth], ignore?}, a prediction the same with
score. The case is the image's `file_name` without .nii.gz, or its id.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from girih_metrics.convert import from_coco, to_coco
from girih_metrics.files import read_json
from girih_metrics.formats.loaded import Loaded, case_id_of, entries, field, numbers
from girih_metrics.interfaces import Case


def read(predictions: Path, truth: Path) -> Loaded:
    """Return the cases of all images, in voxels; classes in the order of the category ids.

    Raises:
        ValueError: a missing key, an id that is none, an image that occurs twice, an unknown image or category.
    """
    document, found = read_json(truth), read_json(predictions)
    images: dict[Any, str] = {}
    for image in entries(field(document, "images", str(truth)), f"{truth}: images"):
        number = _id(image, "id", f"{truth}: images")
        if number in images:
            raise ValueError(f"{truth}: image id {number!r} occurs more than once")
        images[number] = case_id_of(str(image.get("file_name", number)))
    names = {
        _id(category, "id", f"{truth}: categories"): str(field(category, "name", f"{truth}: categories"))
        for category in entries(field(document, "categories", str(truth)), f"{truth}: categories")
    }
    label = {number: k for k, number in enumerate(sorted(names, key=lambda number: (isinstance(number, str), number)))}
    truths = _grouped(field(document, "annotations", str(truth)), images, label, f"{truth}: annotations")
    preds = _grouped(found, images, label, str(predictions))
    cases: list[Case] = []
    for image, case_id in images.items():
        gts, ours, where = truths[image], preds[image], f"{predictions}: case {case_id!r}"
        cases.append(
            {
                "case_id": case_id,
                "gt_boxes": _boxes(gts, f"{truth}: case {case_id!r}"),
                "gt_labels": np.array([label[row["category_id"]] for row in gts], dtype=np.int64),
                "gt_ignore": np.array([bool(row.get("ignore", row.get("iscrowd", 0))) for row in gts], dtype=bool),
                "pred_boxes": _boxes(ours, where),
                "pred_scores": numbers([field(row, "score", where) for row in ours], None, where),
                "pred_labels": np.array([label[row["category_id"]] for row in ours], dtype=np.int64),
            }
        )
    return Loaded(cases, tuple(names[number] for number in label), "voxel")


def write(loaded: Loaded, predictions: Path, truth: Path) -> None:
    """Write both files."""
    annotations: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image, case in enumerate(loaded.cases):
        ignore = case.get("gt_ignore", np.zeros(len(case["gt_labels"]), dtype=bool))
        for k, box in enumerate(to_coco(case["gt_boxes"]).tolist()):
            row = {"id": len(annotations), "image_id": image, "category_id": int(case["gt_labels"][k]), "bbox": box}
            annotations.append(row | {"ignore": int(ignore[k])})
        for k, box in enumerate(to_coco(case["pred_boxes"]).tolist()):
            row = {"image_id": image, "category_id": int(case["pred_labels"][k]), "bbox": box}
            found.append(row | {"score": float(case["pred_scores"][k])})
    document = {
        "images": [{"id": image, "file_name": case["case_id"]} for image, case in enumerate(loaded.cases)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(loaded.classes)],
        "annotations": annotations,
    }
    for path, content in ((truth, document), (predictions, found)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")


def _grouped(rows: Any, images: dict[Any, str], label: dict[Any, int], where: str) -> dict[Any, list[dict[str, Any]]]:
    grouped: dict[Any, list[dict[str, Any]]] = {image: [] for image in images}
    for k, row in enumerate(entries(rows, where)):
        image, category = _id(row, "image_id", f"{where} row {k}"), _id(row, "category_id", f"{where} row {k}")
        if image not in grouped or category not in label:
            raise ValueError(f"{where}: row {k} has image_id {image!r}, category_id {category!r}; wanted known ones")
        grouped[image].append(row)
    return grouped


def _id(row: Any, key: str, where: str) -> int | str:
    found = field(row, key, where)
    if not isinstance(found, int | str):
        raise ValueError(f"{where}: {key} is {found!r}; wanted a whole number or a text")
    return found


def _boxes(rows: list[dict[str, Any]], where: str) -> np.ndarray:
    return from_coco(numbers([field(row, "bbox", where) for row in rows], 6, where))
