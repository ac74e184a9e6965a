"""ATSS from the grid against ATSS on the full matrix."""

import runpy
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from girih_detectors import AnchorMatch, anchor_grid, match_atss

DEFINITIONS = runpy.run_path(str(Path(__file__).with_name("definitions.py")))


def full_matrix(boxes, grid, k) -> dict[int, int]:
    """{anchor: object}: every distance, IoU as fractions, ties and orphans as the module says, in Python loops."""
    centre = torch.cat([cells(*level) for level in zip(grid.shapes, grid.strides, strict=True)])
    levels = [level for level, length in enumerate(grid.level_lengths) for _ in range(length)]
    halves = [[Fraction(v) / 2 for v in size] for size in grid.sizes.flatten(0, 1).tolist()]
    owner: dict[int, int] = {}
    overlap, candidates, distances = [], [], []

    def anchor(i) -> list[Fraction]:
        half = halves[levels[i] * grid.per_cell + i % grid.per_cell]
        middle = [Fraction(v) for v in centre[i // grid.per_cell].tolist()]
        return [m - h for m, h in zip(middle, half, strict=True)] + [m + h for m, h in zip(middle, half, strict=True)]

    for row, box in enumerate(boxes.double()):
        z, y, x = ((centre - (box[:3] + box[3:]) / 2) ** 2).unbind(1)
        distance = (z + y + x).repeat_interleave(grid.per_cell).tolist()
        chosen, start = [], 0
        for length in grid.level_lengths:
            k_here = min(k * grid.per_cell, length)
            chosen += sorted(range(start, start + length), key=lambda i: (distance[i], i))[:k_here]
            start += length
        values = {i: fraction_iou([Fraction(v) for v in box.tolist()], anchor(i)) for i in chosen}
        mean = sum(values.values()) / len(chosen)
        variance = sum((v - mean) ** 2 for v in values.values()) / max(1, len(chosen) - 1)
        candidates.append(chosen)
        distances.append(distance)
        overlap.append(values)
        for i, v in values.items():
            claims = v > 0 and v >= mean and (v - mean) ** 2 >= variance
            if claims and (i not in owner or v > overlap[owner[i]][i]):
                owner[i] = row
    for row, chosen in enumerate(candidates):
        if row in owner.values():
            continue
        sides = [Fraction(v) for v in (boxes[row, 3:].double() - boxes[row, :3].double()).tolist()]
        free = [i for i in chosen if i not in owner]
        shape = {}
        for i in free:
            corners = anchor(i)
            shape[i] = fraction_iou(
                [Fraction(0)] * 3 + sides, [0] * 3 + [corners[a + 3] - corners[a] for a in range(3)]
            )
        if free:
            owner[min(free, key=lambda i: (-overlap[row][i], distances[row][i], -shape[i], i))] = row
    return owner


def cells(shape, stride) -> torch.Tensor:
    """The exact centre of every cell."""
    index = torch.cartesian_prod(*(torch.arange(n) for n in shape)).reshape(-1, 3)
    return (index * torch.tensor(stride)).double() + 0.5


def fraction_iou(a, b) -> Fraction:
    shared = one = two = Fraction(1)
    for k in range(3):
        shared *= max(0, min(a[k + 3], b[k + 3]) - max(a[k], b[k]))
        one, two = one * (a[k + 3] - a[k]), two * (b[k + 3] - b[k])
    return shared / (one + two - shared)


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


@given(
    st.lists(st.tuples(*[st.integers(0, 47)] * 3, *[st.integers(1, 30)] * 3), max_size=6),
    st.sampled_from([2, 3]),  # coordinates in halves, thirds
    st.sampled_from(
        [
            ((2, 2, 2), (4, 4, 4)),
            ((1, 2, 2), (2, 4, 4), (4, 8, 8)),
            ((4, 4, 4), (8, 8, 8), (16, 16, 16)),
            ((3, 5, 7), (6, 10, 14)),
        ]
    ),
    st.sampled_from([1, 4, 9]),
    # the small ones often touch nothing
    st.sampled_from([[[3.0, 4, 5], [6, 6, 6]], [[2.0, 1, 1], [1, 1, 1]], [[3.3, 3.3, 3.3], [1 / 3, 2.7, 5.1]]]),
)
def test_equals_the_full_matrix(rows, parts, strides, k, sizes) -> None:
    rows = torch.tensor(rows).reshape(-1, 6) / parts
    boxes = torch.cat([rows[:, :3], rows[:, :3] + rows[:, 3:]], dim=1)
    image = tuple(16 if 16 % step == 0 else 2 * step for step in strides[-1])
    grid = anchor_grid(image, strides, torch.tensor(sizes))
    assert as_dict(match_atss(boxes, grid, cells_per_level=k)) == full_matrix(boxes, grid, k)


@pytest.mark.parametrize("side", [1.2, 3.0, 3.3, 5.1])
@pytest.mark.parametrize("per_cell", [1, 3, 6, 27])
def test_candidates_that_overlap_equally_are_all_positive(side, per_cell) -> None:  # the spread is 0
    grid = anchor_grid((64, 64, 64), ((8, 8, 8),), torch.full((per_cell, 3), side))
    assert len(match_atss(torch.tensor([[0.0, 0, 0, 64, 64, 64]]), grid).anchors) == 4 * per_cell


@pytest.mark.parametrize(
    "box", [[4.0, 4, 4, 2, 6, 6], [4.0, 4, 4, 4, 6, 6], [4.0, torch.nan, 4, 6, 6, 6], [4.0, 4, 4, 6, 6, torch.inf]]
)
def test_boxes_that_are_none_are_refused(box) -> None:
    grid = anchor_grid((8, 8, 8), ((4, 4, 4),), torch.tensor([[4.0, 4, 4]]))
    with pytest.raises(ValueError, match=r"box 1 is \[4.0, .*, wanted finite numbers, z0 < z1"):
        match_atss(torch.tensor([[0.0, 0, 0, 2, 2, 2], box]), grid)


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
