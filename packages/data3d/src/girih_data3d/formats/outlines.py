"""Outlines that readers drew on pixels: which pixels lie inside."""

import numpy as np
from jaxtyping import Bool, Int64


def fill_outline(points_xy: Int64[np.ndarray, "n 2"]) -> tuple[tuple[int, int], Bool[np.ndarray, "height width"]]:
    """Return the pixels strictly inside a closed outline: the lowest (x, y) of a window around it, and the window.

    An outline is a list of at least one pixel (x, y); the last is joined to the first, and pixels that are not
    neighbours are joined by straight lines. Its own pixels are outside: our reading of how the outlines of LIDC-IDRI
    were drawn (Armato et al. 2011). Where it crosses itself, what is surrounded an odd number of times is inside.
    """
    here = _chain(points_xy)
    corner = here.min(axis=0)
    here = here - corner
    there = np.roll(here, -1, axis=0)
    width, height = (here.max(axis=0) + 1).tolist()
    # a ray along x changes sides at each step from row y to y + 1 or back, at the x of the step's end in row y
    climbs = here[:, 1] != there[:, 1]
    lower = np.where((here[:, 1] < there[:, 1])[:, None], here, there)[climbs]
    crossings = np.zeros((height, width), np.int64)
    np.add.at(crossings, (lower[:, 1], lower[:, 0]), 1)
    inside: np.ndarray = np.cumsum(crossings, axis=1) % 2 == 1
    inside[here[:, 1], here[:, 0]] = False
    return (int(corner[0]), int(corner[1])), inside


def _chain(points_xy: Int64[np.ndarray, "n 2"]) -> Int64[np.ndarray, "m 2"]:
    """Return the pixels of a closed outline, each next to the one before (across a side or a corner)."""
    legs = np.roll(points_xy, -1, axis=0) - points_xy
    moves = np.abs(legs).max(axis=1)
    if (moves <= 1).all():
        return points_xy
    steps = np.maximum(moves, 1)
    leg = np.repeat(np.arange(len(points_xy)), steps)
    done = np.arange(len(leg)) - np.repeat(np.cumsum(steps) - steps, steps)
    chain: np.ndarray = points_xy[leg] + np.rint(legs[leg] * (done / steps[leg])[:, None]).astype(np.int64)
    return chain
