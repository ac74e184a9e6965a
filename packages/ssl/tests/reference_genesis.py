"""The corruptions of Models Genesis as the rule says them: one sample, one window, one box after the other, in float64.

Written from Zhou et al. 2021 ("Models Genesis", section 3 and the numbers of the public code), for the tests and for
the benchmark, which load it by its path. `patch` is (C, Z, Y, X) in [0, 1]; nothing is modified.
"""

import numpy as np


def pair(patch, rng):
    """Return what is shown and the target, with the published probabilities."""
    target = rescale(flip(patch, rng))
    shown = target
    if rng.random() < 0.5:
        shown = shuffle(shown, draw_windows(shown.shape[1:], rng))
    if rng.random() < 0.9:
        shown = bend(shown, rng.random((2, 2)), inverted=rng.random() < 0.5)
    if rng.random() < 0.9:
        shown = fill_inside(shown, rng) if rng.random() < 0.2 else fill_outside(shown, rng)
    return shown, target


def flip(patch, rng):
    for _ in range(3):
        if rng.random() >= 0.4:
            break
        patch = np.flip(patch, rng.integers(1, 4))
    return patch


def rescale(patch):
    low, high = patch.min((1, 2, 3), keepdims=True), patch.max((1, 2, 3), keepdims=True)
    return (patch - low) / np.where(high > low, high - low, 1)


def draw_windows(shape, rng, count=10_000):
    """Return for every window its first voxel, its sides and its permutation."""
    windows = []
    for _ in range(count):
        sides = [int(rng.integers(1, side // 10 + 1)) for side in shape]
        starts = [int(rng.integers(0, side - part + 1)) for side, part in zip(shape, sides, strict=True)]
        windows.append((starts, sides, rng.permutation(sides[0] * sides[1] * sides[2])))
    return windows


def shuffle(patch, windows):
    """Permute each window of the original; later windows overwrite earlier ones."""
    shuffled = patch.copy()
    for starts, sides, permutation in windows:
        z, y, x = (slice(start, start + side) for start, side in zip(starts, sides, strict=True))
        window = patch[:, z, y, x]
        shuffled[:, z, y, x] = window.reshape(len(patch), -1)[:, permutation].reshape(window.shape)
    return shuffled


def bezier(points, knots=100_000):
    """Return abscissae and ordinates of the cubic curve from (0, 0) to (1, 1) with these controls, both rising."""
    t = np.linspace(0, 1, knots)[:, None]
    curve = 3 * (1 - t) ** 2 * t * points[0] + 3 * (1 - t) * t**2 * points[1] + t**3
    return np.sort(curve[:, 0]), np.sort(curve[:, 1])


def bend(patch, points, *, inverted):
    x, y = bezier(points)
    return np.interp(patch, x, y[::-1] if inverted else y)


def fill_inside(patch, rng):
    painted = patch.copy()
    for _ in range(5):
        if rng.random() >= 0.95:
            break
        box = draw_box(patch.shape[1:], [(side // 6, side // 3) for side in patch.shape[1:]], rng)
        painted[box] = rng.random(painted[box].shape)
    return painted


def fill_outside(patch, rng):
    painted = rng.random(patch.shape)
    for n in range(5):
        if n > 0 and rng.random() >= 0.95:
            break
        box = draw_box(patch.shape[1:], [(side - 4 * side // 7, side - 3 * side // 7) for side in patch.shape[1:]], rng)
        painted[box] = patch[box]
    return painted


def draw_box(shape, limits, rng):
    sides = [int(rng.integers(low, high + 1)) for low, high in limits]
    starts = [int(rng.integers(3, whole - side - 3 + 1)) for whole, side in zip(shape, sides, strict=True)]
    return (slice(None), *(slice(start, start + side) for start, side in zip(starts, sides, strict=True)))
