"""Readers' outlines on pixels: fill closed polygons with whole-number corners."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Integer


def fill(
    outlines: Sequence[Integer[np.ndarray, "_ 2"]], corner_xy: tuple[int, int], size_xy: tuple[int, int]
) -> Bool[np.ndarray, "outlines y x"]:
    """Return, per outline, the pixels strictly inside it.

    The outline's own pixels are outside: our reading of how LIDC's outlines were drawn (Armato et al. 2011), which was
    not checked against its text. An outline is a list of (x, y) pixel indices; the last point is joined to the first,
    and far points are joined by straight lines.

    Args:
        outlines: (x, y) corners of each outline, all within the window.
        corner_xy: the window's lowest x and y.
        size_xy: the window's size in pixels.
    """
    width, height = size_xy
    steps = [_walk(outline) for outline in outlines]
    plane = np.repeat(np.arange(len(steps)), [len(chain) for chain in steps])
    here = np.concatenate(steps) - np.asarray(corner_xy)
    there = np.concatenate([np.roll(chain, -1, axis=0) for chain in steps]) - np.asarray(corner_xy)
    # A ray along x changes sides at each step from row y to y + 1 or back, at the x of the step's end in row y.
    climbs = here[:, 1] != there[:, 1]
    lower = np.where((here[:, 1] < there[:, 1])[:, None], here, there)[climbs]
    crossings = np.zeros((len(steps), height, width), np.uint8)
    np.add.at(crossings, (plane[climbs], lower[:, 1], lower[:, 0]), 1)
    inside: np.ndarray = (
        np.cumsum(crossings, axis=2, dtype=np.uint8) % 2 == 1
    )  # the sum may wrap at 256, which keeps its parity
    inside[plane, here[:, 1], here[:, 0]] = False
    return inside


def _walk(outline: Integer[np.ndarray, "n 2"]) -> Integer[np.ndarray, "m 2"]:
    """Return the closed chain of pixels through all corners, each a king's move from the next."""
    legs = np.roll(outline, -1, axis=0) - outline
    moves = np.abs(legs).max(axis=1)
    if (moves <= 1).all():
        return outline
    count = np.maximum(moves, 1)
    leg = np.repeat(np.arange(len(outline)), count)
    along = np.arange(len(leg)) - np.repeat(np.cumsum(count) - count, count)
    chain: np.ndarray = outline[leg] + np.rint(legs[leg] * (along / count[leg])[:, None]).astype(outline.dtype)
    return chain
