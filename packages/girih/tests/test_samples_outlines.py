import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from girih.samples.outlines import fill


def draw(rows: list[str]) -> np.ndarray:
    return np.array([[character == "#" for character in row] for row in rows])


def test_a_diamond_keeps_what_is_strictly_inside() -> None:
    diamond = np.array([[2, 0], [3, 1], [4, 2], [3, 3], [2, 4], [1, 3], [0, 2], [1, 1]])  # (x, y)
    expected = draw([".....", "..#..", ".###.", "..#..", "....."])
    np.testing.assert_array_equal(fill([diamond], (0, 0), (5, 5))[0], expected)


def test_far_corners_are_joined_and_the_window_is_honoured() -> None:
    rectangle = np.array([[11, 21], [15, 21], [15, 24], [11, 24]])
    expected = draw([".......", ".......", "..###..", "..###..", ".......", "......."])
    np.testing.assert_array_equal(fill([rectangle], (10, 20), (7, 6))[0], expected)


def test_outlines_without_inside_and_several_at_once() -> None:
    point, line = np.array([[1, 1]]), np.array([[0, 0], [3, 3]])
    box = np.array([[0, 0], [2, 0], [2, 2], [0, 2]])
    filled = fill([point, line, box], (0, 0), (4, 4))
    assert filled.sum(axis=(1, 2)).tolist() == [0, 0, 1]
    assert filled[2, 1, 1]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8))
def test_equals_crossing_counts_of_a_tilted_ray(corners: list[tuple[int, int]]) -> None:
    """The reference shoots one ray per pixel in another direction and counts exact crossings of the pixel chain."""
    chain = king_chain(corners)
    border = set(chain)
    inside = fill([np.array(corners)], (0, 0), (10, 10))[0]
    for y in range(10):
        for x in range(10):
            expected = (x, y) not in border and crossings(chain, x, y) % 2 == 1
            assert inside[y, x] == expected


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
