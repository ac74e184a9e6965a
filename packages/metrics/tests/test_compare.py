"""Paired differences, permutation p-values, Holm."""

import itertools

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from girih_metrics import (
    Preset,
    average_precision,
    bca_interval,
    bootstrap,
    compare,
    froc,
    holm,
    match,
    operating_point,
    preset,
)


def paper(cases):
    return preset("paper").match(cases, classes=["a"])


def worse(cases, keep):
    """The same cases with only some predictions, in another order of cases."""
    fewer = []
    for case in reversed(cases):
        kept = [i for i, score in enumerate(case["pred_scores"]) if keep(score)]
        fewer.append(case | {key: case[key][kept] for key in ("pred_boxes", "pred_scores", "pred_labels")})
    return fewer


def test_a_method_does_not_differ_from_itself(case_a):
    result = compare({"m": paper(case_a), "same": paper(case_a[::-1])}, draws=50, permutations=50)
    assert (result["difference"] == 0).all()
    assert (result["interval"] == 0).all()
    assert (result["p"] == 1).all()


def test_difference_is_paired_and_ignores_the_order_of_cases(case_a):
    a, b = paper(case_a), paper(worse(case_a, lambda s: s > 0.65))
    result = compare({"a": a, "b": b}, draws=100, permutations=50, seed=3).sel(metric="mAP@0.1")
    drawn = [bootstrap(m, draws=100, seed=3)["ap"].squeeze("threshold").values for m in (a, b)]
    known = (drawn[0] - drawn[1])[~np.isnan(drawn[0] - drawn[1])]
    assert result["interval"][0].values == pytest.approx(np.quantile(known, [0.025, 0.975]))
    whole = average_precision(a)["ap"].item() - average_precision(b)["ap"].item()
    assert result["difference"].item() == pytest.approx(whole)
    assert (str(result["first"].item()), str(result["second"].item())) == ("a", "b")


def test_permutation_p_approaches_that_of_all_exchanges(case_a):
    """All 16 exchanges of the four cases, counted by merging the chosen halves and scoring anew."""
    other = worse(case_a, lambda s: s < 0.9)
    by_id = [{case["case_id"]: case for case in cases} for cases in (case_a, other)]

    def difference(choice):
        sides = [[by_id[(k + pick) % 2][i] for i, pick in zip("1234", choice, strict=True)] for k in range(2)]
        scores = [average_precision(paper(side))["ap"].item() for side in sides]
        return abs(scores[0] - scores[1])

    exact = np.mean([difference(c) >= difference((0,) * 4) - 1e-12 for c in itertools.product((0, 1), repeat=4)])
    result = compare({"a": paper(case_a), "b": paper(other)}, draws=2, permutations=4000)
    assert result["p"].sel(metric="mAP@0.1").item() == pytest.approx(exact, abs=0.03)


def test_baseline_and_groups(case_a):
    for i, case in enumerate(case_a):
        case["group"] = "pq"[i % 2]
    methods = {name: paper(worse(case_a, lambda s, c=c: s > c)) for name, c in (("a", 0), ("b", 0.65), ("c", 0.85))}
    assert compare(methods, draws=5, permutations=5).sizes["pair"] == 3
    result = compare(methods, baseline="b", draws=5, permutations=200)
    assert result["first"].values.tolist() == ["a", "c"]
    assert (result["p"] >= 0.4).all()  # two patients: every exchange ties with its mirror, so p is near 1/2 or 1


def test_methods_must_share_cases_and_truth(case_a, make_case, cube):
    a = paper(case_a)
    with pytest.raises(ValueError, match="case '4' is scored for 'a' but not for 'b'"):
        compare({"a": a, "b": paper(case_a[:3])})
    with pytest.raises(ValueError, match="case 'x' is scored for 'b' but not for 'a'"):
        compare({"a": a, "b": paper([*case_a, make_case("x")])})
    other = [*case_a[:3], make_case("4", [], [(cube(0, 0, 0, 1), 0)] * 2)]
    with pytest.raises(ValueError, match=r"case '4' has .* \('4', \(2,\)\) for 'b'"):
        compare({"a": a, "b": paper(other)})
    with pytest.raises(ValueError, match="'b' has classes"):
        compare({"a": a, "b": match(case_a, classes=["z"])})
    for methods, baseline in (({"a": a}, None), ({"a": a, "b": a}, "c")):
        with pytest.raises(ValueError, match="wanted at least two, baseline included"):
            compare(methods, baseline=baseline)
    with pytest.raises(ValueError, match="permutations is 0"):
        compare({"a": a, "b": a}, permutations=0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, np.nan, 0.9]).tolist() == pytest.approx([1, np.nan, 1], nan_ok=True)
    assert len(holm([])) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_rule_rejects(p):
    adjusted = holm(p)
    for alpha in (0.01, 0.05, 0.5):
        rejected, left = set(), sorted(range(len(p)), key=lambda i: p[i])
        while left and p[left[0]] * len(left) <= alpha:
            rejected.add(left.pop(0))
        assert {i for i in range(len(p)) if adjusted[i] <= alpha} == rejected


def test_no_draws_no_interval(case_a):
    result = compare({"a": paper(case_a), "b": paper(case_a)}, draws=0, permutations=5)
    assert "interval" not in result
    assert (result["difference"] == 0).all()


def test_bca_interval_of_the_difference(case_a):
    """From the leave-one-out scores of both methods, case by case."""
    methods = {"a": paper(case_a), "b": paper(worse(case_a, lambda s: s > 0.65))}
    result = compare(methods, draws=200, permutations=5, seed=3, interval="bca")
    scores = [
        (m, bootstrap(m, draws=200, seed=3)["froc"].squeeze("threshold"), froc(m)["froc"].squeeze("threshold"))
        for m in methods.values()
    ]
    gone = [
        [froc(paper([c for c in cases if c["case_id"] != out]))["froc"].item() for out in "1234"]
        for cases in (case_a, worse(case_a, lambda s: s > 0.65))
    ]
    left_out = xr.DataArray(np.subtract(*gone), dims="left_out")
    expected = bca_interval(scores[0][1] - scores[1][1], scores[0][2] - scores[1][2], left_out)
    np.testing.assert_allclose(result["interval"].sel(metric="FROC@0.1")[0], expected)
    percentile = compare(methods, draws=200, permutations=5, seed=3)
    assert not result["interval"].equals(percentile["interval"])
    assert result.attrs["interval"] == "bca"


def test_methods_must_share_rules_and_sizes(case_a, cube):
    a = paper(case_a)
    with pytest.raises(ValueError, match="'b' was matched with ignored 'absorb', 'a' with 'once'"):
        compare({"a": a, "b": match(case_a, classes=["a"])})
    with pytest.raises(ValueError, match=r"'b' was matched at \[0\.2\], 'a' at \[0\.1\]"):
        compare({"a": a, "b": match(case_a, classes=["a"], iou=0.2, ignored="once")})
    other = [*case_a[:3], case_a[3] | {"gt_boxes": np.array([cube(0, 0, 0, 9)])}]
    with pytest.raises(ValueError, match="case '4' has objects of other sizes"):
        compare({"a": a, "b": paper(other)})
    spared = [*case_a[:3], case_a[3] | {"gt_boxes": np.array([cube(0, 0, 0, 10)] * 2), "gt_labels": np.zeros(2, int)}]
    spared[3]["gt_ignore"] = np.array([False, True])
    for methods in ({"a": a, "b": paper(spared)}, {"b": paper(spared), "a": a}):
        with pytest.raises(ValueError, match="case '4' has objects of other sizes, or others to ignore"):
            compare(methods)


def test_an_exchange_without_a_score_counts_as_large(cube, make_case):
    """Each method predicts in one case only; exchanging one of them leaves a side without precision."""
    box, far = cube(0, 0, 0, 4), cube(20, 0, 0, 4)
    a = [make_case("0", [(box, 0.5, 0)], [(box, 0)]), make_case("1", [], [(box, 0)])]
    b = [make_case("0", [], [(box, 0)]), make_case("1", [(far, 0.5, 0)], [(box, 0)])]

    def precision(matches, weights):
        return operating_point(matches, weights=weights)["precision"].isel(threshold=0)

    methods = {"a": match(a, classes=["a"]), "b": match(b, classes=["a"])}
    result = compare(methods, protocol=Preset("toy", {}, {"precision": precision}), draws=0, permutations=100)
    assert result["difference"].item() == 1
    assert result["p"].item() == 1
