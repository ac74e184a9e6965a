"""Merging over tiles, mirrors and models against the steps written out one by one."""

import dataclasses
import inspect
import json
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from girih_detectors.inference import Candidates, Merging, merge

DEFINITIONS = runpy.run_path(str(Path(__file__).with_name("definitions.py")))
SHAPE = (20, 24, 28)
BOX = [2.0, 2, 2, 6, 6, 6]


def candidates(rows) -> Candidates:
    """Rows of (box, score, label, weight), by descending score."""
    return Candidates(
        boxes=torch.tensor([row[0] for row in rows]).reshape(-1, 6),
        scores=torch.tensor([row[1] for row in rows]),
        labels=torch.tensor([row[2] for row in rows], dtype=torch.int64),
        weights=torch.tensor([row[3] for row in rows]),
    )


def crowd(n, seed) -> Candidates:
    """Some reach out of the volume; no two scores are equal."""
    boxes, _, labels = DEFINITIONS["crowd"](n, seed, 26.0)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(n, generator=generator).sort(descending=True).values
    weights = 0.5 + 0.5 * torch.rand(n, generator=generator)
    return Candidates(boxes=boxes - 4, scores=scores, labels=labels, weights=weights)


def by_the_book(sets, shape, merging):
    """The steps of nnDetection 0.1, in plain loops."""
    pooled = []
    for pool in sets:
        rows = sorted(zip(*(pool[key] for key in ("boxes", "scores", "labels", "weights")), strict=True), key=by_score)
        stay = []
        for box, score, label, weight in rows[: merging.pool]:
            low = [max(0.0, float(edge)) for edge in box[:3]]
            high = [min(float(n), float(edge)) for edge, n in zip(box[3:], shape, strict=True)]
            sides = torch.tensor(high) - torch.tensor(low)
            if score > merging.score_threshold and (sides >= merging.min_side).all():
                stay.append((torch.tensor(low + high), score, label, weight))
        if not stay:
            continue
        boxes, scores, labels, weights = (torch.stack(column) for column in zip(*stay, strict=True))
        rank = scores * weights if merging.tile_nms == "weighted" else scores
        kept = DEFINITIONS["greedy_nms"](boxes, rank, labels, merging.tile_iou)[: merging.max_detections]
        if merging.tile_nms == "weighted":
            weights = torch.ones_like(weights)
        pooled += [(boxes[i], scores[i], labels[i], weights[i]) for i in kept]
    if not pooled:
        return torch.zeros(0, 6), torch.zeros(0), torch.zeros(0)
    columns = (torch.stack(column) for column in zip(*pooled, strict=True))
    found = DEFINITIONS["weighted_clusters"](*columns, merging.ensemble_iou, len(sets))
    stays = found[1] > merging.ensemble_score_threshold
    return tuple(part[stays][: merging.max_detections] for part in found)


def by_score(row):
    return -float(row[1])


@given(
    st.lists(st.integers(0, 25), min_size=1, max_size=4),
    st.integers(0, 1000),
    st.builds(
        Merging,
        pool=st.sampled_from([7, 1000]),
        tile_nms=st.sampled_from(["weighted", "plain"]),
        tile_iou=st.sampled_from([1e-5, 0.1, 0.5]),
        score_threshold=st.sampled_from([0.0, 0.3]),
        min_side=st.sampled_from([0.01, 3.0]),
        ensemble_iou=st.sampled_from([1e-5, 0.1, 0.5]),
        ensemble_score_threshold=st.sampled_from([0.0, 0.2]),
        max_detections=st.sampled_from([4, 100]),
    ),
)
def test_equals_the_steps_one_by_one(counts, seed, merging) -> None:
    sets = [crowd(n, seed + i) for i, n in enumerate(counts)]
    found, want = merge(sets, SHAPE, merging), by_the_book(sets, SHAPE, merging)
    assert found["boxes"].dtype == found["scores"].dtype == np.float32
    assert found["labels"].dtype == np.int64
    np.testing.assert_allclose(found["scores"], want[1], atol=1e-6)
    np.testing.assert_allclose(found["boxes"], want[0].reshape(-1, 6), atol=1e-4)
    np.testing.assert_array_equal(found["labels"], want[2])


@given(st.integers(0, 40), st.integers(0, 1000), st.integers(1, 9))
def test_one_set_keeps_its_boxes_bit_for_bit_and_so_do_copies_of_it(n, seed, copies) -> None:
    alone = crowd(n, seed)
    found = merge([alone] * copies, SHAPE)
    boxes, limit = alone["boxes"].clamp(min=0), torch.tensor(SHAPE * 2)
    boxes = torch.minimum(boxes, limit)
    inside = (boxes[:, 3:] - boxes[:, :3] >= 0.01).all(1)
    boxes, scores, labels, weights = (
        part[inside] for part in (boxes, alone["scores"], alone["labels"], alone["weights"])
    )
    kept = DEFINITIONS["greedy_nms"](boxes, scores * weights, labels, 0.1).sort().values  # by score
    assert np.array_equal(found["boxes"], boxes[kept])
    assert np.array_equal(found["scores"], scores[kept])
    assert np.array_equal(found["labels"], labels[kept])


@given(st.integers(1, 30), st.integers(0, 1000))
def test_the_order_of_the_models_does_not_matter(n, seed) -> None:
    sets = [crowd(n, seed + i) for i in range(3)]
    one, other = merge(sets, SHAPE), merge(sets[::-1], SHAPE)
    np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-6)
    np.testing.assert_allclose(one["boxes"], other["boxes"], atol=1e-4)


def test_what_one_mirroring_of_eight_has_seen_counts_an_eighth() -> None:
    sets = [candidates([(BOX, 0.8, 0, 1.0)])] + [candidates([])] * 7
    found = merge(sets, SHAPE)
    assert found["boxes"].tolist() == [BOX]
    assert found["scores"] == pytest.approx([0.1])
    assert len(merge(sets, SHAPE, Merging(ensemble_score_threshold=0.1))["boxes"]) == 0
    assert len(merge(sets, SHAPE, Merging(ensemble_score_threshold=0.09))["boxes"]) == 1


def test_weights_rank_boxes_of_tiles_or_count_in_the_mean_but_not_both() -> None:
    # score * weight: .45 and .8; then IoU 3/5 with the other mirroring
    first = candidates([(BOX, 0.9, 0, 0.5), ([2, 2, 3, 6, 6, 7], 0.8, 0, 1.0)])
    second = candidates([(BOX, 0.6, 0, 0.5)])
    weighted = merge([first, second], SHAPE)
    assert weighted["scores"] == pytest.approx([(0.8 + 0.6 * 0.6) / 1.6])
    assert weighted["boxes"][0, 2] == pytest.approx((0.8 * 3 + 0.6 * 0.6 * 2) / (0.8 + 0.6 * 0.6))
    plain = merge([first, candidates([(BOX, 0.6, 0, 1.0)])], SHAPE, Merging(tile_nms="plain"))
    assert plain["boxes"].tolist() == [BOX]
    assert plain["scores"] == pytest.approx([(0.5 * 0.9 + 0.6) / 1.5])


def test_what_is_dropped_on_the_way() -> None:
    sliver, outside = [-5.0, 2, 2, 0.5, 6, 6], [30.0, 2, 2, 36, 6, 6]
    sets = [candidates([(BOX, 0.9, 0, 1.0), (sliver, 0.8, 0, 1.0), (outside, 0.7, 0, 1.0), (BOX, 0.25, 1, 1.0)])]
    found = merge(sets, SHAPE)
    assert found["boxes"].tolist() == [BOX, [0, 2, 2, 0.5, 6, 6], BOX]
    assert found["labels"].tolist() == [0, 0, 1]
    assert merge(sets, SHAPE, Merging(min_side=1.0))["labels"].tolist() == [0, 1]
    assert merge(sets, SHAPE, Merging(score_threshold=0.25))["labels"].tolist() == [0, 0]  # must be greater
    assert merge(sets, SHAPE, Merging(pool=3))["labels"].tolist() == [0, 0]
    assert merge(sets, SHAPE, Merging(max_detections=1))["boxes"].tolist() == [BOX]


@pytest.mark.parametrize("tile_nms", ["weighted", "plain"])
def test_each_set_is_cut_before_the_sets_are_joined(tile_nms) -> None:
    far = [12.0, 12, 12, 16, 16, 16]
    sets = [candidates([(BOX, 0.9, 0, 1.0), (far, 0.8, 0, 1.0)]), candidates([(far, 0.7, 0, 1.0)])]
    whole = merge(sets, SHAPE, Merging(tile_nms=tile_nms))
    assert whole["boxes"].tolist() == [far, BOX]
    assert whole["scores"] == pytest.approx([0.75, 0.45])
    cut = merge(sets, SHAPE, Merging(tile_nms=tile_nms, max_detections=1))  # `far` is left in one set only
    assert cut["boxes"].tolist() == [BOX]
    assert cut["scores"] == pytest.approx([0.45])


def far_apart(n, seed) -> Candidates:
    """What a mirroring sees of n objects: each box is shaken a little; the worse objects score low in all of them."""
    generator = torch.Generator().manual_seed(seed)
    corner = 20.0 * torch.cartesian_prod(*[torch.arange(5)] * 3)[:n]
    low = corner + 0.3 * torch.rand(n, 3, generator=generator)
    scores = torch.linspace(0.95, 0.05, n) - 0.004 * torch.rand(n, generator=generator)
    labels = torch.zeros(n, dtype=torch.int64)
    return Candidates(boxes=torch.cat([low, low + 12], dim=1), scores=scores, labels=labels, weights=torch.ones(n))


@pytest.mark.parametrize("models", [2, 5])
def test_copies_of_a_model_with_mirrors_find_what_it_finds_alone(models) -> None:  # 800 boxes, 1600, 4000
    sets = [far_apart(100, seed) for seed in range(8)]
    alone, several = merge(sets, (112, 112, 112)), merge(sets * models, (112, 112, 112))
    assert len(alone["boxes"]) == len(several["boxes"]) == 100
    np.testing.assert_allclose(several["boxes"], alone["boxes"], atol=1e-4)
    np.testing.assert_allclose(several["scores"], alone["scores"], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.tensor([0.9, 0.8])}, r"scores are \(2,\), wanted \(3,\) for 3 boxes"),
        ({"weights": torch.ones(4)}, r"weights are \(4,\), wanted \(3,\)"),
        ({"labels": torch.zeros(3)}, "labels are torch.float32, wanted integers"),
        ({"boxes": torch.zeros(3, 7)}, r"boxes are \(3, 7\)"),
        ({"boxes": torch.tensor([BOX, BOX, [math.nan] * 6])}, "row 2: box .nan"),
        ({"boxes": torch.tensor([BOX, [*BOX[:5], math.inf], BOX])}, "row 1: box .*inf"),
        ({"boxes": torch.tensor([BOX, BOX[3:] + BOX[:3], BOX])}, r"row 1: box \[6\.0.* no negative side"),
        ({"scores": torch.tensor([0.9, 0.8, math.nan])}, "row 2: .* score nan"),
        ({"scores": torch.tensor([math.inf, 0.8, 0.7])}, "row 0: .* score inf"),
        ({"scores": torch.tensor([0.9, 0.8, -0.1])}, r"row 2: .* score -0\.1"),
        ({"weights": torch.tensor([1.0, math.nan, 1.0])}, "row 1: .* weight nan"),
        ({"weights": torch.tensor([1.0, 0.0, 1.0])}, r"row 1: .* weight 0\.0"),
    ],
)
@pytest.mark.parametrize("tile_nms", ["weighted", "plain"])
def test_malformed_candidates_are_refused_by_set_and_row(change, message, tile_nms) -> None:
    good = candidates([(BOX, 0.9, 0, 1.0)] * 3)
    with pytest.raises(ValueError, match=f"^set 2 of 3, {message}"):
        merge([good, good | change, good], SHAPE, Merging(tile_nms=tile_nms))


def test_candidates_can_be_merged_again() -> None:
    sets = [crowd(30, 0), crowd(30, 1)]
    before = [{key: value.clone() for key, value in one.items()} for one in sets]
    merge(sets, SHAPE)
    merge(sets, SHAPE, Merging(tile_nms="plain"))
    assert all(torch.equal(one[key], was[key]) for one, was in zip(sets, before, strict=True) for key in was)


def test_nothing_found_and_nobody_asked() -> None:
    found = merge([candidates([])] * 8, SHAPE)
    assert found["boxes"].shape == (0, 6)
    assert (found["boxes"].dtype, found["scores"].dtype, found["labels"].dtype) == (np.float32, np.float32, np.int64)
    with pytest.raises(ValueError, match="no candidates to merge, wanted one set"):
        merge([], SHAPE)
    with pytest.raises(ValueError, match=r"shape_zyx is \(1, 20, 24, 28\), wanted the voxels along"):
        inspect.unwrap(merge)([candidates([])], (1, *SHAPE))


def test_starts_as_nndetection_and_survives_json() -> None:
    start = Merging()
    assert dataclasses.asdict(start) == {
        "pool": 1000,
        "tile_nms": "weighted",
        "tile_iou": 0.1,
        "score_threshold": 0.0,
        "min_side": 0.01,
        "ensemble_iou": 0.5,
        "ensemble_score_threshold": 0.0,
        "max_detections": 100,
    }
    other = Merging(tile_nms="plain", tile_iou=1e-5, min_side=7.0, pool=3)
    assert Merging(**json.loads(json.dumps(dataclasses.asdict(other)))) == other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": 0}, "pool is 0, wanted an integer of 1 or more"),
        ({"pool": 10.0}, r"pool is 10\.0, wanted an integer"),
        ({"max_detections": 0}, "max_detections is 0, wanted an integer of 1 or more"),
        ({"tile_iou": 1.1}, r"tile_iou is 1\.1, wanted a number in 0\.\.1"),
        ({"ensemble_iou": math.nan}, "ensemble_iou is nan"),
        ({"ensemble_iou": "0.5"}, r"ensemble_iou is '0\.5', wanted a number"),
        ({"score_threshold": 1.0}, r"score_threshold is 1\.0, wanted a number of at least 0 and less than 1"),
        ({"ensemble_score_threshold": -0.1}, r"ensemble_score_threshold is -0\.1"),
        ({"min_side": math.inf}, "min_side is inf, wanted a number greater than 0"),
        ({"min_side": 0.0}, r"min_side is 0\.0, wanted a number greater than 0"),
        ({"min_side": None}, "min_side is None"),
        ({"tile_nms": "soft"}, "tile_nms is 'soft', wanted one of weighted, plain"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message) -> None:
    settings = Merging()
    for name, value in changes.items():
        object.__setattr__(settings, name, value)  # past run-time type checks, which would speak first
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(Merging.__post_init__)(settings)
