"""ATSS from the grid against ATSS on the full matrix."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from girih_detectors import AnchorMatch, anchor_grid, iou, match_atss, pairwise_iou


def full_matrix(boxes, grid, k) -> dict[int, int]:
    """{anchor: object}: every distance and every IoU, ties and orphans as the module says, in Python loops."""
    anchors = grid.all_boxes().double()
    overlap = pairwise_iou(boxes.double(), anchors)
    centres, middle = (anchors[:, :3] + anchors[:, 3:]) / 2, (boxes[:, :3] + boxes[:, 3:]).double() / 2
    distance = ((centres[None] - middle[:, None]) ** 2).sum(-1)
    overlap, distance = overlap.tolist(), distance.tolist()
    candidates = []
    for row in range(len(boxes)):
        chosen, start = [], 0
        for length in grid.level_lengths:
            k_here = min(k * grid.per_cell, length)
            chosen += sorted(range(start, start + length), key=lambda i: (distance[row][i], i))[:k_here]
            start += length
        candidates.append(chosen)
    owner: dict[int, int] = {}
    for row, chosen in enumerate(candidates):
        values = torch.tensor([overlap[row][i] for i in chosen], dtype=torch.float64)
        threshold = (values.mean() + (values.std() if len(chosen) > 1 else 0)).item()
        for i in chosen:
            claims = overlap[row][i] >= threshold and overlap[row][i] > 0
            if claims and (i not in owner or overlap[row][i] > overlap[owner[i]][i]):
                owner[i] = row
    for row, chosen in enumerate(candidates):
        if row in owner.values():
            continue
        free = [i for i in chosen if i not in owner]
        sides, anchor_sides = boxes[row, 3:] - boxes[row, :3], anchors[:, 3:] - anchors[:, :3]
        flat = torch.zeros(3, dtype=torch.float64)
        shape = {i: iou(torch.cat([flat, sides.double()]), torch.cat([flat, anchor_sides[i]])).item() for i in free}
        if free:
            owner[min(free, key=lambda i: (-overlap[row][i], distance[row][i], -shape[i], i))] = row
    return owner


def as_dict(match: AnchorMatch) -> dict[int, int]:
    assert (match.anchors.diff() > 0).all()
    return dict(zip(match.anchors.tolist(), match.objects.tolist(), strict=True))


def test_example_measured_on_nndetection() -> None:
    # its boxes count voxel centres, ours edges: half a voxel
    strides = ((4, 4, 4), (8, 8, 8))
    sizes = torch.tensor([[w, h, 4.0] for w, h in product((4.0, 8.0), repeat=2)])
    grid = anchor_grid((16, 16, 8), strides, sizes)
    assert len(grid) == 144
    first = match_atss(torch.tensor([[2.0, 2, 1, 8, 8, 6]]) + 0.5, grid)
    assert first.anchors.tolist() == [44, 45, 46, 47]
    second = match_atss(torch.tensor([[7.0, 7, 2, 15, 15, 8]]) + 0.5, grid)
    assert second.anchors.tolist() == [95, 119, 125, 126, 127]


half = st.integers(0, 31).map(lambda v: v / 2)
one_box = st.tuples(half, half, half, *[st.integers(1, 20).map(lambda v: v / 2)] * 3)


@given(
    st.lists(one_box, max_size=6),
    st.sampled_from([((2, 2, 2), (4, 4, 4)), ((1, 2, 2), (2, 4, 4), (4, 8, 8)), ((4, 4, 4), (8, 8, 8), (16, 16, 16))]),
    st.sampled_from([1, 4, 9]),
    st.sampled_from([[[3.0, 4, 5], [6, 6, 6]], [[2.0, 1, 1], [1, 1, 1]]]),  # the small ones often touch nothing
)
def test_equals_the_full_matrix(rows, strides, k, sizes) -> None:
    low = torch.tensor([row[:3] for row in rows]).reshape(-1, 3)
    boxes = torch.cat([low, low + torch.tensor([row[3:] for row in rows]).reshape(-1, 3)], dim=1)
    grid = anchor_grid((16, 16, 16), strides, torch.tensor(sizes))
    assert as_dict(match_atss(boxes, grid, cells_per_level=k)) == full_matrix(boxes, grid, k)


# (z0, y0, x0, z1, y1, x1) in an image of 8 x 32 x 32 voxels
AWKWARD = {
    "tiny": [[3.0, 3, 3, 3.25, 3.25, 3.25], [7.9, 31.9, 31.9, 8, 32, 32]],
    "huge": [[0.0, 0, 0, 8, 32, 32], [0, 0, 0, 8, 32, 16]],
    "in the corners": [[0.0, 0, 0, 2, 3, 4], [6, 29, 28, 8, 32, 32], [0, 29, 0, 1, 32, 4]],
    "out of the image": [[-9.0, -9, -9, -3, -3, -3], [20, 50, 60, 24, 60, 70]],
    "flat and long": [[3.0, 0, 15, 4, 32, 16], [0, 7, 7, 8, 8, 8]],
    "the same": [[2.0, 8, 8, 6, 16, 16]] * 40,
}


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("sizes", [[[2.0, 4, 4], [4, 8, 8], [2, 8, 4]], [[1.0, 1, 1]]], ids=["three", "small"])
def test_awkward_objects_on_an_anisotropic_grid(name, sizes) -> None:
    boxes, grid = torch.tensor(AWKWARD[name]), anchor_grid((8, 32, 32), ((1, 4, 4), (2, 8, 8)), torch.tensor(sizes))
    assert as_dict(match_atss(boxes, grid)) == full_matrix(boxes, grid, 4)


@pytest.mark.parametrize(("low", "high"), [(0.125, 0.5), (1.0, 12.0)])
def test_five_hundred_objects(low, high) -> None:
    grid = anchor_grid((32, 32, 32), ((4, 4, 4), (8, 8, 8)), torch.tensor([[3.0, 3, 3], [3, 6, 6], [6, 3, 6]]))
    sides = low + (high - low) * torch.rand(500, 3)
    start = (32 - sides) * torch.rand(500, 3)
    boxes = torch.cat([start, start + sides], dim=1)
    found = as_dict(match_atss(boxes, grid))
    assert found == full_matrix(boxes, grid, 4)
    assert len(set(found.values())) > 250


def test_autocast_changes_nothing() -> None:
    grid = anchor_grid((32, 32, 32), ((4, 4, 4), (8, 8, 8)), torch.tensor([[6.0, 6, 6], [9, 9, 9]]))
    boxes = torch.tensor([[10.0, 10, 10, 16.3, 17.1, 16.7], [1, 2, 3, 9.9, 8.8, 7.7]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = match_atss(boxes, grid)
    assert as_dict(found) == as_dict(match_atss(boxes, grid))


def test_memory_grows_with_objects_not_with_anchors() -> None:
    # 1,010,880 anchors: one float32 column of them would be 4 MB, the full matrix of IoUs 20 MB
    grid = anchor_grid((128, 128, 128), tuple((s, s, s) for s in (4, 8, 16, 32)), 4 + torch.arange(81.0).view(27, 3))
    boxes = torch.tensor([[10.0, 20, 30, 26, 40, 48]] * 5) + torch.arange(5.0)[:, None] * 16
    with torch.profiler.profile(profile_memory=True) as seen:
        match_atss(boxes, grid)
    assert max(event.cpu_memory_usage for event in seen.events()) < 1_000_000


def test_a_tiny_object_gets_its_one_nearest_anchor() -> None:
    # no anchor touches the voxel [3, 4]^3: sides of 2 around edges 0.5, 8.5, ...
    grid = anchor_grid((32, 32, 32), ((8, 8, 8), (16, 16, 16)), torch.tensor([[2.0, 2, 2]]))
    match = match_atss(torch.tensor([[3.0, 3, 3, 4, 4, 4]]), grid)
    assert match.objects.tolist() == [0]
    assert grid.boxes(match.anchors).tolist() == [[-0.5, -0.5, -0.5, 1.5, 1.5, 1.5]]


def test_among_anchors_of_one_cell_a_tiny_object_gets_the_best_shape() -> None:
    grid = anchor_grid((32, 32, 32), ((8, 8, 8),), torch.tensor([[2.0, 2, 2], [1, 1, 2], [1, 3, 1]]))
    match = match_atss(torch.tensor([[3.0, 3, 3, 4, 4, 5]]), grid)
    assert grid.boxes(match.anchors).tolist() == [[0, 0, -0.5, 1, 1, 1.5]]


def test_identical_objects_both_get_anchors() -> None:
    grid = anchor_grid((32, 32, 32), ((4, 4, 4), (8, 8, 8)), torch.tensor([[6.0, 6, 6], [9, 9, 9]]))
    boxes = torch.tensor([[10.0, 10, 10, 16, 16, 16]]).repeat(3, 1)
    assert set(match_atss(boxes, grid).objects.tolist()) == {0, 1, 2}


def test_no_objects_give_no_positives() -> None:
    grid = anchor_grid((8, 8, 8), ((4, 4, 4),), torch.tensor([[4.0, 4, 4]]))
    match = match_atss(torch.zeros(0, 6), grid)
    assert match.anchors.shape == match.objects.shape == (0,)


def test_one_anchor_in_all() -> None:
    grid = anchor_grid((4, 4, 4), ((4, 4, 4),), torch.tensor([[4.0, 4, 4]]))
    assert as_dict(match_atss(torch.tensor([[0.0, 0, 0, 2, 2, 2]]), grid)) == {0: 0}
    more_objects_than_anchors = match_atss(torch.tensor([[0.0, 0, 0, 2, 2, 2], [1, 1, 1, 2, 2, 2]]), grid)
    assert as_dict(more_objects_than_anchors) == {0: 0}
