"""nnDetection: a folder of predictions and a folder of `<case>_boxes_gt.npz` (keys boxes, classes).

Its predictions are pickles, which we do not open: a pickle can run code. Write them as JSON where nnDetection is
installed:

    import json
    from pathlib import Path

    import numpy as np
    from nndet.io.load import load_pickle

    for path in Path("test_predictions").glob("*_boxes.pkl"):
        result = load_pickle(path)
        keys = ("pred_boxes", "pred_scores", "pred_labels")
        path.with_suffix(".json").write_text(json.dumps({key: np.asarray(result[key]).tolist() for key in keys}))
"""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import numpy as np

from girih_metrics.convert import from_nndetection, to_nndetection
from girih_metrics.files import read_json
from girih_metrics.formats.loaded import Loaded, field, known_cases, labels_of, numbered_classes, numbers
from girih_metrics.interfaces import Case

TRUTH, PREDICTION = "_boxes_gt.npz", "_boxes.json"


def read(predictions: Path, truth: Path, classes: Sequence[str] | None = None) -> Loaded:
    """Return the cases of both folders, in voxels, unpadded.

    Labels are named by `classes`, else class0, class1 ... up to the highest in truth or predictions.

    Boxes keep nnDetection's padding, first index - 1 to last index + 1, on both sides, so that overlaps are its own.

    Raises:
        ValueError: a missing folder, file or key, a broken file, a prediction for an unknown case, a label beyond
            `classes`.
    """
    truths = {path.name[: -len(TRUTH)]: path for path in sorted(truth.glob(f"*{TRUTH}"))}
    found = {path.name[: -len(PREDICTION)]: path for path in sorted(predictions.glob(f"*{PREDICTION}"))}
    if not truths:
        raise ValueError(f"{truth}: no file *{TRUTH}; wanted one per case")
    known_cases(set(found), set(truths), str(predictions))
    cases: list[Case] = []
    for case_id, path in truths.items():
        if case_id not in found:
            raise ValueError(f"{predictions}: no file {case_id}{PREDICTION}; wanted one per case")
        where, document = str(found[case_id]), read_json(found[case_id])
        boxes, labels = _truth(path)
        pred_boxes = numbers(field(document, "pred_boxes", where), 6, where)
        cases.append(
            {
                "case_id": case_id,
                "gt_boxes": from_nndetection(boxes, padded=False),
                "gt_labels": labels,
                "pred_boxes": from_nndetection(pred_boxes, padded=False),
                "pred_scores": numbers(field(document, "pred_scores", where), None, where),
                "pred_labels": labels_of(field(document, "pred_labels", where), where),
            }
        )
    return Loaded(cases, numbered_classes(cases, classes), "voxel")


def write(loaded: Loaded, predictions: Path, truth: Path) -> None:
    """Write both folders; the boxes are taken as nnDetection's, padding included."""
    for folder in (predictions, truth):
        folder.mkdir(parents=True, exist_ok=True)
    for case in loaded.cases:
        boxes = to_nndetection(case["gt_boxes"], padded=False)
        np.savez(truth / f"{case['case_id']}{TRUTH}", boxes=boxes, classes=case["gt_labels"])
        document = {
            "pred_boxes": to_nndetection(case["pred_boxes"], padded=False).tolist(),
            "pred_scores": case["pred_scores"].tolist(),
            "pred_labels": case["pred_labels"].tolist(),
        }
        (predictions / f"{case['case_id']}{PREDICTION}").write_text(json.dumps(document), encoding="utf-8")


def _truth(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not is_zipfile(path):
        raise ValueError(f"{path}: is not a .npz archive")
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {key: archive[key] for key in archive.files if key in ("boxes", "classes")}
    except (ValueError, BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path}: {error}; wanted a whole .npz archive of numbers") from error
    boxes, classes = field(found, "boxes", str(path)), field(found, "classes", str(path))
    return numbers(boxes, 6, str(path)), labels_of(classes, str(path))
