"""What the anchors of a batch should say: beside objects, and beside voxels that are not valid."""

from itertools import product

import pytest
import torch

from girih_detectors import anchor_grid, anchor_truth, match_atss


def target(boxes=(), valid=None):
    boxes = torch.tensor(boxes).reshape(-1, 6)
    found = {"boxes": boxes, "labels": torch.arange(len(boxes))}
    return found if valid is None else {**found, "valid": valid}


@pytest.mark.parametrize("strides", [((4, 4, 4), (8, 8, 8)), ((1, 2, 4), (1, 4, 8)), ((3, 5, 1),)])
def test_background_stays_a_stride_away_from_what_is_not_valid(strides) -> None:
    image = tuple(3 * step for step in strides[-1])
    valid = torch.rand(image) > 0.01
    grid = anchor_grid(image, strides, torch.ones(2, 3))
    want, invalid = [], (~valid).nonzero().tolist()
    for shape, stride in zip(grid.shapes, grid.strides, strict=True):
        for cell in product(*map(range, shape)):
            near = [all(abs(c * s - v) < s for c, s, v in zip(cell, stride, voxel, strict=True)) for voxel in invalid]
            want += [not any(near)] * grid.per_cell
    (found,) = anchor_truth([target(valid=valid)], grid).background
    assert found.tolist() == want
    assert 0 < found.sum() < len(found)


@pytest.mark.parametrize("side", [2, 3])
def test_a_small_object_that_is_to_be_ignored_is_not_taught_as_background(side) -> None:
    sizes = torch.tensor([list(size) for size in product((4.0, 8.0), repeat=3)])
    grid = anchor_grid((48, 48, 48), ((4, 4, 4), (8, 8, 8)), sizes)
    for low in product(range(16, 20), (17, 19), (18, 20)):  # centred on a cell, on a voxel of stride 4, and between
        z, y, x = low
        valid = torch.ones(48, 48, 48, dtype=torch.bool)
        valid[z : z + side, y : y + side, x : x + side] = False
        (background,) = anchor_truth([target(valid=valid)], grid).background
        known = match_atss(torch.tensor([[*low, *(v + side for v in low)]]).float(), grid)
        assert not background[known.anchors].any()
        assert background.sum() > 0.98 * len(grid)


def test_what_is_valid_everywhere_is_all_background_but_the_objects() -> None:
    grid = anchor_grid((16, 16, 16), ((4, 4, 4),), torch.tensor([[4.0, 4, 4]]))
    box, everywhere = [4.0, 4, 4, 9, 9, 9], torch.ones(16, 16, 16, dtype=torch.bool)
    truth = anchor_truth([target([box], everywhere), target([box]), target([box], ~everywhere)], grid)
    positives = truth.positives.reshape(3, -1)
    assert torch.equal(positives - len(grid) * torch.arange(3)[:, None], positives[:1].expand(3, -1))
    assert truth.background.sum(1).tolist() == [len(grid) - positives.shape[1]] * 2 + [0]


def test_an_object_that_is_served_last_is_part_of_the_truth() -> None:  # warnings are errors: torch about its layout
    grid = anchor_grid((24, 24, 24), ((2, 2, 2), (4, 4, 4)), torch.tensor([[4.0, 4, 4], [6, 6, 6]]))
    box = [4.0, 4, 4, 10, 10, 10]
    truth = anchor_truth([target([box, box])], grid)  # the second has the overlap of the first, who comes first
    assert set(truth.labels.tolist()) == {0, 1}
    assert truth.labels.tolist().count(1) == 1
    assert truth.positives.is_contiguous()
    assert (truth.positives.diff() > 0).all()
    assert torch.equal(grid.boxes(truth.positives), truth.anchors)
