"""AP, AUROC and FROC against picai_eval, on detection maps of separate blocks."""

import numpy as np
import pytest

from girih_metrics import froc_curve, match, preset

picai_eval = pytest.importorskip("picai_eval", reason="picai_eval is not installed: dependency group `peers`")

SHAPE = (8, 48, 48)


def blocks(rng, n):
    """Up to n boxes with a voxel of space between them."""
    taken, found = np.zeros(SHAPE, dtype=bool), []
    for _ in range(n):
        size = rng.integers(2, (5, 10, 10))
        start = rng.integers(0, np.array(SHAPE) - size + 1)
        around = tuple(slice(max(0, a - 1), a + s + 1) for a, s in zip(start, size, strict=True))
        if not taken[around].any():
            taken[tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))] = True
            found.append((start, size))
    return found


def random_cases(seed):
    rng = np.random.default_rng(seed)
    cases, detection_maps, truths = [], [], []
    for image in range(25):
        real = blocks(rng, rng.integers(0, 5))
        found = blocks(rng, rng.integers(1, 12))
        # One block of the truth is met nearly, so that there are hits among the chance overlaps.
        if real and rng.random() < 0.8:
            start, size = real[0]
            found = [(np.clip(start + rng.integers(-1, 2, 3), 0, np.array(SHAPE) - size), size)]
        scores = rng.choice(np.arange(1, 10_000), size=len(found), replace=False) / 10_000
        if len(found) == 1:  # mostly a hit: mostly a good score
            scores = scores**0.3
        scores = scores.astype(np.float32).astype(float)
        truth, detections = np.zeros(SHAPE, dtype=np.int32), np.zeros(SHAPE, dtype=np.float32)
        for start, size in real:
            truth[window(start, size)] = 1
        for (start, size), score in zip(found, scores, strict=True):
            detections[window(start, size)] = score
        truths.append(truth)
        detection_maps.append(detections)
        cases.append(
            {
                "case_id": str(image),
                "gt_boxes": boxes(real),
                "gt_labels": np.zeros(len(real), dtype=int),
                "gt_masks": [(start, np.ones(size, dtype=bool)) for start, size in real],
                "pred_boxes": boxes(found),
                "pred_scores": scores,
                "pred_labels": np.zeros(len(found), dtype=int),
                "pred_masks": [(start, np.ones(size, dtype=bool)) for start, size in found],
            }
        )
    return cases, detection_maps, truths


def window(start, size):
    return tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))


def boxes(placed):
    return np.array([[*start, *(start + size)] for start, size in placed], dtype=float).reshape(-1, 6)


@pytest.mark.filterwarnings("ignore")  # picai_eval on today's scikit-learn
@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_picai_eval(seed):
    cases, detection_maps, truths = random_cases(seed)
    theirs = picai_eval.evaluate(detection_maps, truths, num_parallel_calls=1)
    rules = preset("picai")
    matches = rules.match(cases, classes=["lesion"])
    ours = rules.score(matches).to_series()
    assert ours["AP"] == pytest.approx(theirs.AP, abs=1e-12)
    assert ours["AUROC"] == pytest.approx(theirs.auroc, abs=1e-12)
    assert ours["score"] == pytest.approx(theirs.score, abs=1e-12)
    assert 0.05 < theirs.AP < 0.95
    curve = froc_curve(matches)
    points = {
        score: (fppi, sensitivity)
        for score, fppi, sensitivity in zip(
            *(curve[name].values for name in ("score", "fppi", "sensitivity")), strict=True
        )
    }
    rates = list(zip(theirs.lesion_FPR, theirs.lesion_TPR, strict=True))
    counted = 0
    for score, rate in list(zip(theirs.thresholds, rates, strict=True))[:-1]:
        if score in points:  # its list also holds 0 and the scores of candidates that count as nothing
            assert points[score] == pytest.approx(rate, abs=1e-6)  # float32 there
            counted += 1
    assert counted > 10


@pytest.mark.filterwarnings("ignore")
def test_the_last_threshold_is_kept():
    """Every lesion found by the last candidate: picai_eval's curve ends before it, ours does not."""
    detection_map, truth = np.zeros(SHAPE, dtype=np.float32), np.zeros(SHAPE, dtype=np.int32)
    detection_map[0, :4, :4], detection_map[0, 10:14, :4], truth[0, 10:14, :4] = 0.9, 0.5, 1
    theirs = picai_eval.evaluate([detection_map], [truth], num_parallel_calls=1)
    assert theirs.lesion_TPR.max() == 0
    block = np.ones((1, 4, 4), dtype=bool)
    case = {"case_id": "0", "gt_boxes": np.array([[0.0, 10, 0, 1, 14, 4]]), "gt_labels": np.array([0]),
            "gt_masks": [((0, 10, 0), block)], "pred_boxes": np.array([[0.0, 0, 0, 1, 4, 4], [0, 10, 0, 1, 14, 4]]),
            "pred_scores": np.array([0.9, 0.5]), "pred_labels": np.array([0, 0]),
            "pred_masks": [((0, 0, 0), block), ((0, 10, 0), block)]}  # fmt: skip
    curve = froc_curve(match([case], classes=["a"], criterion="mask_iou"))
    assert curve["sensitivity"].values.tolist() == [0, 0, 1]
