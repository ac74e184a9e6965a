"""Boxes by centre and sides in units of the patch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from girih_detectors import centre_to_edges, edges_to_centre, pairwise_iou
from girih_detectors.centre_boxes import logit

SHAPE = (8, 16, 32)


def test_a_box_by_hand() -> None:
    edges = torch.tensor([[2.0, 4, 8, 6, 12, 9]])
    centre = torch.tensor([[4 / 8, 8 / 16, 8.5 / 32, 4 / 8, 8 / 16, 1 / 32]])
    assert torch.equal(edges_to_centre(edges, SHAPE), centre)
    assert torch.equal(centre_to_edges(centre, SHAPE), edges)
    assert torch.equal(centre_to_edges(centre)[0, :3] * torch.tensor(SHAPE), edges[0, :3])


@given(
    st.tuples(*[st.integers(1, 500)] * 3),
    st.lists(st.tuples(*[st.floats(-100, 600, width=32)] * 6).map(list), min_size=0, max_size=4),
)
def test_there_and_back(shape, rows) -> None:
    edges = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    torch.testing.assert_close(centre_to_edges(edges_to_centre(edges, shape), shape), edges, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(edges_to_centre(centre_to_edges(edges, shape), shape), edges, rtol=1e-4, atol=1e-3)


def test_overlap_does_not_depend_on_the_unit() -> None:
    low = torch.rand(2, 9, 3)
    a, b = torch.cat([low, low + torch.rand(2, 9, 3)], -1) * 8
    inside = [centre_to_edges(edges_to_centre(boxes, SHAPE)) for boxes in (a, b)]
    torch.testing.assert_close(pairwise_iou(*inside), pairwise_iou(a, b))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_half_precision_becomes_float32(dtype) -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.25, 0.25, 0.25]], dtype=dtype)
    wanted = torch.promote_types(dtype, torch.float32)
    assert centre_to_edges(boxes, (1000, 1000, 1000)).dtype == edges_to_centre(boxes, SHAPE).dtype == wanted
    assert centre_to_edges(boxes, (1000, 1000, 1000)).tolist() == [[375, 375, 375, 625, 625, 625]]
    assert logit(boxes).dtype == wanted


def test_the_logit_stays_finite() -> None:
    found = logit(torch.tensor([0.0, 1e-9, 0.5, 0.75, 1.0], dtype=torch.float64))
    far = torch.tensor(1 - 1e-5, dtype=torch.float64).log() - torch.tensor(1e-5, dtype=torch.float64).log()
    wanted = torch.stack([-far, -far, far * 0, torch.tensor(3.0, dtype=torch.float64).log(), far])
    torch.testing.assert_close(found, wanted)
