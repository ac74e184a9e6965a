"""Offsets from anchors."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from girih_detectors import decode, encode

coordinate = st.floats(-100, 100, width=32)
side = st.floats(0.125, 7, width=32)
box = st.tuples(coordinate, coordinate, coordinate, side, side, side).map(
    lambda b: [b[0], b[1], b[2], b[0] + b[3], b[1] + b[4], b[2] + b[5]]
)


def test_numbers_measured_on_nndetection() -> None:
    # reference boxes (x0, y0, x1, y1, z0, z1): [2, 2, 8, 8, 1, 6] from anchor [0, 0, 8, 8, 0, 8]; its x is our z
    found = encode(torch.tensor([[2.0, 2, 1, 8, 8, 6]]), torch.tensor([[0.0, 0, 0, 8, 8, 8]]))
    want = [0.125, 0.125, -0.0625, -0.28768207, -0.28768207, -0.47000363]
    torch.testing.assert_close(found, torch.tensor([want]))


@given(box, box)
def test_decode_undoes_encode(target, anchor) -> None:
    boxes, anchors = torch.tensor([target]).double(), torch.tensor([anchor]).double()
    torch.testing.assert_close(decode(encode(boxes, anchors), anchors), boxes, atol=1e-6, rtol=1e-9)


def test_log_size_is_cut_at_62_5_anchor_sides() -> None:
    anchors = torch.tensor([[0.0, 0, 0, 2, 2, 2]])
    grown = decode(torch.tensor([[0.0, 0, 0, 1000, math.log(2), -1000]]), anchors)
    torch.testing.assert_close(grown, torch.tensor([[-61.5, -1, 1, 63.5, 3, 1]]))


def test_half_precision_deltas_decode_in_float32() -> None:
    found = decode(torch.zeros(1, 6, dtype=torch.bfloat16), torch.tensor([[100.5, 0, 0, 201.25, 1, 1]]))
    assert found.tolist() == [[100.5, 0, 0, 201.25, 1, 1]]


def test_no_boxes() -> None:
    assert encode(torch.zeros(0, 6), torch.zeros(0, 6)).shape == decode(torch.zeros(0, 6), torch.zeros(0, 6)).shape
