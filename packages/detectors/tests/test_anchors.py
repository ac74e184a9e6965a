"""Anchors from their index."""

from itertools import product

import torch

from girih_detectors import CENTRE_OFFSET, anchor_grid


def materialised(image_zyx, strides, sizes):
    """Every anchor by plain loops, in the documented order."""
    rows = []
    for stride in strides:
        cells = [range(n // s) for n, s in zip(image_zyx, stride, strict=True)]
        for cell in product(*cells):
            for size in sizes:
                scaled = [v * s / first for v, s, first in zip(size, stride, strides[0], strict=True)]
                centre = [i * s + CENTRE_OFFSET for i, s in zip(cell, stride, strict=True)]
                low = [c - v / 2 for c, v in zip(centre, scaled, strict=True)]
                rows.append([*low, *(c + v / 2 for c, v in zip(centre, scaled, strict=True))])
    return torch.tensor(rows)


def test_closed_form_equals_loops_on_anisotropic_levels() -> None:
    strides, sizes = ((1, 2, 2), (2, 4, 4), (2, 8, 8)), torch.tensor([[2.0, 4, 6], [3, 3, 3]])
    grid = anchor_grid((4, 16, 24), strides, sizes)
    want = materialised((4, 16, 24), strides, sizes.tolist())
    assert len(grid) == len(want)
    torch.testing.assert_close(grid.all_boxes(), want)
    index = torch.tensor([[5, 0], [len(grid) - 1, 100]])
    torch.testing.assert_close(grid.boxes(index), want[index])


def test_first_anchor_is_centred_on_the_first_voxel() -> None:
    grid = anchor_grid((8, 8, 8), ((4, 4, 4),), torch.tensor([[1.0, 3, 5]]))
    assert grid.boxes(torch.tensor([0])).tolist() == [[0, -1, -2, 1, 2, 3]]
    assert grid.boxes(torch.tensor([7])).tolist() == [[4, 3, 2, 5, 6, 7]]


def test_counts_of_the_paper_patch() -> None:  # 128^3, 27 anchors, strides 4, 8, 16, 32
    grid = anchor_grid((128, 128, 128), tuple((s, s, s) for s in (4, 8, 16, 32)), torch.ones(27, 3))
    assert grid.level_lengths == (884_736, 110_592, 13_824, 1_728)
    assert len(grid) == 1_010_880
