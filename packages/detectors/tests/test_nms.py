"""Class-wise NMS against the textbook loop."""

import inspect
import runpy
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from girih_detectors import class_nms, pairwise_iou, weighted_nms
from girih_detectors.ops.nms import suppressor

DEFINITIONS = runpy.run_path(str(Path(__file__).with_name("definitions.py")))
crowd = DEFINITIONS["crowd"]


def textbook(*case) -> list[int]:
    return DEFINITIONS["greedy_nms"](*case).tolist()


@given(st.integers(0, 40), st.integers(0, 1000), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sampled_from([4.0, 30.0]))
def test_equals_the_textbook(n, seed, threshold, spread) -> None:
    boxes, scores, labels = crowd(n, seed, spread)
    want = textbook(boxes, scores, labels, threshold)
    assert class_nms(boxes, scores, labels, threshold).tolist() == want
    assert class_nms(boxes, scores, labels, threshold, max_keep=3).tolist() == want[:3]


def test_equals_the_textbook_over_several_blocks() -> None:
    boxes, scores, labels = crowd(700, 1, 40.0)
    assert class_nms(boxes, scores, labels, 0.3).tolist() == textbook(boxes, scores, labels, 0.3)


@given(st.integers(1, 60), st.integers(0, 1000))
def test_idempotent_and_independent_of_order(n, seed) -> None:
    boxes, _, labels = crowd(n, seed, 20.0)
    generator = torch.Generator().manual_seed(seed)
    scores, shuffle = torch.randperm(n, generator=generator).float(), torch.randperm(n, generator=generator)
    kept = class_nms(boxes, scores, labels, 0.2)
    assert torch.equal(class_nms(boxes[kept], scores[kept], labels[kept], 0.2), torch.arange(len(kept)))
    again = class_nms(boxes[shuffle], scores[shuffle], labels[shuffle], 0.2)
    assert torch.equal(shuffle[again], kept)


def test_a_chain_of_three_keeps_its_ends() -> None:  # the middle falls, so it cannot pull the last one down
    boxes = torch.tensor([[0.0, 0, 0, 4, 4, 4], [0, 0, 2, 4, 4, 6], [0, 0, 4, 4, 4, 8]])
    labels = torch.zeros(3, dtype=torch.int64)
    assert class_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), labels, 0.1).tolist() == [0, 2]
    assert class_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0]), 0.1).tolist() == [0, 1, 2]


def test_boxes_without_volume_suppress_nothing() -> None:
    boxes = torch.tensor([[1.0, 1, 1, 1, 3, 3]] * 2 + [[0.0, 0, 0, 4, 4, 4]])
    assert class_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64), 0.0).tolist() == [0, 1, 2]


def test_ten_thousand_clustered_boxes_are_quick() -> None:
    generator = torch.Generator().manual_seed(0)
    middle = 512 * torch.rand(300, 1, 3, generator=generator)
    centre = (middle + torch.randn(300, 34, 3, generator=generator)).flatten(0, 1)[:10_000]
    half = 4 + 8 * torch.rand(len(centre), 3, generator=generator)
    boxes, scores = torch.cat([centre - half, centre + half], dim=1), torch.rand(10_000, generator=generator)
    start = time.process_time()
    kept = class_nms(boxes, scores, torch.zeros(10_000, dtype=torch.int64), 0.1)
    assert time.process_time() - start < 2.0  # about 0.02; the bound only catches a quadratic slip
    assert 100 < len(kept) < 1000


class Counted(TorchDispatchMode):
    """How many operations torch was asked for."""

    operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations += 1
        return function(*args, **(kwargs or {}))


def test_a_chain_costs_no_more_operations_than_any_other_boxes() -> None:
    """Each box touches the next one only and ranks after it: no box is settled before all that rank before it are."""
    centre = torch.zeros(2000, 3)
    centre[:, 2] = 0.5 * torch.arange(2000)
    boxes, labels = torch.cat([centre - 6, centre + 6], dim=1), torch.zeros(2000, dtype=torch.int64)
    assert class_nms(boxes, torch.linspace(0.01, 1, 2000), labels, 0.9).tolist() == list(range(1999, 0, -2))
    with Counted() as chain:
        class_nms(boxes, torch.linspace(0.01, 1, 2000), labels, 0.9)
    with Counted() as apart:
        class_nms(2 * boxes, torch.linspace(0.01, 1, 2000), labels, 1.0)  # all stay
    assert chain.operations < apart.operations
    assert apart.operations < 16 * 160  # blocks of 128, of which none costs an operation per box


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8])
def test_labels_are_integers_of_any_width(kind) -> None:
    boxes, scores, labels = crowd(200, 0, 10.0)
    assert torch.equal(class_nms(boxes, scores, labels.to(kind), 0.1), class_nms(boxes, scores, labels, 0.1))


def test_neither_autocast_nor_the_type_of_the_boxes_changes_the_answer() -> None:
    boxes, scores, labels = crowd(300, 2, 20.0)
    boxes = boxes.bfloat16()
    want = textbook(boxes.float(), scores, labels, 0.3)
    assert class_nms(boxes, scores, labels, 0.3).tolist() == want
    assert class_nms(boxes.double(), scores, labels, 0.3).tolist() == want
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert class_nms(boxes.float(), scores, labels, 0.3).tolist() == want


def test_equal_scores_rank_by_index() -> None:
    boxes, labels = torch.tensor([[0.0, 0, 0, 4, 4, 4]]).repeat(5, 1), torch.tensor([1, 0, 1, 0, 0])
    assert class_nms(boxes, torch.tensor([0.0, -0.0, 0.0, 0.5, 0.0]), labels, 0.5).tolist() == [3, 0]


def test_nan_ranks_last_and_a_box_with_nan_stays_and_suppresses_nothing() -> None:
    boxes, labels = torch.tensor([[0.0, 0, 0, 4, 4, 4]]).repeat(5, 1), torch.zeros(5, dtype=torch.int64)
    scores = torch.tensor([torch.nan, -1.0, torch.nan, torch.inf, -torch.inf])
    boxes[1:, ::3] += 10 * torch.arange(1.0, 5)[:, None]  # no two touch
    assert class_nms(boxes, scores, labels, 0.5).tolist() == [3, 1, 0, 2, 4]  # NaN as -infinity, ties by index
    same = boxes[:1].repeat(5, 1)
    same[1, 4] = torch.nan
    assert class_nms(same, torch.tensor([0.5, 0.9, 0.8, 0.1, torch.nan]), labels, 0.5).tolist() == [1, 2]


def test_of_two_tiles_the_one_that_sees_the_object_better_gives_the_box() -> None:
    boxes = torch.tensor([[0.0, 0, 0, 4, 4, 4], [0, 0, 1, 4, 4, 5], [9, 9, 9, 12, 12, 12]])
    scores, labels = torch.tensor([0.9, 0.8, 0.5]), torch.zeros(3, dtype=torch.int64)
    assert weighted_nms(boxes, scores, labels, torch.tensor([0.5, 1.0, 1.0]), 0.1).tolist() == [1, 2]
    assert weighted_nms(boxes, scores, labels, torch.tensor([0.5, 0.5, 1.0]), 0.1).tolist() == [2, 0]  # .5, .45
    assert weighted_nms(boxes, scores, labels, torch.ones(3), 0.1, max_keep=1).tolist() == [0]


@given(st.integers(0, 40), st.integers(0, 1000))
def test_weighted_nms_is_the_textbook_s_with_weighted_scores(n, seed) -> None:
    boxes, scores, labels = crowd(n, seed, 10.0)
    weights = 0.5 + 0.5 * torch.rand(n, generator=torch.Generator().manual_seed(seed))
    want = textbook(boxes, scores * weights, labels, 0.1)
    assert weighted_nms(boxes, scores, labels, weights, 0.1).tolist() == want


def test_as_many_weights_as_scores_are_wanted() -> None:
    boxes, scores, labels = crowd(3, 0, 4.0)
    with pytest.raises(ValueError, match=r"scores \(3,\) and weights \(2,\), wanted as many"):
        inspect.unwrap(weighted_nms)(boxes, scores, labels, torch.ones(2), 0.5)


@given(st.integers(0, 60), st.integers(0, 1000), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sampled_from([4.0, 30.0]))
def test_a_box_fell_by_the_first_that_stays_and_overlaps_it(n, seed, threshold, spread) -> None:
    boxes, scores, labels = crowd(n, seed, spread)
    kept = class_nms(boxes, scores, labels, threshold)
    rows = suppressor(boxes, labels, kept, threshold)
    falls = (pairwise_iou(boxes[kept], boxes) > threshold) & (labels[kept, None] == labels)
    for index, row in enumerate(rows.tolist()):
        if index in kept.tolist():
            assert kept[row] == index
        else:
            assert row == falls[:, index].nonzero()[0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iou_threshold": 1.5}, r"iou_threshold is 1\.5, wanted 0\.\.1"),
        ({"iou_threshold": float("nan")}, "iou_threshold is nan"),
        ({"max_keep": -1}, "max_keep is -1, wanted 0 or more"),
        ({"backend": "cuda"}, "backend is 'cuda', wanted one of auto, triton, torch"),
    ],
)
def test_bad_settings_are_refused(changes, message) -> None:
    boxes, scores, labels = crowd(2, 0, 4.0)
    plain = inspect.unwrap(class_nms)  # run-time type checks would speak first
    with pytest.raises(ValueError, match=message):
        plain(boxes, scores, labels, **({"iou_threshold": 0.5} | changes))


def test_lengths_that_differ_and_further_axes_are_refused() -> None:
    boxes, scores, labels = crowd(3, 0, 4.0)
    plain = inspect.unwrap(class_nms)
    with pytest.raises(ValueError, match=r"3 boxes, scores \(2,\) and labels \(3,\); wanted \(n,\)"):
        plain(boxes, scores[:2], labels, 0.5)
    with pytest.raises(ValueError, match=r"scores \(3, 1\)"):
        plain(boxes, scores[:, None], labels, 0.5)
    with pytest.raises(ValueError, match=r"labels \(3, 1\)"):
        plain(boxes, scores, labels[:, None], 0.5)
    with pytest.raises(ValueError, match=r"weights \(3, 1\)"):
        inspect.unwrap(weighted_nms)(boxes, scores, labels, scores[:, None], 0.5)


@pytest.mark.parametrize("boxes", [[[0.0] * 6], torch.zeros(1, 4).numpy(), torch.zeros(1, 4)])
def test_what_is_no_tensor_of_boxes_is_refused(boxes) -> None:
    with pytest.raises(ValueError, match=r"wanted a tensor \(n, 6\)"):
        inspect.unwrap(class_nms)(boxes, torch.zeros(1), torch.zeros(1, dtype=torch.int64), 0.5)
