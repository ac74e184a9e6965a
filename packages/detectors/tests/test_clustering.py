"""Weighted box clustering against its definition in float64 and nnDetection's numbers."""

import inspect
import runpy
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from girih_detectors import class_nms, weighted_box_clustering
from girih_detectors.ops.clustering import check_weighted

DEFINITIONS = runpy.run_path(str(Path(__file__).with_name("definitions.py")))
crowd, definition = DEFINITIONS["crowd"], DEFINITIONS["weighted_clusters"]
ONE_CLASS = torch.zeros(4, dtype=torch.int64)


def weighted_crowd(n, seed, spread):
    boxes, scores, labels = crowd(n, seed, spread)
    generator = torch.Generator().manual_seed(seed + 1)
    return boxes, (scores + 0.02).clamp(max=1), labels, 0.5 + 0.5 * torch.rand(n, generator=generator)


@pytest.mark.parametrize(
    ("expected", "scores", "first"),  # measured with nnDetection 0.1
    [(3, [0.700610, 0.266667], 0), (8, [0.262729, 0.1], 0), (1, [0.8, 0.700610], 1)],
)
def test_nndetection_s_numbers(expected, scores, first) -> None:
    boxes = torch.tensor([[0.0, 0, 0, 10, 10, 10], [1, 0, 0, 11, 10, 10], [0, 2, 0, 10, 12, 10], [40] * 3 + [50] * 3])
    found = weighted_box_clustering(
        boxes, torch.tensor([0.9, 0.6, 0.3, 0.8]), ONE_CLASS, torch.tensor([1, 0.8, 0.5, 1]), 0.1, expected=expected
    )
    torch.testing.assert_close(found[1], torch.tensor(scores), atol=1e-6, rtol=0)
    merged = torch.tensor([0.281984, 0.143603, 0, 10.281985, 10.143603, 10])
    torch.testing.assert_close(found[0][first], merged, atol=2e-6, rtol=0)
    assert torch.equal(found[0][1 - first], boxes[3])
    assert found[2].tolist() == [0, 0]


def test_two_of_three_by_hand() -> None:  # IoU 1/3: a = 1, 1/6; sum(a s) = .6 + .05, sum(a) = 7/6, one is missing
    boxes = torch.tensor([[0.0, 0, 0, 4, 4, 4], [0, 0, 2, 4, 4, 6]])
    found = weighted_box_clustering(
        boxes, torch.tensor([0.6, 0.3]), ONE_CLASS[:2], torch.tensor([1.0, 0.5]), 0.3, expected=3
    )
    torch.testing.assert_close(found[1], torch.tensor([0.65 / (7 / 6 + 7 / 12)]))
    torch.testing.assert_close(found[0], torch.tensor([[0, 0, 2 * 0.05 / 0.65, 4, 4, 4 + 2 * 0.05 / 0.65]]))


@given(
    st.integers(0, 60),
    st.integers(0, 1000),
    st.sampled_from([1e-5, 0.1, 0.3, 0.5, 1.0]),
    st.sampled_from([4.0, 10.0, 30.0]),
    st.sampled_from([1, 2, 8, 40]),
)
def test_equals_the_definition(n, seed, threshold, spread, expected) -> None:
    case = weighted_crowd(n, seed, spread)
    boxes, scores, labels = weighted_box_clustering(*case, threshold, expected=expected)
    for row, want in enumerate(zip(*definition(*case, threshold, expected), strict=True)):
        torch.testing.assert_close(scores[row].double(), want[1], atol=1e-6, rtol=0)
        # float32 may order clusters of nearly one score in another way
        alike = (scores.double() - want[1]).abs() < 1e-6
        near = (boxes.double() - want[0]).abs().amax(1) < 1e-4
        assert (alike & near & (labels == want[2])).any()
    assert len(scores) == row + 1 if n else len(scores) == 0
    assert (scores.diff() <= 0).all()


def test_equals_the_definition_over_several_blocks() -> None:
    case = weighted_crowd(900, 1, 60.0)
    found, want = weighted_box_clustering(*case, 0.2, expected=8), definition(*case, 0.2, 8)
    torch.testing.assert_close(found[1], want[1].float())
    torch.testing.assert_close(found[0][:50], want[0][:50].float())


@given(st.integers(1, 40), st.integers(0, 1000), st.integers(1, 9), st.integers(1, 9))
def test_copies_of_a_box_are_the_box_bit_for_bit(n, seed, copies, expected) -> None:
    boxes, scores, labels, weights = weighted_crowd(n, seed, 15.0)
    alone = class_nms(boxes, scores, labels, 0.3)
    boxes, scores, labels = 1 / 3 + boxes[alone], scores[alone], labels[alone]
    several = (torch.cat([part] * copies) for part in (boxes, scores, labels))
    trust = torch.cat([(i + 1) * weights[alone] / 7 for i in range(copies)])
    found = weighted_box_clustering(*several, trust, 0.3, expected=expected)
    assert torch.equal(found[0], boxes)
    assert torch.equal(found[1], scores * (copies / max(copies, expected)))
    assert torch.equal(found[2], labels)


@given(st.integers(1, 40), st.integers(0, 1000), st.sampled_from([0.1, 0.4]))
def test_neither_order_nor_unit_of_the_weights_matters(n, seed, threshold) -> None:
    boxes, _, labels, weights = weighted_crowd(n, seed, 12.0)
    generator = torch.Generator().manual_seed(seed)
    scores, order = (1 + torch.randperm(n, generator=generator)) / n, torch.randperm(n, generator=generator)
    want = weighted_box_clustering(boxes, scores, labels, weights, threshold, expected=4)
    shuffled = (part[order] for part in (boxes, scores, labels, 3 * weights))
    again = weighted_box_clustering(*shuffled, threshold, expected=4)
    torch.testing.assert_close(again[1], want[1])
    torch.testing.assert_close(again[0].sort(0).values, want[0].sort(0).values, atol=1e-5, rtol=1e-5)


@given(st.integers(1, 40), st.integers(0, 1000))
def test_a_cluster_lies_within_its_boxes_and_below_its_best_score(n, seed) -> None:
    boxes, scores, labels, weights = weighted_crowd(n, seed, 6.0)
    found = weighted_box_clustering(boxes, scores, labels, weights, 0.1, expected=2)
    for box, score, label in zip(*found, strict=True):
        of_class = labels == label
        assert score <= scores[of_class].max()
        assert (box >= boxes[of_class].amin(0) - 1e-5).all()
        assert (box <= boxes[of_class].amax(0) + 1e-5).all()
    assert set(found[2].tolist()) == set(labels.tolist())


def test_the_best_box_that_is_left_leads() -> None:  # the last overlaps the middle one only, which is taken
    boxes = torch.tensor([[0.0, 0, 0, 4, 4, 4], [0, 0, 2, 4, 4, 6], [0, 0, 4, 4, 4, 8]])
    scores, weights = torch.tensor([0.9, 0.8, 0.7]), torch.ones(3)
    found = weighted_box_clustering(boxes, scores, ONE_CLASS[:3], weights, 0.1, expected=1)
    assert torch.equal(found[0][1], boxes[2])
    other = weighted_box_clustering(boxes, scores, torch.tensor([0, 1, 0]), weights, 0.1, expected=1)
    assert torch.equal(other[0], boxes)  # classes do not mix
    assert other[2].tolist() == [0, 1, 0]


def test_equal_scores_of_clusters_rank_by_the_box_that_leads() -> None:
    boxes = 20.0 * torch.arange(4)[:, None] + torch.tensor([0.0, 0, 0, 4, 4, 4])
    boxes[3] = boxes[1]
    found = weighted_box_clustering(
        boxes, torch.tensor([0.25, 0.5, 0.5, 0.5]), ONE_CLASS, torch.ones(4), 0.5, expected=2, score_threshold=0.2
    )  # 1 and 3: .5; 2: .5 / 2; 0: .25 / 2
    assert found[1].tolist() == [0.5, 0.25]
    assert torch.equal(found[0], boxes[[1, 2]])
    found = weighted_box_clustering(boxes, torch.full((4,), 0.5), ONE_CLASS, torch.ones(4), 0.5, expected=1)
    assert torch.equal(found[0], boxes[[0, 1, 2]])


def test_boxes_without_volume_and_scores_of_nothing() -> None:
    flat = torch.tensor([[1.0, 1, 1, 1, 3, 3]]).repeat(2, 1)
    found = weighted_box_clustering(flat, torch.tensor([0.4, 0.8]), ONE_CLASS[:2], torch.ones(2), 0.0, expected=2)
    assert torch.equal(found[0], flat)
    assert found[1].tolist() == pytest.approx([0.4, 0.2])
    none = weighted_box_clustering(flat, torch.zeros(2), ONE_CLASS[:2], torch.ones(2), 0.0, expected=2)
    assert none[0].shape == (0, 6)  # a score must be greater than 0
    faint = torch.tensor([[0.0, 0, 0, 4, 4, 4], [0, 0, 1, 4, 4, 5]])
    tiny = torch.full((2,), 1e-42)  # products with it are 0 in float32
    found = weighted_box_clustering(faint, tiny, ONE_CLASS[:2], torch.full((2,), 1e-10), 0.1, expected=1)
    assert torch.equal(found[0], faint[:1])


def test_neither_autocast_nor_a_wider_type_changes_the_answer() -> None:
    case = weighted_crowd(200, 3, 15.0)
    want = weighted_box_clustering(*case, 0.3, expected=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = weighted_box_clustering(*case, 0.3, expected=8)
    assert all(torch.equal(a, b) for a, b in zip(cast, want, strict=True))
    boxes, scores, labels, weights = case
    wide = weighted_box_clustering(boxes.double(), scores.double(), labels, weights.double(), 0.3, expected=8)
    assert wide[0].dtype == wide[1].dtype == torch.float64
    torch.testing.assert_close(wide[1].float(), want[1])
    half = weighted_box_clustering(boxes.half(), scores.half(), labels, weights.half(), 0.3, expected=8)
    assert half[0].dtype == half[1].dtype == torch.float16


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8])
def test_labels_are_integers_of_any_width(kind) -> None:
    boxes, scores, labels, weights = weighted_crowd(200, 3, 15.0)
    want = weighted_box_clustering(boxes, scores, labels, weights, 0.3, expected=8)
    found = weighted_box_clustering(boxes, scores, labels.to(kind), weights, 0.3, expected=8)
    assert all(torch.equal(a, b) for a, b in zip(found[:2], want[:2], strict=True))
    assert torch.equal(found[2], want[2].to(kind))


@pytest.mark.parametrize("objects", [1, 250, 1000, 2000])
def test_two_thousand_boxes_are_quick(objects) -> None:
    generator = torch.Generator().manual_seed(0)
    middle = 512 * torch.rand(objects, 1, 3, generator=generator)
    centre = (middle + torch.randn(objects, 2000 // objects, 3, generator=generator)).flatten(0, 1)
    half = 6 + 3 * torch.rand(2000, 3, generator=generator)
    boxes, scores = torch.cat([centre - half, centre + half], dim=1), torch.rand(2000, generator=generator)
    labels, seconds = torch.zeros(2000, dtype=torch.int64), []
    for _ in range(5):
        start = time.process_time()
        weighted_box_clustering(boxes, scores, labels, torch.ones(2000), 0.1, expected=8)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.2  # at most about 0.02; the bound only catches a slip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iou_threshold": 1.5}, r"iou_threshold is 1\.5, wanted 0\.\.1"),
        ({"expected": 0}, "expected is 0, wanted an integer of 1 or more"),
        ({"expected": float("nan")}, "expected is nan, wanted an integer"),
        ({"expected": 2.5}, r"expected is 2\.5, wanted an integer"),
        ({"score_threshold": 1.0}, r"score_threshold is 1\.0, wanted at least 0 and less than 1"),
        ({"score_threshold": float("nan")}, "score_threshold is nan"),
        ({"weights": torch.ones(2)}, r"weights are \(2,\), wanted \(3,\) for 3 boxes"),
        ({"weights": torch.ones(3, 1)}, r"weights are \(3, 1\), wanted"),
        ({"scores": torch.ones(3, 1)}, r"scores are \(3, 1\), wanted"),
        ({"labels": torch.zeros(3, 1, dtype=torch.int64)}, r"labels are \(3, 1\), wanted"),
        ({"boxes": torch.zeros(3, 4)}, r"boxes are \(3, 4\), wanted \(3, 6\)"),
        ({"boxes": torch.zeros(3, 6, dtype=torch.int64)}, "boxes are torch.int64, wanted floating-point numbers"),
        ({"scores": torch.tensor([3, 2, 1])}, "scores are torch.int64, wanted floating-point numbers"),
        ({"weights": torch.ones(3, dtype=torch.bool)}, "weights are torch.bool, wanted floating-point numbers"),
        ({"labels": torch.zeros(3)}, "labels are torch.float32, wanted integers"),
        ({"weights": torch.tensor([1.0, 0.0, 1.0])}, r"row 1: .* weight 0\.0; wanted .* a weight greater than 0"),
        ({"scores": torch.tensor([0.5, 0.5, -0.1])}, r"row 2: .* score -0\.1"),
        ({"scores": torch.tensor([torch.nan, 0.5, 0.1])}, "row 0: .* score nan"),
        ({"boxes": torch.tensor([[0.0, 0, 0, 1, 1, 1]] * 2 + [[0, 0, 3, 1, 1, 1]])}, r"row 2: box \[0\.0, 0\.0, 3\.0"),
        ({"boxes": torch.tensor([[0.0, 0, 0, 1, 1, torch.inf]] * 3)}, "row 0: .* wanted finite numbers"),
    ],
)
def test_bad_input_is_refused(changes, message) -> None:
    boxes, scores, labels, weights = weighted_crowd(3, 0, 4.0)
    given = {"boxes": boxes, "scores": scores, "labels": labels, "weights": weights}
    plain = inspect.unwrap(weighted_box_clustering)  # run-time type checks would speak first
    with pytest.raises(ValueError, match=message):
        plain(**(given | {"iou_threshold": 0.5, "expected": 2} | changes))


def test_arrays_are_refused() -> None:
    columns = (np.zeros((1, 6)), np.ones(1), np.zeros(1, int), np.ones(1))
    with pytest.raises(ValueError, match="boxes are ndarray, wanted a tensor"):
        inspect.unwrap(check_weighted)(*columns)
