"""Anchors: the objective by brute force, outliers, and that the search finds what is there to be found."""

import json
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from girih_data3d.planning import anchors
from girih_data3d.planning.anchors import START, mean_best_iou, optimise_anchors, without_outliers

CUBIC = [(stride,) * 3 for stride in (4, 8, 16, 32)]
SCALES = np.array(CUBIC) / 4


def by_hand(sizes: np.ndarray, anchors: np.ndarray, scales: np.ndarray) -> float:
    best = []
    for size in sizes:
        overlaps = []
        for anchor in (np.array(a) * s for a in anchors for s in scales):
            shared = np.minimum(size, anchor).prod()
            overlaps.append(shared / (size.prod() + anchor.prod() - shared))
        best.append(max(overlaps))
    return float(np.mean(best))


def test_the_mean_best_iou_of_two_objects() -> None:  # 8 / 8 at level 0; 64 of 4 x 4 x 8 at level 1
    sizes, one = np.array([[2.0, 2, 2], [4, 4, 8]]), np.array([[2, 2, 2]])
    assert mean_best_iou(sizes, one, np.array([[1, 1, 1], [2, 2, 2]])) == pytest.approx((1 + 0.5) / 2)


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.just(3)), elements=st.floats(0.5, 90)),
    hnp.arrays(np.int64, st.tuples(st.integers(1, 4), st.just(3)), elements=st.integers(1, 40)),
)
def test_the_mean_best_iou_by_brute_force(sizes: np.ndarray, anchors: np.ndarray) -> None:
    assert mean_best_iou(sizes, anchors, SCALES) == pytest.approx(by_hand(sizes, anchors, SCALES))


def test_objects_that_anchors_can_match_are_matched() -> None:
    widths = [(2, 5, 9), (3, 6, 11), (3, 7, 12)]
    sizes = np.array(list(product(*widths)) * 3, float)
    found = optimise_anchors(sizes, [(4, 4, 4)])
    assert found.sizes_zyx_voxels == tuple(product(*widths))
    assert found.mean_best_iou == 1
    assert found.objects == len(sizes)  # many attain a percentile: none is dropped


def test_outliers_are_dropped_but_never_all() -> None:
    sizes = np.random.default_rng(0).uniform(5, 20, (1000, 3))
    sizes[0] = 500
    assert 970 <= len(without_outliers(sizes)) < 1000  # five at each end of each axis
    assert without_outliers(sizes).max() < 21
    for few in (sizes[:1], sizes[:2], sizes[:9], np.full((50, 3), 4.0)):
        assert len(without_outliers(few)) == len(few)
    flat = sizes[1:].copy()
    flat[:, 0] = 3  # every object attains both percentiles of this axis
    assert len(without_outliers(flat)) == len(flat)


@settings(max_examples=4)
@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 40), st.just(3)), elements=st.floats(0.3, 300)), st.integers(0, 3)
)
def test_whole_widths_never_worse_than_the_start_and_repeatable(sizes: np.ndarray, seed: int) -> None:
    found = optimise_anchors(sizes, CUBIC, seed=seed)
    assert found == optimise_anchors(sizes, CUBIC, seed=seed)
    assert len(found.sizes_zyx_voxels) == 27
    assert min(map(min, found.sizes_zyx_voxels)) >= 1
    kept = without_outliers(sizes)
    start = np.array(list(product(START, repeat=3)))
    assert found.mean_best_iou >= mean_best_iou(kept, start, SCALES) - 1e-6
    assert found.mean_best_iou == pytest.approx(by_hand(kept, np.array(found.sizes_zyx_voxels), SCALES), abs=1e-6)


def test_later_levels_scale_by_their_strides_axis_by_axis() -> None:
    sizes = np.array([[2.0, 4, 4], [2, 8, 8], [4, 16, 16]] * 5)
    found = optimise_anchors(sizes, [(1, 2, 2), (1, 4, 4), (2, 8, 8)])
    assert found.mean_best_iou == 1


@pytest.mark.parametrize(("count", "median"), [(500, (300, 300, 300)), (3000, (30, 100, 100))])
def test_the_work_is_bounded_for_large_objects_too(
    count: int, median: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anchors, "SEARCH", anchors.SEARCH // 20)
    monkeypatch.setattr(anchors, "POLISH", anchors.POLISH // 20)
    spent, tried = 0, anchors._try

    def counted(*arguments: Any) -> list[float]:
        nonlocal spent
        _, _, _, candidates, objects, scales = arguments
        spent += (len(candidates) + 2) * len(objects) * 9 * len(scales)
        return tried(*arguments)

    monkeypatch.setattr(anchors, "_try", counted)
    rng = np.random.default_rng(0)
    sizes = np.array(median) * np.exp(rng.normal(0, 0.3, (count, 1)) + rng.normal(0, 0.1, (count, 3)))
    sizes = sizes[:: count // 100]
    levels = [(2, 4, 4), (4, 8, 8), (8, 16, 16), (16, 32, 32), (16, 64, 64)]
    found = optimise_anchors(sizes, levels)
    round_of_all = 9 * 70 * len(sizes) * 9 * len(levels)
    assert spent < anchors.SEARCH + 3 * anchors.POLISH + 8 * round_of_all
    assert found.mean_best_iou > 0.7


def test_widths_of_an_axis_differ() -> None:
    for sizes in (np.full((50, 3), (5.0, 10, 10)), np.array([[1.0, 1, 1]])):
        found = optimise_anchors(sizes, CUBIC)
        assert len(set(found.sizes_zyx_voxels)) == 27
        assert found.mean_best_iou == 1


def test_anchors_fit_the_nodules_of_lidc_better_than_differential_evolution() -> None:
    content = json.loads((Path(__file__).parents[1] / "data" / "lidc_nodules.json").read_text())
    sizes = np.array(content["sides_zyx_mm"])  # at 1 mm
    assert len(sizes) == 1389
    found = optimise_anchors(sizes, CUBIC)
    at_start = mean_best_iou(without_outliers(sizes), np.array(list(product(START, repeat=3))), SCALES)
    assert found.mean_best_iou > content["two_points_de"] > at_start


def test_a_hundred_thousand_objects_take_seconds() -> None:
    sizes = np.exp(np.random.default_rng(0).normal(2, 0.7, (100_000, 3)))
    start = time.process_time()
    found = optimise_anchors(sizes, CUBIC)
    assert time.process_time() - start < 10
    assert found.mean_best_iou > 0.6
    assert found.objects > 95_000


@pytest.mark.parametrize("sizes", [np.zeros((0, 3)), np.array([[1.0, 2, 0]]), np.array([[1.0, 2, np.nan]])])
def test_sizes_that_are_none_are_refused(sizes: np.ndarray) -> None:
    with pytest.raises(ValueError, match=f"sizes_zyx has {len(sizes)} objects, wanted at least one, and positive"):
        optimise_anchors(sizes, CUBIC)
