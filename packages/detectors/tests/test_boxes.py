"""Geometry of boxes against hand-computed numbers and per-pair Python."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from girih_detectors import clip, giou, iou, pairwise_giou, pairwise_iou, volume

corner = st.integers(0, 12)
side = st.integers(0, 8)
box = st.tuples(corner, corner, corner, side, side, side).map(lambda b: [*b[:3], b[0] + b[3], b[1] + b[4], b[2] + b[5]])
boxes = st.lists(box, max_size=6).map(lambda rows: torch.tensor(rows, dtype=torch.float32).reshape(-1, 6))


def reference(a, b) -> tuple[float, float]:
    """IoU and GIoU of two boxes in plain Python."""
    shared = hull = size_a = size_b = 1.0
    for k in range(3):
        shared *= max(0.0, min(a[k + 3], b[k + 3]) - max(a[k], b[k]))
        hull *= max(a[k + 3], b[k + 3]) - min(a[k], b[k])
        size_a *= a[k + 3] - a[k]
        size_b *= b[k + 3] - b[k]
    union = size_a + size_b - shared
    overlap = shared / union if union else 0.0
    return overlap, overlap - ((hull - union) / hull if hull else 0.0)


def test_unit_overlap_of_two_cubes() -> None:  # 1 shared of 8 + 8 - 1
    a, b = torch.tensor([[0.0, 0, 0, 2, 2, 2]]), torch.tensor([[1.0, 1, 1, 3, 3, 3]])
    torch.testing.assert_close(pairwise_iou(a, b), torch.tensor([[1 / 15]]))
    torch.testing.assert_close(pairwise_giou(a, b), torch.tensor([[1 / 15 - 12 / 27]]))


def test_giou_of_a_box_and_itself_shifted_by_20() -> None:  # number measured on nnDetection's function
    a = torch.tensor([[2.0, 2, 1, 8, 8, 6]])
    torch.testing.assert_close(giou(a, a + 20), torch.tensor([-0.978698]), atol=1e-6, rtol=0)
    torch.testing.assert_close(giou(a, a), torch.tensor([1.0]))


@given(boxes, boxes)
def test_every_pair_equals_plain_python(a, b) -> None:
    overlap, generalised = pairwise_iou(a, b), pairwise_giou(a, b)
    assert overlap.shape == generalised.shape == (len(a), len(b))
    for i, p in enumerate(a.tolist()):
        for j, q in enumerate(b.tolist()):
            want = reference(p, q)
            assert overlap[i, j].item() == pytest.approx(want[0], abs=1e-6)
            assert generalised[i, j].item() == pytest.approx(want[1], abs=1e-6)


@given(boxes)
def test_iou_is_symmetric_and_one_with_itself(a) -> None:
    overlap = pairwise_iou(a, a)
    assert torch.equal(overlap, overlap.T)
    solid = volume(a) > 0
    assert (overlap.diagonal()[solid] == 1).all()
    assert (overlap.diagonal()[~solid] == 0).all()
    assert torch.equal(iou(a, a), overlap.diagonal())


@given(boxes, boxes, st.integers(-100, 100), st.permutations([0, 1, 2]))
def test_giou_is_symmetric_bounded_and_free_of_place_and_axes(a, b, shift, axes) -> None:
    found = pairwise_giou(a, b)
    assert torch.equal(found, pairwise_giou(b, a).T)
    assert (found >= -1).all()
    assert (found[volume(a) > 0] > -1).all()
    assert (found <= pairwise_iou(a, b)).all()
    turned = [*axes, *(axis + 3 for axis in axes)]
    torch.testing.assert_close(pairwise_giou(a[:, turned] + shift, b[:, turned] + shift), found)
    solid = volume(a) > 0
    assert (giou(a, a)[solid] == 1).all()


def test_autocast_changes_nothing() -> None:
    a = torch.tensor([[0.0, 0, 0, 101, 103, 107]])
    b = torch.tensor([[1.0, 2, 3, 100, 109, 113]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = iou(a, b), giou(a, b)
    assert torch.equal(found[0], iou(a, b))
    assert torch.equal(found[1], giou(a, b))


def test_half_precision_is_computed_in_float32() -> None:
    a = torch.tensor([[0.0, 0, 0, 3, 3, 3]], dtype=torch.bfloat16)
    b = torch.tensor([[0.0, 0, 0, 3, 3, 100]], dtype=torch.bfloat16)
    found = pairwise_iou(a, b)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([[0.03]]))


def test_negative_side_is_refused_with_its_row() -> None:
    good, bad = torch.tensor([[0.0, 0, 0, 1, 1, 1]]), torch.tensor([[0.0, 0, 0, 1, 1, 1], [0, 2, 0, 1, 1, 1]])
    with pytest.raises(ValueError, match="`b` row 1 has a negative side"):
        pairwise_iou(good, bad)


def test_clip_cuts_to_the_image_and_flattens_what_is_outside() -> None:
    found = clip(torch.tensor([[-2.0, 1, 3, 5, 2, 20], [30, 0, 0, 40, 1, 1]]), (4, 5, 6))
    assert found.tolist() == [[0, 1, 3, 4, 2, 6], [4, 0, 0, 4, 1, 1]]
