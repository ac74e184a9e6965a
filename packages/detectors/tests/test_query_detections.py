"""From queries to detections."""

import pytest
import torch

from girih_detectors import select_queries

IMAGE = (10, 20, 40)
HALF = [0.5, 0.5, 0.5]


def test_three_queries_by_hand() -> None:
    logits = torch.tensor([[-3.0, 2.0], [1.0, -2.0], [-9.0, -9.0]])
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.2, 0.5, 0.25], [0.1, 0.9, 0.5, 0.4, 0.4, 1.2], [0.3] * 6])
    found = select_queries(logits, boxes, IMAGE, max_detections=3)
    torch.testing.assert_close(found["scores"], torch.tensor([2.0, 1.0, -2.0]).sigmoid())
    assert found["labels"].tolist() == [1, 0, 1]  # a query may say two classes
    wanted = torch.tensor([[4.0, 5, 15, 6, 15, 25], [0, 14, 0, 3, 20, 40], [0, 14, 0, 3, 20, 40]])  # the second clipped
    torch.testing.assert_close(found["boxes"], wanted)
    assert (found["boxes"].dtype, found["labels"].dtype) == (torch.float32, torch.int64)


def test_overlapping_queries_stay() -> None:
    boxes = torch.tensor([HALF * 2] * 5)
    assert len(select_queries(torch.zeros(5, 1), boxes, IMAGE)["scores"]) == 5


def test_ties_are_in_order_of_query_then_class() -> None:
    boxes = torch.rand(60, 6) * 0.2 + 0.4
    found = select_queries(torch.zeros(60, 3), boxes, IMAGE, max_detections=100)
    assert found["labels"].tolist() == ([0, 1, 2] * 34)[:100]
    ends = select_queries(torch.zeros(60, 3), boxes, IMAGE, max_detections=180)["boxes"]
    torch.testing.assert_close(found["boxes"], ends[:100], rtol=0, atol=0)


def test_slivers_and_what_lies_outside_fall_after_the_choice() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.0009, 0.5, 0.5], [1.5, 0.5, 0.5, 0.2, 0.5, 0.5], HALF * 2, HALF * 2])
    logits = torch.tensor([[3.0], [2.0], [1.0], [0.0]])
    found = select_queries(logits, boxes, IMAGE, max_detections=3)
    assert found["scores"].tolist() == [torch.tensor(1.0).sigmoid().item()]


def test_no_query_no_detection() -> None:
    found = select_queries(torch.zeros(0, 2), torch.zeros(0, 6), IMAGE)
    assert {key: tuple(value.shape) for key, value in found.items()} == {
        "boxes": (0, 6),
        "scores": (0,),
        "labels": (0,),
    }


def test_what_is_not_finite_is_an_error() -> None:
    logits, boxes = torch.zeros(3, 2), torch.full((3, 6), 0.5)
    logits[1, 0] = torch.nan
    with pytest.raises(ValueError, match="1 of 6 class scores are not finite"):
        select_queries(logits, boxes, IMAGE)
    boxes[2, 4] = torch.inf
    with pytest.raises(ValueError, match="2 of 6 boxes are not finite"):
        select_queries(torch.zeros(3, 2), boxes, IMAGE)
