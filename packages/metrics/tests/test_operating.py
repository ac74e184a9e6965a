"""Operating points and size bins."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from girih_metrics import average_precision, by_size, froc, match, operating_point, score_at_fppi


def test_operating_point_by_hand(case_a):
    matches = match(case_a, classes=["a"], iou=[0.1, 0.5])
    point = operating_point(matches, min_score=0.65, beta=2)  # kept: TP .9, FP .8, FP .7, FP .95
    assert point["tp"].values.tolist() == [1, 1]
    assert point["fp"].values.tolist() == [3, 3]
    assert point["sensitivity"][0].item() == pytest.approx(1 / 3)
    assert point["precision"][0].item() == 0.25
    assert point["fppi"][0].item() == 0.75
    assert point["f_beta"][0].item() == pytest.approx(5 * 0.25 * (1 / 3) / (4 * 0.25 + 1 / 3))
    everything = operating_point(matches)
    assert everything["tp"].values.tolist() == [2, 1]


def test_operating_point_at_the_edges(case_a, make_case):
    nothing = operating_point(match(case_a, classes=["a"]), min_score=2)
    assert np.isnan(nothing["precision"].item())
    assert nothing["f_beta"].item() == 0
    empty = operating_point(match([make_case("0")], classes=["a"]))
    assert np.isnan(empty["sensitivity"].item())
    assert np.isnan(empty["f_beta"].item())
    with pytest.raises(ValueError, match="beta is 0"):
        operating_point(match(case_a, classes=["a"]), beta=0)


def test_weights_are_copies(case_a):
    weights = np.array([[2, 0, 1, 1], [0, 3, 1, 0]])
    weighted = operating_point(match(case_a, classes=["a"]), weights=weights)
    for row, times in enumerate(weights):
        copies = [case | {"case_id": f"{i}-{k}"} for i, case in enumerate(case_a) for k in range(times[i])]
        naive = operating_point(match(copies, classes=["a"]))
        for name in ("sensitivity", "precision", "f_beta", "fppi"):
            np.testing.assert_array_equal(weighted[name][row], naive[name])


def test_a_score_for_a_rate_of_false_positives(case_a):
    matches = match(case_a, classes=["a"])
    for fppi, wanted in ((0, np.inf), (0.25, 0.9), (0.6, 0.8), (0.75, 0.6), (9, 0.6), (-1, np.inf)):
        assert score_at_fppi(matches, fppi) == wanted
        assert operating_point(matches, min_score=wanted)["fppi"].item() <= max(fppi, 0)


def test_size_bins_by_hand(make_case, cube):
    small, large = cube(0, 0, 0, 2), cube(20, 0, 0, 8)
    case = make_case(
        "0",
        [(small, 0.9, 0), (large, 0.8, 0), (cube(50, 0, 0, 2), 0.7, 0), (cube(70, 0, 0, 8), 0.95, 0)],
        [(small, 0), (large, 0)],
    )
    matches = match([case], classes=["a"])
    bins = by_size(matches, [0, 4, np.inf])
    assert list(bins) == ["0 to 4", "4 to inf"]
    assert [average_precision(part)["ap"].item() for part in bins.values()] == [1, 0.5]
    everywhere = by_size(matches, [0, 4, np.inf], false_positives="all")
    assert [average_precision(part)["ap"].item() for part in everywhere.values()] == [0.5, 0.5]
    for edges in ([0], [0, 0], [4, 0]):
        with pytest.raises(ValueError, match="edges are"):
            by_size(matches, edges)


@given(st.data())
def test_bins_partition_objects_and_mistakes(case_lists, data):
    matches = match(data.draw(case_lists(ignore=True)), classes=("a", "b"))
    bins = by_size(matches, [0, 1.5, 2.5, 100])
    parts = [operating_point(part) for part in bins.values()]
    whole = operating_point(matches)
    for name in ("tp", "fp", "n_objects"):
        assert sum(part[name].item() for part in parts) == whole[name].item()
    everything = by_size(matches, [0, 100])["0 to 100"]
    np.testing.assert_array_equal(froc(everything)["sensitivity"], froc(matches)["sensitivity"])


def test_points_have_no_size_of_their_own(make_case, cube):
    point = cube(1, 1, 1, 0)
    case = make_case("0", [(point, 0.9, 0), (cube(9, 9, 9, 0), 0.8, 0)], [(cube(0, 0, 0, 2), 0)])
    matches = match([case], classes=["a"], criterion="center_distance")
    with pytest.raises(ValueError, match="no prediction has a volume; wanted 'all' for point marks"):
        by_size(matches, [1, 4])
    (part,) = by_size(matches, [1, 4], false_positives="all").values()
    assert operating_point(part)["fp"].item() == 1
    assert list(by_size(match([make_case("0")], classes=["a"]), [1, 4])) == ["1 to 4"]
