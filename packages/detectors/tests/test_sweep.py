"""The sweep against one that merges everything anew for every trial."""

import dataclasses
import importlib
import math
import weakref

import numpy as np
import pytest
import torch

from girih_detectors.inference import GRID, Candidates, Merging, RawCase, merge, sweep

SHAPE = (30, 30, 30)
SMALL = {"tile_iou": (0.1, 0.5), "ensemble_iou": (0.2, 0.5), "min_side": (0.01, 4.0)}


def raw_case(seed, sets=2, n=30) -> RawCase:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(sets):
        low = 22 * torch.rand(n, 3, generator=generator)
        boxes = torch.cat([low, low + 1 + 7 * torch.rand(n, 3, generator=generator)], dim=1)
        scores = torch.rand(n, generator=generator).sort(descending=True).values
        labels = torch.randint(0, 2, (n,), generator=generator)
        weights = 0.5 + 0.5 * torch.rand(n, generator=generator)
        found.append(Candidates(boxes=boxes, scores=scores, labels=labels, weights=weights))
    return {"shape_zyx": SHAPE, "candidates": found}


def torn(case) -> RawCase:
    """The last set has lost a score."""
    first, last = case["candidates"]
    return {"shape_zyx": SHAPE, "candidates": [first, last | {"scores": last["scores"][:-1]}]}


CASES = {f"case {seed}": raw_case(seed) for seed in range(3)}


def rough(detections) -> float:
    """A score with many hills: it depends on every box."""
    total = sum(float(one["scores"].sum() + np.sin(one["boxes"]).sum() / 50) for one in detections.values())
    return round(math.sin(total), 3)


def one_by_one(cases, score, start, grid):
    chosen, rows = start, []
    for name, values in grid.items():
        trials = []
        for value in values:
            merging = dataclasses.replace(chosen, **{name: value})
            found = {case: merge(raw["candidates"], raw["shape_zyx"], merging) for case, raw in cases.items()}
            trials.append((score(found), merging))
            rows.append({"parameter": name, "value": value, "score": trials[-1][0]})
        reached = max(score for score, _ in trials)
        chosen = next(merging for score, merging in trials if score == reached)
    return chosen, reached, tuple(rows)


def test_equals_merging_everything_anew_for_every_trial() -> None:
    found = sweep(CASES, rough)
    assert (found.merging, found.score, found.rows) == one_by_one(CASES, rough, Merging(), GRID)
    assert found.start_score == rough({name: merge(raw["candidates"], SHAPE) for name, raw in CASES.items()})
    assert found.score > found.start_score
    assert found == sweep(CASES, rough)


def test_tries_what_nndetection_tries_in_its_order_and_computes_nothing_twice(monkeypatch) -> None:
    module = importlib.import_module("girih_detectors.inference.sweep")
    merge_tiles, scored, merged, seen = module.merge_tiles, [], [], []
    monkeypatch.setattr(module, "merge_tiles", lambda *args: merged.append(args) or merge_tiles(*args))
    found = sweep(
        CASES,
        lambda detections: scored.append(detections) or rough(detections),
        progress=lambda done, total: seen.append((done, total)),
    )
    ious = [1e-5, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert [(row["parameter"], row["value"]) for row in found.rows] == [
        *(("tile_iou", value) for value in ious),
        ("tile_nms", "weighted"),
        ("tile_nms", "plain"),
        *(("ensemble_iou", value) for value in ious),
        *(("score_threshold", value) for value in [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
        *(("min_side", value) for value in [0.01, 2, 3, 4, 5, 6, 7]),
    ]
    assert len(scored) == 28 - 4  # each field but the first meets its value again
    assert len(merged) == (6 + 1 + 0 + 6 + 6) * len(CASES) * 2  # tiles are not merged again for ensemble_iou
    assert seen == [(i + 1, 28) for i in range(28)]
    assert all(list(detections) == list(CASES) for detections in scored)


def test_tiles_are_merged_once_for_all_settings_of_the_ensemble(monkeypatch) -> None:
    module = importlib.import_module("girih_detectors.inference.sweep")
    merge_tiles, merged = module.merge_tiles, []
    monkeypatch.setattr(module, "merge_tiles", lambda *args: merged.append(args) or merge_tiles(*args))
    sweep(CASES, rough, grid={"ensemble_iou": (0.1, 0.5), "ensemble_score_threshold": (0.0, 0.1, 0.2)})
    assert len(merged) == len(CASES) * 2


def test_only_the_best_merging_of_tiles_and_the_one_on_trial_are_held(monkeypatch) -> None:
    module = importlib.import_module("girih_detectors.inference.sweep")
    merge_tiles, merged, held = module.merge_tiles, [], []

    def watched(*args):
        found = merge_tiles(*args)
        merged.append(weakref.ref(found["boxes"]))
        return found

    def score(detections) -> float:
        held.append(sum(boxes() is not None for boxes in merged))
        return rough(detections)

    monkeypatch.setattr(module, "merge_tiles", watched)
    sweep(CASES, score)
    of_one = 2 * len(CASES)  # sets
    assert len(merged) == 19 * of_one
    assert max(held) == 2 * of_one
    assert not any(boxes() is not None for boxes in merged)


def test_the_first_of_equals_is_kept() -> None:
    found = sweep(CASES, lambda detections: 0.5)
    first = {name: values[0] for name, values in GRID.items()}
    assert found.merging == Merging(**first)
    assert found.score == found.start_score == 0.5


def test_nan_never_wins() -> None:
    nothing = sweep(CASES, lambda detections: math.nan, start=Merging(tile_iou=0.3))
    assert nothing.merging == Merging(tile_iou=0.3)
    assert math.isnan(nothing.score)
    assert math.isnan(nothing.start_score)
    assert len(nothing.rows) == 28
    scores = iter([math.nan, -2.0, math.nan, -1.0, math.nan, -1.0])
    found = sweep(CASES, lambda detections: next(scores), grid={"tile_iou": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)})
    assert found.merging == Merging(tile_iou=0.3)
    assert found.score == -1.0
    assert found.start_score == -2.0


def test_a_start_that_is_not_in_the_grid_is_tried_last() -> None:
    start = Merging(tile_iou=0.25, min_side=0.01, ensemble_score_threshold=0.05)
    found = sweep(CASES, rough, start=start, grid=SMALL)
    completed = {"tile_iou": (0.1, 0.5, 0.25), "ensemble_iou": (0.2, 0.5), "min_side": (0.01, 4.0)}
    assert (found.merging, found.score, found.rows) == one_by_one(CASES, rough, start, completed)
    assert found.merging.ensemble_score_threshold == 0.05
    best_start = sweep(CASES, lambda detections: -abs(rough(detections) - found.start_score), start=start, grid=SMALL)
    assert best_start.merging == start
    assert best_start.score == 0


def test_finds_the_setting_that_removes_what_disturbs() -> None:
    truth = [4.0, 4, 4, 12, 12, 12]

    def case(shift):  # each mirroring sees the object, and slivers of a high score
        rows = [([*truth[:5], 12.0 + shift], 0.8), ([20, 20, 20, 22.5, 22.5, 22.5], 0.9), ([0, 20, 0, 9, 29, 9], 0.25)]
        boxes, scores = zip(*sorted(rows, key=lambda row: -row[1]), strict=True)
        one = Candidates(
            boxes=torch.tensor(boxes),
            scores=torch.tensor(scores),
            labels=torch.zeros(3, dtype=torch.int64),
            weights=torch.ones(3),
        )
        return RawCase(shape_zyx=SHAPE, candidates=[one, one])

    def precision(detections):
        hits = [abs(one["boxes"] - truth).max(1, initial=0) < 2 for one in detections.values()]
        return float(np.mean([hit.mean() if len(hit) else 0.0 for hit in hits]))

    found = sweep({"a": case(0.0), "b": case(1.0)}, precision)
    assert found.start_score == pytest.approx(1 / 3)
    assert found.score == 1
    assert found.merging == Merging(tile_iou=1e-5, ensemble_iou=1e-5, score_threshold=0.3, min_side=3.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cases": {}}, "no cases to sweep over"),
        (
            {"cases": {"a": raw_case(0), "b": raw_case(0, sets=3)}},
            "case b has 3 sets of candidates and case a 2, wanted one per model and mirroring",
        ),
        ({"cases": {"a": {"shape_zyx": SHAPE, "candidates": []}}}, "case a: no candidates to merge"),
        (
            {"cases": {"a": raw_case(0), "b": torn(raw_case(1))}},
            r"case b: set 2 of 2, scores are \(29,\), wanted \(30,\) for 30 boxes",
        ),
        ({"grid": {}}, "the grid is empty, wanted values for some of pool, tile_nms"),
        ({"grid": {"model_iou": (0.1,)}}, "the grid has 'model_iou', wanted only pool, tile_nms"),
        ({"grid": {"tile_iou": ()}}, "the grid has no values for tile_iou"),
        ({"grid": SMALL | {"score_threshold": (0.1, 1.0)}}, r"score_threshold is 1\.0, wanted"),
    ],
)
def test_bad_input_is_refused_before_anything_is_scored(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        sweep(**({"cases": CASES, "score": lambda detections: pytest.fail("scored")} | changes))
