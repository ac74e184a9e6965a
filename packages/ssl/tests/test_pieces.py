import torch
from hypothesis import given
from hypothesis import strategies as st

import girih_ssl.pieces
from girih_ssl.pieces import overlap, pieces, whole, within

CPU = torch.device("cpu")
PATCH = (6, 5, 4)


@st.composite
def boxes_of(draw, patch=PATCH):
    box = []
    for side in patch:
        start = draw(st.integers(0, side - 1))
        box.append(slice(start, draw(st.integers(start + 1, side))))
    return tuple(box)


def count(boxes):
    voxels = torch.zeros(PATCH, dtype=torch.int64)
    for box in boxes:
        voxels[box] += 1
    return voxels


@given(st.lists(boxes_of(), max_size=3), st.integers(1, 200))
def test_pieces_are_disjoint_and_cover_the_boxes(boxes, voxels):
    before = girih_ssl.pieces.VOXELS
    girih_ssl.pieces.VOXELS = voxels
    try:
        found = count(pieces(boxes, PATCH, CPU))
    finally:
        girih_ssl.pieces.VOXELS = before
    assert found.max() <= 1
    assert (found[count(boxes) > 0] == 1).all()


@given(boxes_of())
def test_a_single_box_is_covered_exactly(box):
    assert torch.equal(count(pieces([box], PATCH, CPU)), count([box]))


def test_the_whole_patch_in_planes(monkeypatch):
    monkeypatch.setattr(girih_ssl.pieces, "VOXELS", 45)  # two planes of 20
    found = list(pieces([whole(PATCH)], PATCH, CPU))
    assert [piece[0] for piece in found] == [slice(0, 2), slice(2, 4), slice(4, 6)]
    assert all(piece[1:] == (slice(0, 5), slice(0, 4)) for piece in found)
    assert list(pieces([whole(PATCH)], PATCH, torch.device("meta"))) == [whole(PATCH)]  # not a CPU: one piece


@given(boxes_of(), boxes_of())
def test_overlap_is_what_both_boxes_hold(a, b):
    common = overlap(a, b)
    assert torch.equal(count([a, b]) == 2, count([] if common is None else [common]) == 1)
    if common is not None:
        voxels = torch.arange(120).reshape(PATCH)
        assert torch.equal(voxels[a][within(common, a)], voxels[common])
