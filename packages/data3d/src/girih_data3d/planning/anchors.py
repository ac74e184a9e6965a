"""Anchor sizes for a dataset: three widths per axis, whose 27 products overlap its objects best on average.

nnDetection's objective (Baumgartner et al. 2021): the mean over objects of the best IoU with any anchor of any level,
objects and anchors centred on each other, where overlap = prod(min) / (V_a + V_b - prod(min)). Instead of nevergrad's
differential evolution on a GPU: seeded starts, each climbed one width at a time, the best of all kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float64, Int64, Real

START = (4, 8, 16)
"""Widths per axis from which nnDetection starts (BoxC002)."""
OUTLIERS = (0.5, 99.5)
"""Percentiles per axis beyond which objects do not count."""
MOST_DROPPED = 0.1
"""Where the percentiles would drop more than this share (few objects, or many of one size), all count."""
SEARCHED, POLISHED = 1000, 4000
"""Objects that the search looks at, and the last climb of each finalist; drawn at random. All of them choose between
the finalists."""
KICKS = 12
FINALISTS = 3
SEARCH, POLISH = 200_000_000, 40_000_000
"""Overlaps that the search, and the last climb of each finalist, compute at most; together about 6 s on one core."""
BLOCK = 200_000
"""Overlaps that are computed at a time: they fit into a cache."""
EQUAL = 1e-9
"""Differences of a mean overlap that are rounding; the first candidate stays."""

Widths = Int64[np.ndarray, "3 3"]
"""Three widths (columns) of each axis (rows), rising."""


@dataclass(frozen=True)
class Anchors:
    """The 27 anchors of the first detection level, and how well those of all levels fit."""

    sizes_zyx_voxels: tuple[tuple[int, int, int], ...]
    mean_best_iou: float
    """Over all objects that count."""
    objects: int
    """How many those are."""


def optimise_anchors(sizes_zyx: Real[np.ndarray, "n 3"], strides: Sequence[Sequence[int]], *, seed: int = 0) -> Anchors:
    """Return the anchors found for objects of these sizes (voxels of the target spacing).

    Never worse than START, and the same for the same input on one machine; another machine may round a sum differently,
    which changes the result only if two candidates are within 1e-9 of each other.

    Args:
        sizes_zyx: of at least one object.
        strides: of the detection levels, finest first: an anchor of level l is that of the first times
            strides[l] / strides[0].
        seed: of the random starts, and of the choice of objects if there are many.

    Raises:
        ValueError: no object, or a size that is not positive.
    """
    sizes = np.asarray(sizes_zyx, np.float64)
    if not len(sizes) or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ValueError(f"sizes_zyx has {len(sizes)} objects, wanted at least one, and positive sizes only")
    sizes = without_outliers(sizes)
    scales = np.asarray(strides, np.float64) / np.asarray(strides[0], np.float64)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(sizes))
    some, more = sizes[order[:SEARCHED]], sizes[order[:POLISHED]]
    found: dict[bytes, tuple[float, Widths]] = {}
    search = _Work(SEARCH)
    for start in _starts(some, rng):
        score, widths = _climb(start, some, scales, search, _ladder(some))
        found[widths.tobytes()] = (score, widths)
    for _ in range(KICKS):
        if search.left > 0:
            score, widths = _climb(_kicked(max(found.values(), key=_rounded)[1], rng), some, scales, search)
            found[widths.tobytes()] = (score, widths)
    leaders = [widths for _, widths in sorted(found.values(), key=_rounded, reverse=True)[:FINALISTS]]
    finalists = [np.array([START] * 3), *(_climb(widths, more, scales, _Work(POLISH))[1] for widths in leaders)]
    scores = [mean_best_iou(sizes, _products(widths), scales) for widths in finalists]
    best = max(range(len(finalists)), key=lambda k: (round(scores[k] / EQUAL), -k))
    chosen = [_triple(size) for size in _products(finalists[best]).tolist()]
    return Anchors(tuple(chosen), round(scores[best], 6), len(sizes))


def without_outliers(sizes: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "m 3"]:
    """Return the sizes inside the open 0.5 to 99.5 percentiles of every axis; all if that drops more than a tenth."""
    low, high = np.percentile(sizes, OUTLIERS, axis=0)
    inside = ((sizes > low) & (sizes < high)).all(axis=1)
    return sizes[inside] if inside.mean() >= 1 - MOST_DROPPED else sizes


def mean_best_iou(
    sizes: Real[np.ndarray, "n 3"], anchors: Real[np.ndarray, "a 3"], scales: Real[np.ndarray, "l 3"]
) -> float:
    """Return the mean over objects of the best IoU with any anchor of any level, all centred on each other."""
    every = (np.asarray(anchors, np.float64)[None] * np.asarray(scales, np.float64)[:, None]).reshape(-1, 3)
    total = 0.0
    for first in range(0, len(sizes), 2000):
        part = np.asarray(sizes[first : first + 2000], np.float64)
        shared = np.ones((len(part), len(every)))
        for axis in range(3):
            shared *= np.minimum(part[:, None, axis], every[None, :, axis])
        overlap = shared / (part.prod(axis=1)[:, None] + every.prod(axis=1)[None] - shared)
        total += float(overlap.max(axis=1).sum())
    return total / len(sizes)


def _starts(sizes: Float64[np.ndarray, "n 3"], rng: np.random.Generator) -> Iterator[Widths]:
    """Yield nnDetection's start, quantiles of the sizes, and quantiles spread at random."""
    yield np.array([START] * 3)
    for quantiles in ((15, 50, 85), (5, 35, 75), *np.sort(rng.uniform(0, 100, (2, 3)), axis=1).tolist()):
        yield _whole(np.percentile(sizes, quantiles, axis=0).T)


def _kicked(widths: Widths, rng: np.random.Generator) -> Widths:
    """Return widths of which about a third is made up to twice as wide or narrow."""
    factors = np.where(rng.random((3, 3)) < 1 / 3, 2 ** rng.uniform(-1, 1, (3, 3)), 1.0)
    return _whole(widths * factors)


@dataclass
class _Work:
    """How many overlaps may still be computed."""

    left: int


def _climb(
    widths: Widths,
    sizes: Float64[np.ndarray, "n 3"],
    scales: Float64[np.ndarray, "l 3"],
    work: _Work,
    everywhere: Sequence[int] = (),
) -> tuple[float, Widths]:
    """Change one width after the other to the best one until none gets better; return the mean best IoU and the widths.

    The first round, which is always finished, also tries the widths `everywhere`, all rounds those near the present
    one. No other round starts without work left.
    """
    widths, score, far, moved = widths.copy(), 0.0, set(everywhere), True
    while moved and (score == 0 or work.left > 0):
        moved = False
        for axis, column in product(range(3), range(3)):
            here = int(widths[axis, column])
            step = max(1, here // 8)
            near = {here - 2 * step, here - step, here - 1, here + 1, here + step, here + 2 * step}
            taken = set(widths[axis].tolist())
            candidates = [here, *sorted(width for width in near | far if width >= 1 and width not in taken)]
            work.left -= (len(candidates) + 2) * len(sizes) * 9 * len(scales)
            scores = _try(widths, axis, column, candidates, sizes, scales)
            best = max(range(len(candidates)), key=lambda k: (round(scores[k] / EQUAL), -k))
            moved = moved or best > 0
            widths[axis, column], score = candidates[best], scores[best]
        far = set()
    return score, _whole(widths)


def _try(
    widths: Widths,
    axis: int,
    column: int,
    candidates: Sequence[int],
    sizes: Float64[np.ndarray, "n 3"],
    scales: Float64[np.ndarray, "l 3"],
) -> list[float]:
    """Return the mean best IoU for each candidate in the place of one width.

    The nine products of the other two axes are shared by all candidates, and so is the best of the other 18 anchors.
    """
    a, b = (k for k in range(3) if k != axis)
    across = np.array([(p, q) for p in widths[a].tolist() for q in widths[b].tolist()], np.float64)
    sides = across[:, None] * scales[:, [a, b]]  # (9, l, 2)
    shared = np.minimum(sizes[:, None, None, a], sides[..., 0]) * np.minimum(sizes[:, None, None, b], sides[..., 1])
    area, volume = sides.prod(axis=-1), sizes.prod(axis=1)[:, None, None]
    tried = np.array([*(widths[axis, k] for k in range(3) if k != column), *candidates], np.float64)
    best = np.empty((len(tried), len(sizes)))
    block = max(1, BLOCK // shared.size)
    for first in range(0, len(tried), block):
        lengths = tried[first : first + block, None] * scales[:, axis]  # (m, l)
        inside = shared * np.minimum(sizes[:, axis, None], lengths[:, None])[:, :, None]  # (m, n, 9, l)
        overlap = inside / (volume + area * lengths[:, None, None] - inside)
        best[first : first + block] = overlap.max(axis=(2, 3))
    means: list[float] = np.maximum(best[:2].max(axis=0), best[2:]).mean(axis=1).tolist()
    return means


def _ladder(sizes: Float64[np.ndarray, "n 3"]) -> list[int]:
    """Return whole widths from 1 to the largest size, 15 % apart."""
    top = max(1.0, float(sizes.max()))
    return sorted({max(1, round(1.15**k)) for k in range(int(np.log(top) / np.log(1.15)) + 2)})


def _rounded(entry: tuple[float, Widths]) -> tuple[int, list[int]]:
    """Sort by score; equal ones by their widths, small ones first."""
    return round(entry[0] / EQUAL), (-entry[1]).ravel().tolist()


def _products(widths: Widths) -> Int64[np.ndarray, "27 3"]:
    return np.array(list(product(*widths.tolist())))


def _whole(widths: Real[np.ndarray, "3 3"]) -> Widths:
    """Return whole widths, rising; equal ones, which would waste anchors, are moved apart."""
    found = np.sort(np.maximum(np.rint(widths), 1).astype(np.int64), axis=1)
    for column in (1, 2):
        found[:, column] = np.maximum(found[:, column], found[:, column - 1] + 1)
    return found


def _triple(size: list[int]) -> tuple[int, int, int]:
    z, y, x = size
    return z, y, x
