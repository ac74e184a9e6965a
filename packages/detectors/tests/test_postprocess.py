"""From logits and deltas to detections."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from girih_detectors import PostProcessing, anchor_grid, pairwise_iou, select_detections


def scene():
    """Eight anchors of 4^3 on an 8^3 image, two classes, all background."""
    grid = anchor_grid((8, 8, 8), ((4, 4, 4),), torch.tensor([[4.0, 4, 4]]))
    return torch.full((8, 2), -torch.inf), torch.zeros(8, 6), grid


def test_order_labels_and_clipping() -> None:
    logits, deltas, grid = scene()
    logits[7, 1], logits[0, 0] = 0.0, 2.0
    found = select_detections(logits, deltas, grid, (8, 8, 8), PostProcessing())
    torch.testing.assert_close(found["scores"], torch.tensor([2.0, 0.0]).sigmoid())
    assert found["labels"].tolist() == [0, 1]
    assert found["boxes"].tolist() == [[0, 0, 0, 2.5, 2.5, 2.5], [2.5, 2.5, 2.5, 6.5, 6.5, 6.5]]


def test_equal_scores_rank_by_anchor_then_class() -> None:
    logits, deltas, grid = scene()
    logits[:] = 0.0
    found = select_detections(logits, deltas, grid, (8, 8, 8), PostProcessing(max_candidates=3, nms_iou=1.0))
    assert found["labels"].tolist() == [0, 1, 0]
    assert found["boxes"][:, 2].tolist() == [0, 0, 2.5]


def test_settings_are_obeyed() -> None:
    logits, deltas, grid = scene()
    logits[:, 0] = torch.arange(8.0)
    deltas[7, 3] = -20  # thinner than 0.01 voxels along z
    deltas[6, :3] = deltas[5, :3] - torch.tensor([1.0, 0, 0])  # IoU with anchor 4 is high, with 5 is 0
    everything = select_detections(logits, deltas, grid, (8, 8, 8), PostProcessing(min_side=0.0, nms_iou=1.0))
    assert len(everything["scores"]) == 8
    few = select_detections(logits, deltas, grid, (8, 8, 8), PostProcessing(max_detections=2))
    torch.testing.assert_close(few["scores"], torch.tensor([6.0, 5.0]).sigmoid())
    sure = select_detections(logits, deltas, grid, (8, 8, 8), PostProcessing(score_threshold=0.99))
    assert (sure["scores"] > 0.99).all()
    assert len(sure["scores"]) == 2


@given(
    st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.6]), st.sampled_from([1, 5, 100]), st.sampled_from([7, 10_000])
)
def test_what_every_answer_promises(seed, nms_iou, most, candidates) -> None:
    generator = torch.Generator().manual_seed(seed)
    grid = anchor_grid((8, 16, 16), ((2, 4, 4), (4, 8, 8)), torch.tensor([[2.0, 4, 4], [4, 6, 8]]))
    logits = torch.randint(-4, 5, (len(grid), 3), generator=generator) / 2  # many equal scores
    deltas = torch.randn(len(grid), 6, generator=generator)
    settings = PostProcessing(candidates, 0.5, nms_iou, most, min_side=0.5)
    found = select_detections(logits, deltas, grid, (8, 16, 16), settings)
    boxes, scores, labels = found["boxes"], found["scores"], found["labels"]
    assert len(boxes) == len(scores) == len(labels) <= min(most, candidates)
    assert (scores.diff() <= 0).all()
    assert (scores > 0.5).all()
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([8.0, 16, 16] * 2)).all()
    assert (boxes[:, 3:] - boxes[:, :3] >= 0.5).all()
    assert labels.numel() == 0 or 0 <= labels.min() <= labels.max() <= 2
    overlap = pairwise_iou(boxes, boxes).fill_diagonal_(0)
    assert not ((overlap > nms_iou) & (labels[:, None] == labels)).any()
    again = select_detections(logits, deltas, grid, (8, 16, 16), settings)
    assert all(torch.equal(found[key], again[key]) for key in found)


def test_nothing_found() -> None:
    logits, deltas, grid = scene()
    found = select_detections(logits, deltas, grid, (8, 8, 8), PostProcessing())
    assert found["boxes"].shape == (0, 6)
    assert found["labels"].dtype == torch.int64


def test_output_that_is_not_finite_is_refused() -> None:
    logits, deltas, grid = scene()
    broken = logits.clone()
    broken[7, 1] = torch.nan
    with pytest.raises(ValueError, match="1 of 16 class scores are not finite"):
        select_detections(broken, deltas, grid, (8, 8, 8), PostProcessing())
    logits[0, 0], deltas[0, 0] = 0.0, torch.nan
    with pytest.raises(ValueError, match="1 of 1 decoded boxes are not finite"):
        select_detections(logits, deltas, grid, (8, 8, 8), PostProcessing())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_candidates": 0}, "max_candidates is 0, wanted 1 or more"),
        ({"score_threshold": 1.0}, r"score_threshold is 1\.0, wanted at least 0 and less than 1"),
        ({"score_threshold": float("nan")}, "score_threshold is nan"),
        ({"nms_iou": -0.1}, r"nms_iou is -0\.1, wanted 0\.\.1"),
        ({"nms_iou": float("nan")}, "nms_iou is nan"),
        ({"max_detections": 0}, "max_detections is 0, wanted 1 or more"),
        ({"min_side": float("inf")}, "min_side is inf, wanted a number of 0 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        PostProcessing(**changes)


def test_an_unknown_backend_is_refused() -> None:
    settings = PostProcessing()
    object.__setattr__(settings, "nms_backend", "cuda")  # past run-time type checks, which would speak first
    with pytest.raises(ValueError, match="nms_backend is 'cuda', wanted one of auto, triton, torch"):
        settings.__post_init__()


def test_the_backend_of_the_nms_is_handed_on() -> None:
    logits, deltas, grid = scene()
    logits[0, 0] = 0.0
    with pytest.raises((ValueError, ImportError), match=r"of nms wants tensors on a CUDA device|cannot be had"):
        select_detections(logits, deltas, grid, (8, 8, 8), PostProcessing(nms_backend="triton"))
