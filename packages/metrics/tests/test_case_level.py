"""Whole cases: AUROC and AP against pair counting and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from girih_metrics import case_level, case_scores, match


def test_by_hand(make_case, cube):
    box = cube(0, 0, 0, 2)
    cases = [
        make_case("0", [(box, 0.9, 0)], [(box, 0)]),
        make_case("1", [(box, 0.9, 0)]),
        make_case("2"),
        make_case("3", [], [(box, 0)]),
    ]
    result = case_level(match(cases, classes=["a"]))
    # Pairs: 0 ties with 1, beats 2; 3 loses to 1, ties with 2.
    assert result["auroc"].item() == (0.5 + 1 + 0 + 0.5) / 4
    assert result["ap"].item() == 0.5 * 0.5 + 0.5 * 0.5


@given(st.data())
def test_area_counts_pairs_and_weights_count_copies(case_lists, data):
    cases = data.draw(case_lists())
    matches = match(cases, classes=("a", "b"))
    label = data.draw(st.sampled_from([None, 0, 1]))
    scores, positive = case_scores(matches, label=label)
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[positive] for n in scores[~positive]]
    result = case_level(matches, label=label)
    assert result["auroc"].item() == pytest.approx(np.mean(pairs) if pairs else np.nan, nan_ok=True)
    times = data.draw(st.lists(st.integers(0, 3), min_size=len(cases), max_size=len(cases)).filter(any))
    copies = [
        case | {"case_id": f"{i}-{k}"} for i, (case, n) in enumerate(zip(cases, times, strict=True)) for k in range(n)
    ]
    naive = case_level(match(copies, classes=("a", "b")), label=label)
    weighted = case_level(matches, label=label, weights=np.array([times]))
    for name in ("auroc", "ap"):
        np.testing.assert_array_equal(weighted[name][0], naive[name])


def test_noisy_or(make_case, cube):
    box = cube(0, 0, 0, 2)
    matches = match([make_case("0", [(box, 0.5, 0), (box, 0.5, 0)], [(box, 0)]), make_case("1")], classes=["a"])
    scores, positive = case_scores(matches, combine="noisy_or")
    assert scores.tolist() == [0.75, 0]
    assert positive.tolist() == [True, False]
    logits = match([make_case("0", [(box, 5.0, 0)])], classes=["a"])
    with pytest.raises(ValueError, match=r"wants them in \[0, 1\]"):
        case_level(logits, combine="noisy_or")


def test_one_kind_of_case_has_no_area(make_case, cube):
    box = cube(0, 0, 0, 2)
    negative = case_level(match([make_case("0", [(box, 0.5, 0)])], classes=["a"]))
    assert np.isnan(negative["auroc"])
    assert np.isnan(negative["ap"])
    positive = case_level(match([make_case("0", [(box, 0.5, 0)], [(box, 0)])], classes=["a"]))
    assert np.isnan(positive["auroc"])
    assert positive["ap"] == 1
