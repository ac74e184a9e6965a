"""Broken cases are refused, naming case and row."""

import numpy as np
import pytest

from girih_metrics import (
    average_precision,
    case_level,
    froc,
    froc_curve,
    match,
    operating_point,
    score_at_fppi,
)


def good(make_case, cube):
    box = cube(0, 0, 0, 4)
    return make_case("scan7", [(box, 0.9, 0), (box, 0.5, 0)], [(box, 0), (box, 0)])


@pytest.mark.parametrize(
    ("key", "row", "value", "message"),
    [
        ("pred_scores", 1, np.nan, r"pred_scores row 1 is nan; wanted finite"),
        ("pred_scores", 0, np.inf, r"pred_scores row 0 is inf; wanted finite"),
        ("pred_boxes", (1, 2), np.nan, r"pred_boxes row 1 .* wanted finite"),
        ("gt_boxes", (0, 5), -np.inf, r"gt_boxes row 0 .* wanted finite"),
        ("gt_boxes", (1, 0), 9.0, r"gt_boxes row 1 .* wanted z0 <= z1"),
        ("pred_labels", 0, 1, r"pred_labels row 0 is 1; wanted 0 <= label < 1"),
        ("gt_labels", 1, -1, r"gt_labels row 1 is -1"),
    ],
)
def test_a_bad_number(make_case, cube, key, row, value, message):
    case = good(make_case, cube)
    case[key] = case[key].copy()
    case[key][row] = value
    with pytest.raises(ValueError, match=r"case 'scan7': " + message):
        match([case], classes=["a"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("pred_scores", np.zeros(3), r"pred_scores has shape \(3,\); wanted \(2,\)"),
        ("pred_boxes", np.zeros((2, 5)), r"pred_boxes has shape \(2, 5\)"),
        ("pred_labels", np.array([0.0, 1.0]), "wanted integers"),
        ("pred_scores", np.array(["a", "b"]), "wanted real numbers"),
        ("gt_ignore", np.array([0, 1]), "wanted bool"),
        ("gt_diameters", np.array([1.0, -2.0]), "gt_diameters row 1 is -2.0"),
        ("gt_centers", np.zeros((2, 2)), r"wanted \(2, 3\)"),
        ("gt_masks", [], "0 masks; wanted 2"),
        ("pred_masks", [((0, 0, 0), np.ones((1, 1))), ((0, 0, 0), np.ones((1, 1, 1), dtype=bool))], "row 0"),
    ],
)
def test_a_bad_array(make_case, cube, key, value, message):
    with pytest.raises(ValueError, match=r"case 'scan7': .*" + message):
        match([good(make_case, cube) | {key: value}], classes=["a"])


def test_missing_key_and_duplicate_case(make_case, cube):
    case = good(make_case, cube)
    with pytest.raises(ValueError, match="'scan7' occurs more than once"):
        match([case, case], classes=["a"])
    del case["gt_boxes"]
    with pytest.raises(ValueError, match="'scan7': gt_boxes is missing"):
        match([case], classes=["a"])


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"iou": 0.0}, "iou is 0.0"),
        ({"iou": [0.1, 0.1]}, "distinct"),
        ({"criterion": "center_distance", "distance": -1.0}, "distance is -1.0"),
        ({"criterion": "dice"}, "criterion is 'dice'"),
        ({"assignment": "best"}, "assignment is 'best'"),
        ({"duplicates": "tp"}, "duplicates is 'tp'"),
        ({"max_detections": 0}, "max_detections is 0"),
        ({"unit": "cm"}, "unit is 'cm'"),
        ({"unit": "mm", "criterion": "point_in_mask"}, "wanted points in voxels"),
        ({"criterion": "mask_iou"}, "'scan7': mask_iou needs"),
        ({"criterion": "point_in_mask"}, "'scan7': point_in_mask needs"),
    ],
)
@pytest.mark.usefixtures("plain_types")
def test_bad_switches(make_case, cube, switches, message):
    with pytest.raises(ValueError, match=message):
        match([good(make_case, cube)], classes=["a"], **switches)


def test_bad_classes_and_fppi(case_a):
    with pytest.raises(ValueError, match="classes are"):
        match(case_a, classes=["a", "a"])
    with pytest.raises(ValueError, match="fppi is"):
        froc(match(case_a, classes=["a"]), fppi=[-1])
    with pytest.raises(ValueError, match="threshold is None"):
        match(case_a, classes=["a"], iou=[0.1, 0.2]).outcome("1")
    with pytest.raises(ValueError, match="case_id is '9'"):
        match(case_a, classes=["a"]).outcome("9")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gt_masks": [None, None]}, r"gt_masks row 0 is None; wanted \(start_zyx, bool array\)"),
        ({"gt_masks": None}, "gt_masks is NoneType; wanted a list"),
        ({"gt_boxes": [[1, 2, 3, 4, 5, 6], [1, 2]]}, "gt_boxes is ragged; wanted rows of one length"),
        ({"pred_scores": [[0.1], [0.1, 0.2]]}, "pred_scores is ragged"),
        ({"gt_ignore": [[True], [True, False]]}, "gt_ignore is ragged"),
    ],
)
@pytest.mark.usefixtures("plain_types")
def test_lists_that_are_no_arrays(make_case, cube, change, message):
    with pytest.raises(ValueError, match=r"case 'scan7': " + message):
        match([good(make_case, cube) | change], classes=["a"])


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"distance": 3.0}, "distance is 3.0, criterion 'box_iou'"),
        ({"criterion": "point_in_box", "distance": 3.0}, "it applies to 'center_distance' only"),
        ({"criterion": "center_distance", "iou": 0.2}, "iou is 0.2, criterion 'center_distance'"),
        ({"criterion": "point_in_box", "iou": [0.1, 0.2]}, "applies to box_iou, mask_iou, component_iou only"),
        ({"classes": "abc"}, "classes are the text 'abc'; wanted a list"),
    ],
)
def test_switches_that_do_not_apply(make_case, cube, switches, message):
    with pytest.raises(ValueError, match=message):
        match([good(make_case, cube)], **({"classes": ["a"]} | switches))


@pytest.mark.parametrize("score", [average_precision, froc, froc_curve, operating_point, case_level])
def test_no_cases_and_no_such_class(score, case_a):
    with pytest.raises(ValueError, match="no cases; wanted at least one"):
        score(match([], classes=["a"]))
    if score not in (average_precision, froc):
        for label in (7, -1):
            with pytest.raises(ValueError, match=rf"label is {label}; wanted None or 0 <= label < 1"):
                score(match(case_a, classes=["a"]), label=label)


def test_bad_scores_to_keep(case_a):
    with pytest.raises(ValueError, match="min_score is nan"):
        operating_point(match(case_a, classes=["a"]), min_score=np.nan)
    with pytest.raises(ValueError, match="label is 1"):
        score_at_fppi(match(case_a, classes=["a"]), 1.0, label=1)
