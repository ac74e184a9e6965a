"""AP against pycocotools on flat boxes: depth 1 makes a 3D overlap the 2D one."""

import numpy as np
import pytest

from girih_metrics import average_precision, match, nndetection_compat

pytest.importorskip("pycocotools", reason="pycocotools is not installed: dependency group `peers`")

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

CLASSES = ("a", "b", "absent")


def flat_boxes(rng, n):
    low = rng.uniform(0, 60, (n, 2))
    corners = np.concatenate([low, low + rng.uniform(3, 30, (n, 2))], axis=1)
    return np.stack([np.zeros(n), corners[:, 0], corners[:, 1], np.ones(n), corners[:, 2], corners[:, 3]], axis=1)


def random_cases(seed, *, levels=None, ignore=0.0, most=140):
    rng = np.random.default_rng(seed)
    cases = []
    for image in range(12):
        n, m = int(rng.integers(0, most)), int(rng.integers(0, 9))
        scores = rng.uniform(size=n) if levels is None else rng.integers(1, levels, n) / levels
        cases.append(
            {
                "case_id": f"{image:02}",
                "gt_boxes": flat_boxes(rng, m),
                "gt_labels": rng.integers(0, 2, m),
                "gt_ignore": rng.uniform(size=m) < ignore,
                "pred_boxes": flat_boxes(rng, n),
                "pred_scores": scores,
                "pred_labels": rng.integers(0, 2, n),
            }
        )
    return cases


def coco_ap(cases, thresholds):
    """AP (threshold, class) of pycocotools; objects are ignored through an area outside its only range."""
    images, annotations, results = [], [], []
    for image, case in enumerate(cases, start=1):
        images.append({"id": image})
        for box, label, ignored in zip(case["gt_boxes"], case["gt_labels"], case["gt_ignore"], strict=True):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": int(label) + 1, "iscrowd": 0,
                 "bbox": [*box[[2, 1]], *(box[[5, 4]] - box[[2, 1]])], "area": -1.0 if ignored else 1.0}
            )  # fmt: skip
        for box, label, score in zip(case["pred_boxes"], case["pred_labels"], case["pred_scores"], strict=True):
            results.append(
                {"image_id": image, "category_id": int(label) + 1, "score": score,
                 "bbox": [*box[[2, 1]], *(box[[5, 4]] - box[[2, 1]])]}
            )  # fmt: skip
    truth = COCO()
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    truth.dataset = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
    evaluation.params.iouThrs = np.asarray(thresholds)
    evaluation.params.areaRng, evaluation.params.areaRngLbl, evaluation.params.maxDets = [[0, 1e10]], ["all"], [100]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 0]
    return precision.mean(axis=1)


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_that_of_coco(seed):
    thresholds = [0.1, 0.3, 0.5, 0.75]
    cases = random_cases(seed)
    ours = average_precision(match(cases, classes=CLASSES, iou=thresholds))["ap_class"].values
    theirs = coco_ap(cases, thresholds)
    assert np.isnan(ours[:, 2]).all()
    assert (theirs[:, 2] == -1).all()
    np.testing.assert_allclose(ours[:, :2], theirs[:, :2], rtol=0, atol=1e-14)
    assert 0.01 < theirs[0, 0] < 0.99


@pytest.mark.parametrize("seed", range(3))
def test_ignored_objects_as_coco(seed):
    cases = random_cases(seed, ignore=0.4)
    ours = average_precision(match(cases, classes=CLASSES, iou=[0.1, 0.5], ignored="once"))["ap_class"].values
    np.testing.assert_allclose(ours[:, :2], coco_ap(cases, [0.1, 0.5])[:, :2], rtol=0, atol=1e-14)


@pytest.mark.parametrize("seed", range(3))
def test_compat_numbers_with_tied_scores(seed):
    """nnDetection took COCO's code, so its numbers are COCO's, tied scores and absent class included."""
    cases = random_cases(seed, levels=5)
    raw = nndetection_compat(cases, classes=CLASSES)
    theirs = coco_ap(cases, [0.1, 0.5])
    for row, suffix in enumerate(("0.10", "0.50")):
        for label, name in enumerate(CLASSES):
            assert raw[f"{name}_AP_IoU_{suffix}_MaxDet_100"] == pytest.approx(theirs[row, label], abs=1e-14)
        assert raw[f"AP_IoU_{suffix}_MaxDet_100"] == pytest.approx(theirs[row].mean(), abs=1e-14)


def test_recall_grid_is_coco_s_to_the_bit():
    """70 of 100 objects: 0.7 lies below the grid's 0.7000000000000001, in both."""
    boxes = np.array([[0.0, 20 * k, 0, 1, 20 * k + 9, 9] for k in range(100)])
    case = {
        "case_id": "0",
        "gt_boxes": boxes,
        "gt_labels": np.zeros(100, dtype=int),
        "gt_ignore": np.zeros(100, dtype=bool),
        "pred_boxes": boxes[:70],
        "pred_scores": np.linspace(1, 0.5, 70),
        "pred_labels": np.zeros(70, dtype=int),
    }
    ours = average_precision(match([case], classes=CLASSES))["ap_class"].values[0, 0]
    assert ours == pytest.approx(coco_ap([case], [0.1])[0, 0], abs=1e-14)
    assert ours == pytest.approx(70 / 101, abs=1e-14)
