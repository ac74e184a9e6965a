"""In the manner of COCO, in 3D: a truth file {images, categories, annotations} and a list of predictions.

An annotation is {image_id, category_id, bbox: [x, y, z, width, height, depth], ignore?}, a prediction the same with
score. The case is the image's `file_name` without suffix, or its id.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from girih_metrics.convert import from_coco, to_coco
from girih_metrics.files import read_json
from girih_metrics.formats.loaded import Loaded, field, numbers
from girih_metrics.interfaces import Case


def read(predictions: Path, truth: Path) -> Loaded:
    """Return the cases of all images, in voxels; classes in the order of the category ids.

    Raises:
        ValueError: a missing key, or an unknown image or category.
    """
    document, found = read_json(truth), read_json(predictions)
    images = {
        field(image, "id", str(truth)): str(image.get("file_name", image["id"])).split("/")[-1].split(".")[0]
        for image in field(document, "images", str(truth))
    }
    categories = sorted(field(document, "categories", str(truth)), key=lambda category: int(category["id"]))
    label = {category["id"]: k for k, category in enumerate(categories)}
    truths = _grouped(field(document, "annotations", str(truth)), images, label, str(truth))
    preds = _grouped(found, images, label, str(predictions))
    cases: list[Case] = []
    for image, case_id in images.items():
        gts, ours = truths[image], preds[image]
        cases.append(
            {
                "case_id": case_id,
                "gt_boxes": _boxes(gts, str(truth)),
                "gt_labels": np.array([label[row["category_id"]] for row in gts], dtype=np.int64),
                "gt_ignore": np.array([bool(row.get("ignore", row.get("iscrowd", 0))) for row in gts], dtype=bool),
                "pred_boxes": _boxes(ours, str(predictions)),
                "pred_scores": numbers([field(row, "score", str(predictions)) for row in ours], None, str(predictions)),
                "pred_labels": np.array([label[row["category_id"]] for row in ours], dtype=np.int64),
            }
        )
    return Loaded(cases, tuple(str(field(category, "name", str(truth))) for category in categories), "voxel")


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
    for k, row in enumerate(rows):
        image, category = field(row, "image_id", where), field(row, "category_id", where)
        if image not in grouped or category not in label:
            raise ValueError(f"{where}: row {k} has image_id {image!r}, category_id {category!r}; wanted known ones")
        grouped[image].append(row)
    return grouped


def _boxes(rows: list[dict[str, Any]], where: str) -> np.ndarray:
    return from_coco(numbers([field(row, "bbox", where) for row in rows], 6, where))
