"""Read detections and truth from JSON files, one per case ("girih-detections/1")."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from girih_metrics.interfaces import Case

SCHEMA = "girih-detections/1"


def read_cases(
    predictions: Path | str,
    truth: Path | str,
    *,
    unit: Literal["voxel", "mm"] = "voxel",
    allow_missing: bool = False,
) -> list[Case]:
    """Return one case per file `<case_id>.json` in the folder `truth`, by case id.

    Args:
        predictions: folder of files {schema, case_id, classes, boxes, scores, labels, boxes_ras_mm}.
        truth: folder of files with patient_id and without scores; `ignore`, `centers_ras_mm` and `diameters_mm`
            may be there.
        unit: "voxel" reads `boxes`; "mm" reads `boxes_ras_mm` (x0, y0, z0, x1, y1, z1), centres and diameters.
        allow_missing: take a case without a file of predictions as one without predictions.

    Raises:
        ValueError: not a folder, no truth, broken JSON, NaN or infinity, another schema, a case id that is not the
            file's name, a prediction for an unknown case, a missing prediction, classes that differ between files, a
            missing key; the message names the file.
    """
    if unit not in ("voxel", "mm"):
        raise ValueError(f"unit is {unit!r}; wanted 'voxel' or 'mm'")
    truths, predicted = _documents(Path(truth)), _documents(Path(predictions))
    if not truths:
        raise ValueError(f"{truth}: no .json file; wanted one per case")
    unknown = sorted(set(predicted) - set(truths))
    if unknown:
        raise ValueError(f"{predictions}: predictions for unknown case {unknown[0]!r}; {truth} has no such file")
    missing = sorted(set(truths) - set(predicted))
    if missing and not allow_missing:
        raise ValueError(
            f"{predictions}: no prediction file for case {missing[0]!r} ({len(missing)} of {len(truths)} missing); "
            "wanted one file per case, with empty lists where nothing was found"
        )
    classes = _classes(next(iter(truths.items())))
    for document in (*truths.items(), *predicted.items()):
        if _classes(document) != classes:
            raise ValueError(f"{document[0]}: classes are {_classes(document)}; wanted {classes} as in the other files")
    return [_case(name, truths[name], predicted.get(name), unit, (Path(truth), Path(predictions))) for name in truths]


def read_classes(truth: Path | str) -> tuple[str, ...]:
    """Return the class names that the files of `truth` state.

    Raises:
        ValueError: as `read_cases`.
    """
    documents = _documents(Path(truth))
    if not documents:
        raise ValueError(f"{truth}: no .json file; wanted one per case")
    return _classes(next(iter(documents.items())))


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        ValueError: not readable as JSON, or it holds NaN or an infinity.
    """

    def refuse(word: str) -> float:
        raise ValueError(f"{path}: holds {word}; wanted finite numbers")

    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text, parse_constant=refuse)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not JSON: {error}") from error


def _documents(folder: Path) -> dict[str, dict[str, Any]]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: is not a folder; wanted a folder of <case_id>.json")
    documents = {}
    for path in sorted(folder.glob("*.json")):
        document = read_json(path)
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            found = document.get("schema") if isinstance(document, dict) else type(document).__name__
            raise ValueError(f"{path}: schema is {found!r}; wanted {SCHEMA!r}")
        if document.get("case_id") != path.stem:
            raise ValueError(f"{path}: case_id is {document.get('case_id')!r}; wanted the file's name, {path.stem!r}")
        documents[path.stem] = document
    return documents


def _classes(document: tuple[str, dict[str, Any]]) -> tuple[str, ...]:
    classes = _field(document[0], document[1], "classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"{document[0]}: classes are {classes}; wanted a list of names")
    return tuple(classes)


def _case(
    case_id: str, truth: dict[str, Any], predicted: dict[str, Any] | None, unit: str, folders: tuple[Path, Path]
) -> Case:
    real_at, found_at = (str(folder / f"{case_id}.json") for folder in folders)
    found = predicted if predicted is not None else {"boxes": [], "boxes_ras_mm": [], "scores": [], "labels": []}
    case: Case = {
        "case_id": case_id,
        "group": str(truth.get("patient_id") or case_id),
        "gt_boxes": _boxes(real_at, truth, unit),
        "gt_labels": _array(real_at, truth, "labels", np.int64),
        "pred_boxes": _boxes(found_at, found, unit),
        "pred_scores": _array(found_at, found, "scores", np.float64),
        "pred_labels": _array(found_at, found, "labels", np.int64),
    }
    if truth.get("ignore") is not None:
        case["gt_ignore"] = _array(real_at, truth, "ignore", np.bool_)
    if unit == "mm" and truth.get("centers_ras_mm") is not None:
        case["gt_centers"] = _points(real_at, truth, "centers_ras_mm")
    if unit == "mm" and truth.get("diameters_mm") is not None:
        case["gt_diameters"] = _array(real_at, truth, "diameters_mm", np.float64)
    return case


def _boxes(where: str, document: dict[str, Any], unit: str) -> np.ndarray:
    key = "boxes" if unit == "voxel" else "boxes_ras_mm"
    boxes = _array(where, document, key, np.float64)
    if boxes.size == 0:
        return boxes.reshape(0, 6)
    if boxes.ndim != 2 or boxes.shape[1] != 6:
        raise ValueError(f"{where}: {key} has shape {boxes.shape}; wanted (n, 6)")
    return boxes if unit == "voxel" else boxes[:, [2, 1, 0, 5, 4, 3]]


def _points(where: str, document: dict[str, Any], key: str) -> np.ndarray:
    points = _array(where, document, key, np.float64)
    if points.size and (points.ndim != 2 or points.shape[1] != 3):
        raise ValueError(f"{where}: {key} has shape {points.shape}; wanted (n, 3)")
    return points.reshape(-1, 3)[:, ::-1]


def _array(where: str, document: dict[str, Any], key: str, dtype: type) -> np.ndarray:
    raw = _field(where, document, key)
    try:
        values = np.asarray(raw)
    except ValueError as error:
        raise ValueError(f"{where}: {key} is ragged; wanted rows of one length") from error
    wanted = {np.int64: "iu", np.float64: "iuf", np.bool_: "b"}[dtype]
    if values.size and values.dtype.kind not in wanted:
        raise ValueError(f"{where}: {key} holds {values.dtype}; wanted {np.dtype(dtype).name}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"{where}: {key} holds a number too large for float64; wanted finite numbers")
    return values.astype(dtype)


def _field(where: str, document: dict[str, Any], key: str) -> Any:
    if key not in document:
        raise ValueError(f"{where}: {key} is missing; found {sorted(document)}")
    return document[key]
