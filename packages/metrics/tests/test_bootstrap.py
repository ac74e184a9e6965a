"""Resampling counts exactly what evaluating the resampled list would."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from girih_metrics import average_precision, bootstrap, evaluate, froc, match, percentile_interval, resample

CLASSES = ("a", "b")


@given(st.data())
def test_weights_equal_duplicated_images_to_the_bit(case_lists, data):
    cases = data.draw(case_lists(ignore=True))
    times = data.draw(st.lists(st.integers(0, 3), min_size=len(cases), max_size=len(cases)).filter(any))
    weights = np.stack([np.ones(len(cases), dtype=int), np.array(times)])
    copies = [
        case | {"case_id": f"{case['case_id']}-{k}"} for case, n in zip(cases, times, strict=True) for k in range(n)
    ]
    matches = match(cases, classes=CLASSES, iou=[0.1, 0.5])
    naive = match(copies, classes=CLASSES, iou=[0.1, 0.5])
    for curve in ("101", "step"):
        weighted = average_precision(matches, curve=curve, weights=weights)
        for name in ("ap", "ap_class", "mean_ap"):
            np.testing.assert_array_equal(weighted[name][1], average_precision(naive, curve=curve)[name])
    for interpolation in ("linear", "step"):
        for pooling in ("pooled", "class_mean"):
            rules = {"interpolation": interpolation, "pooling": pooling}
            weighted, plain = froc(matches, weights=weights, **rules), froc(naive, **rules)
            for name in ("sensitivity", "froc"):
                np.testing.assert_array_equal(weighted[name][1], plain[name])


def test_draws_are_paired_and_by_patient():
    weights = resample(["p1", "p2", "p1", "p3"], draws=200, seed=3)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    np.testing.assert_array_equal(weights[:, [3, 2, 1, 0]], resample(["p3", "p1", "p2", "p1"], draws=200, seed=3))
    assert weights.mean(axis=0) == pytest.approx([1, 1, 1, 1], abs=0.2)
    assert not np.array_equal(weights, resample(["p1", "p2", "p1", "p3"], draws=200, seed=4))


def test_blocks_of_draws_change_nothing(case_a, monkeypatch):
    matches = match(case_a, classes=["a"])
    whole = bootstrap(matches, draws=20)
    monkeypatch.setattr("girih_metrics.sweep.CHUNK", 1)
    assert bootstrap(matches, draws=20).identical(whole)


def test_interval_and_band(case_a):
    result = bootstrap(match(case_a, classes=["a"]), draws=400, band_fppi=np.linspace(0, 2, 9))
    assert result["ap_point"].item() == pytest.approx(0.299010, abs=5e-7)
    lower, upper = result["ap_interval"].sel(threshold=0.1).values
    assert lower <= result["ap_point"].item() <= upper
    known = result["ap"].values[~np.isnan(result["ap"].values)]
    assert (lower, upper) == tuple(np.quantile(known, [0.025, 0.975]))
    assert result["band_interval"].sizes == {"threshold": 1, "band_fppi": 9, "bound": 2}
    assert result.attrs["n_objects"] == 3


def test_an_interval_of_nothing_is_nan(make_case):
    result = bootstrap(match([make_case("0"), make_case("1")], classes=["a"]), draws=10)
    assert np.isnan(result["ap_interval"]).all()
    assert np.isnan(result["froc_interval"]).all()


def test_bad_requests(case_a):
    matches = match(case_a, classes=["a"])
    with pytest.raises(ValueError, match="0 draws"):
        bootstrap(matches, draws=0)
    with pytest.raises(ValueError, match="level is 95"):
        percentile_interval(bootstrap(matches, draws=3)["ap"], level=95)
    for weights, message in (
        (np.ones((1, 3)), r"wanted \(draws, 4\)"),
        (-np.ones((1, 4)), "negative"),
        (np.full((1, 4), 0.5), "how often"),
        (np.zeros((2, 4)), "row 0 is zero"),
    ):
        with pytest.raises(ValueError, match=message):
            froc(matches, weights=weights)


def test_draws_that_lack_a_class_are_counted(make_case, cube):
    """Class a in case 0, class b in case 1, nothing in case 2; 27 draws by hand are few, so count them again here."""
    box = cube(0, 0, 0, 4)
    cases = [make_case("0", [], [(box, 0)]), make_case("1", [(box, 0.5, 1)], [(box, 1)]), make_case("2")]
    matches = match(cases, classes=["a", "b", "never"])
    result, weights = bootstrap(matches, draws=300), resample(matches.groups, draws=300)
    undefined = int((weights[:, :2] == 0).all(axis=1).sum())
    dropped = int(((weights[:, :2] == 0).sum(axis=1) == 1).sum())
    assert min(undefined, dropped) > 0
    assert (result.attrs["n_undefined"], result.attrs["n_dropped_class"]) == (undefined, dropped)
    assert np.isnan(result["ap"].values[:, 0]).sum() == undefined
    only_b = (weights[:, 0] == 0) & (weights[:, 1] > 0)
    assert (result["ap"].values[only_b, 0] == 1).all()  # the average of b alone
    scored = evaluate(cases, classes=["a", "b", "never"], draws=300)
    assert (scored.attrs["n_undefined"], scored.attrs["n_dropped_class"]) == (undefined, dropped)
