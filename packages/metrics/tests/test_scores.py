"""AP and FROC: known numbers, edges, and what must hold for any input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from girih_metrics import average_precision, froc, froc_curve, match

CLASSES = ("a", "b")


def q_cases(cube, make_case, scores=(0.9, 0.6, 0.5, 0.4)):
    hit, miss = cube(0, 0, 0, 10), cube(50, 50, 50, 10)
    preds = [(miss, scores[0], 0), (miss, scores[1], 0), (hit, scores[2], 0), (miss, scores[3], 0)]
    return [make_case("0", preds, [(hit, 0)]), *[make_case(str(i)) for i in range(1, 4)]]


def test_numbers_of_the_nndetection_evaluator(case_a):
    ap = average_precision(match(case_a, classes=["a"], iou=[0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5]))
    assert ap["ap"].sel(threshold=[0.1, 0.5]).values == pytest.approx([0.299010, 0.168317], abs=5e-7)
    assert ap["mean_ap"].item() == pytest.approx(0.240924, abs=5e-7)
    curve = froc(match(case_a, classes=["a"], iou=[0.1, 0.5]))
    assert curve["sensitivity"][0].values == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3])
    assert curve["froc"].values == pytest.approx([0.476190, 0.285714], abs=5e-7)


def test_an_absent_class_is_named_and_not_averaged(case_a):
    result = average_precision(match(case_a, classes=["a", "gone"]))
    assert result["ap"].item() == pytest.approx(0.299010, abs=5e-7)
    assert np.isnan(result["ap_class"].sel({"class": "gone"}).item())
    assert result.attrs["absent"] == "gone"


def test_right_box_wrong_class(cube, make_case):
    box = cube(0, 0, 0, 10)
    matches = match(
        [make_case("0", [(box, 0.9, 1)], [(box, 0)]), make_case("1", [(box, 0.8, 1)], [(box, 1)])], classes=CLASSES
    )
    assert average_precision(matches)["ap_class"][0].values.tolist() == [0, 0.5]
    assert froc(matches)["froc"].item() == pytest.approx(0.35714, abs=5e-6)
    by_class = froc(matches, pooling="class_mean")
    assert by_class["froc_class"][0].values == pytest.approx([0, 0.71429], abs=5e-6)
    assert by_class["froc"].item() == pytest.approx(0.71429 / 2, abs=5e-6)


def test_one_object_among_false_positives(cube, make_case):
    matches = match(q_cases(cube, make_case), classes=["a"])
    assert froc(matches)["sensitivity"][0].values.tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert average_precision(matches)["ap"].item() == pytest.approx(1 / 3)
    curve = froc_curve(matches)
    assert curve["fppi"].values.tolist() == [0, 0.25, 0.5, 0.5, 0.75]
    assert curve["sensitivity"].values.tolist() == [0, 0, 0, 1, 1]
    assert curve["score"].values.tolist() == [np.inf, 0.9, 0.6, 0.5, 0.4]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_equal_scores_enter_together(cube, make_case, order):
    preds = [(cube(0, 0, 0, 10), 0.5, 0), (cube(50, 0, 0, 10), 0.5, 0)]
    matches = match([make_case("0", [preds[i] for i in order], [(cube(0, 0, 0, 10), 0)])], classes=["a"])
    assert froc(matches)["sensitivity"][0].values.tolist() == [0.125, 0.25, 0.5, 1, 1, 1, 1]
    assert froc(matches)["froc"].item() == pytest.approx(0.69643, abs=5e-6)
    assert froc(matches, interpolation="step")["sensitivity"][0].values.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert average_precision(matches)["ap"].item() == 0.5
    assert average_precision(matches, curve="step")["ap"].item() == 0.5


def test_step_ap_by_hand(cube, make_case):  # recall 1/2 at precision 1, then 1 at precision 2/3
    box = [cube(20 * i, 0, 0, 10) for i in range(3)]
    case = make_case("0", [(box[0], 0.9, 0), (box[2], 0.8, 0), (box[1], 0.7, 0)], [(box[0], 0), (box[1], 0)])
    assert average_precision(match([case], classes=["a"]), curve="step")["ap"].item() == pytest.approx(5 / 6)


def test_defined_values_at_the_edges(cube, make_case):
    box, far = cube(0, 0, 0, 4), cube(50, 0, 0, 4)
    nothing_hit = match([make_case("0", [(far, 0.9, 0)], [(box, 0)])], classes=["a"])
    no_predictions = match([make_case("0", [], [(box, 0)])], classes=["a"])
    for matches in (nothing_hit, no_predictions):
        assert average_precision(matches)["ap"].item() == 0
        assert average_precision(matches, curve="step")["ap"].item() == 0
        assert froc(matches)["froc"].item() == 0
        assert froc(matches, interpolation="step")["froc"].item() == 0
    for case in (make_case("0", [(box, 0.9, 0)]), make_case("0")):
        matches = match([case], classes=["a"])
        assert np.isnan(average_precision(matches)["ap"].item())
        assert np.isnan(average_precision(matches, curve="step")["ap"].item())
        assert np.isnan(froc(matches)["froc"].item())
        assert np.isnan(froc(matches, pooling="class_mean", interpolation="step")["froc"].item())
        assert froc(matches).attrs["absent"] == "a"
        assert np.isnan(froc_curve(matches)["sensitivity"].values).all()


@given(st.data())
def test_what_every_score_obeys(case_lists, data):
    matches = match(data.draw(case_lists(ignore=True)), classes=CLASSES, iou=[0.1, 0.5])
    ap = average_precision(matches)["ap"].values
    assert ((ap >= 0) & (ap <= 1) | np.isnan(ap)).all()
    for interpolation in ("linear", "step"):
        sensitivity = froc(matches, interpolation=interpolation)["sensitivity"].values
        if not np.isnan(sensitivity).any():
            assert (np.diff(sensitivity, axis=1) >= 0).all()
            assert ((sensitivity >= 0) & (sensitivity <= 1)).all()
    curve = froc_curve(matches, threshold=0.1)
    assert (np.diff(curve["fppi"]) >= 0).all()
    assert (np.diff(curve["score"][1:]) < 0).all()
    if matches.gt_counted.any():
        reread = np.interp([0.5, 1.0], curve["fppi"], curve["sensitivity"])
        np.testing.assert_array_equal(froc(matches, fppi=[0.5, 1.0])["sensitivity"][0].values, reread)


@given(st.data())
def test_perfect_predictions_score_one(case_lists, data):
    cases = data.draw(case_lists())
    for case in cases:
        case["pred_boxes"], case["pred_labels"] = case["gt_boxes"], case["gt_labels"]
        case["pred_scores"] = np.linspace(0.1, 0.9, len(case["gt_labels"]))
    matches = match(cases, classes=CLASSES, iou=[0.1, 1.0])
    ap, sensitivity = average_precision(matches)["ap"].values, froc(matches)["sensitivity"].values
    if len(matches.gt_case):
        # At the lower threshold, greedy matching may pair crowded objects crosswise and leave one over.
        assert ap[1] == 1
        assert (sensitivity[1] == 1).all()


@given(st.data(), st.floats(0, 1), st.integers(0, 1))
def test_a_far_false_positive_never_helps(case_lists, data, score, label):
    cases = data.draw(case_lists(ignore=True))
    before = match(cases, classes=CLASSES, max_detections=None)
    case = cases[data.draw(st.integers(0, len(cases) - 1))]
    case["pred_boxes"] = np.append(case["pred_boxes"], [[90.0, 90, 90, 91, 91, 91]], axis=0)
    case["pred_scores"] = np.append(case["pred_scores"], score)
    case["pred_labels"] = np.append(case["pred_labels"], label)
    after = match(cases, classes=CLASSES, max_detections=None)
    for score_of in (
        lambda m: average_precision(m)["ap_class"],
        lambda m: average_precision(m, curve="step")["ap_class"],
        lambda m: froc(m)["sensitivity"],
        lambda m: froc(m, interpolation="step")["sensitivity"],
    ):
        low, high = score_of(after).values, score_of(before).values
        assert ((low <= high) | np.isnan(high)).all()


@given(st.data())
def test_against_a_plain_reference(case_lists, data):
    """AP and FROC again, straight from the definition, one score threshold at a time."""
    matches = match(data.draw(case_lists(ignore=True)), classes=CLASSES)
    tp, fp, score = matches.true_positives()[0], matches.false_positives()[0], matches.pred_score
    for label in range(2):
        of_class, n = matches.pred_label == label, matches.n_objects()[:, label].sum()
        if n == 0:
            continue
        points = []
        for threshold in sorted(set(score[of_class].tolist()), reverse=True):
            kept = of_class & (score >= threshold)
            points.append(
                (tp[kept].sum() / n, tp[kept].sum() / max(1, tp[kept].sum() + fp[kept].sum()), fp[kept].sum())
            )
        ap = np.mean([max([p for r, p, _ in points if r >= at], default=0.0) for at in np.linspace(0, 1, 101)])
        found = average_precision(matches)["ap_class"].values[0, label]
        assert found == pytest.approx(ap, abs=1e-12)
        x = [0.0] + [f / matches.n_images for _, _, f in points]
        y = [0.0] + [r for r, _, _ in points]
        by_class = froc(matches, pooling="class_mean", fppi=[0.2, 0.5, 1, 3])["sensitivity_class"]
        assert by_class.values[0, label] == pytest.approx(np.interp([0.2, 0.5, 1, 3], x, y), abs=1e-12)
