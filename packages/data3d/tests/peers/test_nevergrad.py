"""Anchors against nnDetection's own search: nevergrad's TwoPointsDE, three runs of 5000 evaluations each."""

import json
from itertools import product
from pathlib import Path

import nevergrad as ng
import numpy as np
import pytest

from girih_data3d.planning.anchors import START, mean_best_iou, optimise_anchors, without_outliers

RUNS, EVALUATIONS = 3, 5000
CUBIC = [(stride,) * 3 for stride in (4, 8, 16, 32)]
FLAT = [(2, 4, 4), (4, 8, 8), (8, 16, 16)]


def log_normal(median_zyx: tuple[float, float, float], spread: float, count: int) -> np.ndarray:
    """Sizes whose axes go together, as those of nodules do."""
    rng = np.random.default_rng(1)
    common = rng.normal(0, spread, (count, 1))
    return np.array(median_zyx) * np.exp(common + rng.normal(0, spread / 3, (count, 3)))


def reference(sizes: np.ndarray, strides: list[tuple[int, int, int]]) -> float:
    """The best that any evaluation of any run saw (nnDetection compares the last ones instead)."""
    scales = np.array(strides) / np.array(strides[0])
    best = 0.0
    for run in range(RUNS):
        arrays = {}
        for name in ("width", "height", "depth"):
            arrays[name] = ng.p.Array(init=np.array(START, float)).set_integer_casting().set_bounds(lower=1)
        space = ng.p.Instrumentation(**arrays)
        space.random_state.seed(run)
        search = ng.optimizers.registry["TwoPointsDE"](parametrization=space, budget=EVALUATIONS, num_workers=1)
        for _ in range(EVALUATIONS):
            asked = search.ask()
            anchors = np.array(list(product(*(asked.kwargs[name] for name in ("width", "height", "depth")))))
            overlap = mean_best_iou(sizes, anchors, scales)
            search.tell(asked, -overlap)
            best = max(best, overlap)
    return best


@pytest.mark.filterwarnings("ignore")  # nevergrad's own, about bounds and recommendations
@pytest.mark.parametrize(
    ("median", "spread", "strides"), [((8, 8, 8), 0.6, CUBIC), ((3, 14, 14), 0.5, FLAT), ((40, 30, 30), 0.9, CUBIC)]
)
def test_anchors_fit_no_worse_than_those_of_differential_evolution(
    median: tuple[float, float, float], spread: float, strides: list[tuple[int, int, int]]
) -> None:
    sizes = log_normal(median, spread, 250)
    found = optimise_anchors(sizes, strides)
    assert found.mean_best_iou >= reference(without_outliers(sizes), strides) - 1e-6


@pytest.mark.filterwarnings("ignore")
def test_what_is_recorded_for_the_nodules_of_lidc_is_what_it_finds() -> None:
    content = json.loads((Path(__file__).parents[1] / "data" / "lidc_nodules.json").read_text())
    sizes = without_outliers(np.array(content["sides_zyx_mm"]))
    assert reference(sizes, CUBIC) == pytest.approx(content["two_points_de"], abs=1e-3)
