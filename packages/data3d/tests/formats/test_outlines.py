"""The pixels inside outlines, against hand-drawn ones and independent references."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from girih_data3d.formats import fill_outline


def test_a_triangle_has_the_pixels_inside_its_line() -> None:
    corner, inside = fill_outline(np.array([[10, 20], [12, 22], [14, 20]]))
    assert corner == (10, 20)
    assert inside.astype(int).tolist() == [[0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]


def test_a_diamond_keeps_what_is_strictly_inside() -> None:
    _, inside = fill_outline(np.array([[2, 0], [3, 1], [4, 2], [3, 3], [2, 4], [1, 3], [0, 2], [1, 1]]))
    assert ["".join(".#"[pixel] for pixel in row.astype(int)) for row in inside] == [
        ".....",
        "..#..",
        ".###.",
        "..#..",
        ".....",
    ]


@pytest.mark.parametrize("points", [[[5, 6]], [[5, 6], [9, 6]], [[5, 6], [5, 9], [5, 6]], [[0, 0], [3, 3]]])
def test_a_point_and_a_line_surround_nothing(points: list[list[int]]) -> None:
    assert not fill_outline(np.array(points))[1].any()


@given(st.floats(3, 12), st.floats(3, 12), st.floats(0, 1), st.integers(12, 60), st.booleans())
def test_inside_is_what_the_outside_cannot_reach(a: float, b: float, turn: float, count: int, reverse: bool) -> None:
    """Reference: a flood from the border that the line stops, around ellipses."""
    angle = (np.arange(count) + turn) * (2 * np.pi / count) * (-1 if reverse else 1)
    points = np.rint(np.stack([a * np.cos(angle), b * np.sin(angle)], axis=1)).astype(np.int64) + 40
    corner, inside = fill_outline(points)
    assert points.min(axis=0).tolist() == list(corner)
    line = np.zeros(inside.shape, bool)
    for x, y in king_chain(points.tolist()):
        line[y - corner[1], x - corner[0]] = True
    pieces, _ = ndimage.label(~np.pad(line, 1))
    np.testing.assert_array_equal(inside | line, (pieces != pieces[0, 0])[1:-1, 1:-1])
    assert not (inside & line).any()


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8))
def test_equals_crossing_counts_of_a_tilted_ray(corners: list[tuple[int, int]]) -> None:
    """The reference shoots one ray per pixel in another direction and counts exact crossings of the pixel chain."""
    chain = king_chain(corners)
    border = set(chain)
    (left, top), inside = fill_outline(np.array(corners))
    for (y, x), held in np.ndenumerate(inside):
        at = x + left, y + top
        assert held == (at not in border and crossings(chain, *at) % 2 == 1)


def king_chain(corners: list[tuple[int, int]]) -> list[tuple[int, int]]:
    chain = []
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        moves = max(abs(x1 - x0), abs(y1 - y0), 1)
        along = [k / moves for k in range(moves)]
        chain += [(x0 + int(np.rint((x1 - x0) * t)), y0 + int(np.rint((y1 - y0) * t))) for t in along]
    return chain


def crossings(chain: list[tuple[int, int]], x: int, y: int) -> int:
    """Count the chain's edges that the ray from (x, y) along (1000, 1) crosses: it meets no corner of this grid."""
    count = 0
    for (x0, y0), (x1, y1) in zip(chain, [*chain[1:], chain[0]], strict=True):
        side0 = 1000 * (y0 - y) - (x0 - x)
        side1 = 1000 * (y1 - y) - (x1 - x)
        if side0 * side1 < 0:  # the edge crosses the ray's line; is it ahead of the pixel?
            t = side0 / (side0 - side1)
            count += x0 + t * (x1 - x0) > x
    return count
