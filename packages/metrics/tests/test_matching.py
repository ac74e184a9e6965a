"""Who is matched with whom, and that order never matters."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from girih_metrics import average_precision, froc, match, merge

CLASSES = ("a", "b")


def both(matches):
    return average_precision(matches)["ap"].values, froc(matches)["sensitivity"].values


def test_wrong_class_is_a_miss_and_a_false_positive(cube, make_case):
    matches = match([make_case("1", [(cube(0, 0, 0, 4), 0.9, 1)], [(cube(0, 0, 0, 4), 0)])], classes=CLASSES)
    assert matches.outcome("1")["fp"].tolist() == [0]
    assert matches.outcome("1")["missed"].tolist() == [0]


def test_second_hit_on_an_object_is_false_positive_or_ignored(cube, make_case):
    case = make_case("1", [(cube(0, 0, 0, 4), 0.9, 0), (cube(1, 0, 0, 4), 0.8, 0)], [(cube(0, 0, 0, 4), 0)])
    assert match([case], classes=["a"]).outcome("1")["fp"].tolist() == [1]
    assert match([case], classes=["a"], duplicates="ignored").outcome("1")["ignored"].tolist() == [1]


def test_boundary(cube, make_case):  # 4 x 4 x 4 and its half: IoU exactly 1/2
    case = make_case("1", [([0, 0, 0, 2, 4, 4], 0.9, 0)], [(cube(0, 0, 0, 4), 0)])
    assert len(match([case], classes=["a"], iou=0.5).outcome("1")["tp"]) == 1
    assert len(match([case], classes=["a"], iou=0.5, boundary="exclusive").outcome("1")["tp"]) == 0


def test_three_tenths_is_three_tenths(make_case):
    case = make_case("1", [([0, 0, 0, 3, 1, 1], 0.9, 0)], [([0, 0, 0, 10, 1, 1], 0)])
    assert len(match([case], classes=["a"], iou=0.3).outcome("1")["tp"]) == 1


@pytest.mark.parametrize("criterion", ["box_iou", "center_distance", "point_in_box"])
def test_ignored_objects_absorb_their_hits(cube, make_case, criterion):
    case = make_case(
        "1",
        [(cube(0, 0, 0, 4), 0.9, 0), (cube(0, 0, 0, 4), 0.8, 0), (cube(20, 0, 0, 4), 0.7, 0)],
        [(cube(0, 0, 0, 4), 0), (cube(20, 0, 0, 4), 0)],
        gt_ignore=np.array([True, False]),
    )
    matches = match([case], classes=["a"], criterion=criterion)
    assert matches.outcome("1")["ignored"].tolist() == [0, 1]
    assert matches.outcome("1")["tp"].tolist() == [2]
    assert both(matches)[0] == 1
    assert (both(matches)[1] == 1).all()
    once = match([case], classes=["a"], criterion=criterion, ignored="once").outcome("1")
    assert (once["ignored"].tolist(), once["fp"].tolist()) == ([0], [1])


def test_zero_volume_boxes_never_match(cube, make_case):
    flat = [0.0, 0.0, 0.0, 0.0, 4.0, 4.0]
    case = make_case("1", [(flat, 0.9, 0), (flat, 0.8, 0)], [(flat, 0), (cube(0, 0, 0, 4), 0)])
    outcome = match([case], classes=["a"], iou=1e-9).outcome("1")
    assert outcome["fp"].tolist() == [0, 1]
    assert outcome["missed"].tolist() == [0, 1]


def test_max_detections_keeps_the_best(cube, make_case):
    case = make_case(
        "1", [(cube(0, 0, 0, 4), 0.1, 0), *[(cube(40, 0, i, 4), 0.9, 0) for i in range(100)]], [(cube(0, 0, 0, 4), 0)]
    )
    assert average_precision(match([case], classes=["a"]))["ap"].item() == 0
    assert average_precision(match([case], classes=["a"], max_detections=None))["ap"].item() > 0


def test_center_distance_uses_the_objects_radius_or_a_fixed_one(cube, make_case):
    case = make_case("1", [(cube(0, 0, 2, 4), 0.9, 0)], [(cube(0, 0, 0, 4), 0)])  # 2 apart, radius 2
    hits = [
        len(match([case], classes=["a"], criterion="center_distance", **more).outcome("1")["tp"])
        for more in ({}, {"boundary": "exclusive"}, {"distance": 1.9}, {"distance": 2.0})
    ]
    assert hits == [1, 0, 0, 1]


def test_masks_decide_where_boxes_overlap(cube, make_case):
    ell, corner = np.ones((1, 4, 4), dtype=bool), np.ones((1, 2, 2), dtype=bool)
    ell[0, 2:, 2:] = False
    case = make_case(
        "1",
        [([0, 2, 2, 1, 4, 4], 0.9, 0)],
        [([0, 0, 0, 1, 4, 4], 0)],
        gt_masks=[((0, 0, 0), ell)],
        pred_masks=[((0, 2, 2), corner)],
    )
    assert len(match([case], classes=["a"], iou=0.2).outcome("1")["tp"]) == 1
    assert len(match([case], classes=["a"], criterion="mask_iou", iou=1e-6).outcome("1")["tp"]) == 0
    assert len(match([case], classes=["a"], criterion="point_in_box").outcome("1")["tp"]) == 1
    assert len(match([case], classes=["a"], criterion="point_in_mask").outcome("1")["tp"]) == 0


def test_assignments_differ_where_they_should(make_case):
    """p0 (best score) overlaps g0 more than g1; p1 overlaps only g0."""
    case = make_case(
        "1",
        [([0, 0, 0, 1, 1, 6], 0.9, 0), ([0, 0, 0, 1, 1, 4], 0.8, 0)],
        [([0, 0, 0, 1, 1, 5], 0), ([0, 0, 5, 1, 1, 9], 0)],
    )
    found = {
        name: len(match([case], classes=["a"], iou=0.1, assignment=name).outcome("1")["found"])
        for name in ("greedy", "hungarian", "max_overlap", "each_object")
    }
    assert found == {"greedy": 1, "hungarian": 2, "max_overlap": 1, "each_object": 2}


def test_outcome_hides_low_scores(case_a):
    matches = match(case_a, classes=["a"], iou=[0.1, 0.5])
    outcome = matches.outcome("1", threshold=0.1, min_score=0.75)
    assert {key: rows.tolist() for key, rows in outcome.items()} == {
        "tp": [0],
        "fp": [1],
        "ignored": [],
        "found": [0],
        "missed": [],
    }
    assert matches.outcome("2", threshold=0.1, min_score=0.75)["missed"].tolist() == [0]
    assert matches.outcome("2", threshold=0.5)["fp"].tolist() == [0]


SWITCHES = st.fixed_dictionaries(
    {
        "assignment": st.sampled_from(["greedy", "hungarian", "max_overlap", "each_object"]),
        "criterion": st.sampled_from(["box_iou", "center_distance", "point_in_box"]),
        "duplicates": st.sampled_from(["false_positive", "ignored"]),
        "boundary": st.sampled_from(["inclusive", "exclusive"]),
        "max_detections": st.sampled_from([None, 2]),
    }
)


def shuffled(data, cases):
    moved = []
    for case in data.draw(st.permutations(cases)):
        rows = {
            "pred": data.draw(st.permutations(range(len(case["pred_scores"])))),
            "gt": data.draw(st.permutations(range(len(case["gt_labels"])))),
        }
        changed = {}
        for key, value in case.items():
            order = rows.get(key.split("_")[0], [])
            if key.startswith(("pred_", "gt_")):
                changed[key] = [value[k] for k in order] if key.endswith("masks") else value[list(order)]
        moved.append(case | changed)
    return moved


def assert_same_scores(cases, others, switches):
    overlaps = {"iou": [0.1, 0.3]} if switches["criterion"].endswith("iou") else {}
    before, after = (both(match(found, classes=CLASSES, **overlaps, **switches)) for found in (cases, others))
    for value, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(value, other)


@given(st.data())
def test_no_order_of_the_input_matters(case_lists, data):
    cases, switches = data.draw(case_lists(ignore=True)), data.draw(SWITCHES)
    assert_same_scores(cases, shuffled(data, cases), switches)


@given(st.data())
def test_no_order_matters_where_points_and_sizes_differ_from_the_boxes(case_lists, data):
    """Same boxes, other points: the boxes alone cannot tell them apart."""
    cases, switches = data.draw(case_lists()), data.draw(SWITCHES)
    coordinate = st.integers(0, 3).map(float)
    for case in cases:
        for kind, key in (("pred", "pred_points"), ("gt", "gt_centers")):
            n = len(case[f"{kind}_labels"])
            case[f"{kind}_boxes"] = np.tile([0.0, 0, 0, 4, 4, 4], (n, 1))
            points = data.draw(st.lists(st.tuples(*[coordinate] * 3), min_size=n, max_size=n))
            case[key] = np.array(points, dtype=float).reshape(n, 3)
    assert_same_scores(cases, shuffled(data, cases), switches)


@given(st.data())
def test_no_order_of_masks_matters(case_lists, data):
    """Random voxels of one box; for pieces, each voxel belongs to one prediction and one object at most."""
    cases, switches = data.draw(case_lists(ignore=True)), data.draw(SWITCHES)
    switches["criterion"] = data.draw(st.sampled_from(["mask_iou", "component_iou", "point_in_mask"]))
    for case in cases:
        for kind in ("pred", "gt"):
            n = len(case[f"{kind}_labels"])
            owner = np.array(data.draw(st.lists(st.integers(0, n), min_size=12, max_size=12))).reshape(2, 2, 3)
            case[f"{kind}_boxes"] = np.tile([0.0, 0, 0, 2, 2, 3], (n, 1))
            case[f"{kind}_masks"] = [((0, 0, 0), owner == k) for k in range(n)]
    assert_same_scores(cases, shuffled(data, cases), switches)


def test_pieces_of_overlapping_masks_are_refused(make_case, cube):
    bar, other = np.ones((1, 1, 4), dtype=bool), np.ones((1, 1, 2), dtype=bool)
    pred = [(cube(0, 0, 0, 4), 0.9, 0), (cube(0, 0, 0, 4), 0.8, 0)]
    case = make_case(
        "1",
        pred,
        [(cube(0, 0, 0, 4), 0)],
        pred_masks=[((0, 0, 0), bar), ((0, 0, 3), other)],
        gt_masks=[((0, 0, 0), bar)],
    )
    with pytest.raises(ValueError, match="case '1': pred_masks rows 0 and 1 overlap; component_iou wants"):
        match([case], classes=["a"], criterion="component_iou")
    case["pred_masks"][1] = ((0, 0, 4), other)
    assert len(match([case], classes=["a"], criterion="component_iou").pred_case) == 2


@given(st.data())
def test_merged_shards_equal_one_call(case_lists, data):
    cases = data.draw(case_lists(ignore=True, min_size=2))
    cut = data.draw(st.integers(1, len(cases) - 1))
    whole = match(cases, classes=CLASSES, iou=[0.1, 0.5])
    parts = merge([match(shard, classes=CLASSES, iou=[0.1, 0.5]) for shard in (cases[:cut], cases[cut:])])
    assert (parts.case_ids, parts.groups, parts.settings) == (whole.case_ids, whole.groups, whole.settings)
    for name in ("pred_case", "pred_row", "judged", "gt_case", "gt_row", "gt_counted", "found_by"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_merge_refuses_what_does_not_belong_together(case_a):
    matches = match(case_a, classes=["a"])
    with pytest.raises(ValueError, match="case '1' is in more than one"):
        merge([matches, matches])
    with pytest.raises(ValueError, match="classes differ"):
        merge([matches, match(case_a, classes=["b"])])
    with pytest.raises(ValueError, match="thresholds differ"):
        merge([matches, match(case_a, classes=["a"], iou=0.2)])
    with pytest.raises(ValueError, match="at least one"):
        merge([])


def test_equal_boxes_are_told_apart_by_their_centres(make_case, cube):
    """Both objects are equally close to the better prediction; the other reaches only one of them."""
    same = cube(0, 0, 0, 4)
    case = make_case(
        "1",
        [(same, 0.9, 0), (same, 0.8, 0)],
        [(same, 0), (same, 0)],
        pred_points=np.array([[2.0, 2, 2], [2, 2, 0.5]]),
        gt_centers=np.array([[2.0, 2, 1], [2, 2, 3]]),
    )
    turned = case | {"gt_centers": case["gt_centers"][::-1]}
    found = [len(match([c], classes=["a"], criterion="center_distance").outcome("1")["found"]) for c in (case, turned)]
    assert found[0] == found[1]
