"""Speed and memory of girih_data3d's resampling against scipy, and against scikit-image if it is installed.

    python benchmarks/resampling.py           # prints Markdown; takes two or three minutes, most of it scipy's
    python benchmarks/resampling.py --quick   # smaller volumes, one round

Both sides run in one process on one thread, in turns; a time is the median of the rounds' CPU seconds (user + system).
Before anything is timed both sides must give the same volume, to a thousandth of its standard deviation. Peak memory is
what a side allocates beyond its input, by tracemalloc. Fails if the spline is less than 6 times as fast as scipy's.
"""

import argparse
import platform
import time
import tracemalloc
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from statistics import median

import numpy as np
from scipy import ndimage
from threadpoolctl import threadpool_limits

from girih_data3d import resample, resample_instances
from girih_data3d.resampling import new_shape

WANTED = 6
TOLERANCE = 1e-3  # of the standard deviation
TARGET = (1.0, 1.0, 1.0)
CASES = (  # shape, spacing in mm
    ((120, 512, 512), (2.5, 0.8, 0.8)),
    ((256, 256, 256), (1.5, 1.2, 1.3)),
    ((320, 320, 320), (0.5, 0.7, 0.7)),
)
LABELS = ((300, 512, 512), (1.5, 0.8, 0.8))
OBJECTS = 30


def scipy_zoom(volume: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return ndimage.zoom(volume, np.array(shape) / volume.shape, order=3, mode="nearest", grid_mode=True)


def by_slices(volume: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """nnU-Net's default for a coarse first axis, by its description."""
    from skimage.transform import resize

    slices = [resize(plane, shape[1:], order=3, mode="edge", anti_aliasing=False) for plane in volume]
    nearest = (np.arange(shape[0]) + 0.5) * len(volume) / shape[0]
    return np.stack([slices[int(z)] for z in nearest])


def at_once(volume: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    from skimage.transform import resize

    return resize(volume, shape, order=3, mode="edge", anti_aliasing=False)


def compare(
    volume: np.ndarray,
    spacing: tuple[float, ...],
    ours: Callable[[], np.ndarray],
    theirs: Callable[[], np.ndarray],
    rounds: int,
) -> float:
    """Print a row; return how many times as fast ours is."""
    name = f"{times(volume.shape)} at {times(spacing)} mm"
    (mine, my_peak), (other, other_peak) = with_peak(ours), with_peak(theirs)
    difference = float(np.abs(mine - other).max() / volume.std())
    shape = times(mine.shape)
    if difference > TOLERANCE:
        raise SystemExit(f"{name}: differs by {difference:.2g} standard deviations; nothing is timed")
    del mine, other
    seconds = [(cpu_seconds(ours), cpu_seconds(theirs)) for _ in range(rounds)]
    mine_s, other_s = (median(column) for column in zip(*seconds, strict=True))
    print(
        f"| {name} -> {shape} | {mine_s:.2f} | {other_s:.2f} | {other_s / mine_s:.1f} "
        f"| {my_peak:.0f} | {other_peak:.0f} | {difference:.1e} |",
        flush=True,
    )
    return other_s / mine_s


def times(numbers: tuple[float, ...]) -> str:
    return " x ".join(f"{n:g}" for n in numbers)


def with_peak(work: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """Return a result and the peak of what was allocated for it, in MiB."""
    tracemalloc.start()
    try:
        result = work()
        return result, tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def balls(shape: tuple[int, int, int], count: int) -> np.ndarray:
    """A label map of balls of 4 to 25 voxels radius."""
    rng = np.random.default_rng(0)
    labels = np.zeros(shape, np.int32)
    for number in range(1, count + 1):
        radius = int(rng.integers(4, 26))
        index = np.arange(-radius, radius + 1)
        ball = index[:, None, None] ** 2 + index[:, None] ** 2 + index**2 <= radius**2
        start = rng.integers(0, np.array(shape) - len(index))
        labels[tuple(slice(a, a + len(index)) for a in start)][ball] = number
    return labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of each side, one round")
    quick = parser.parse_args().quick
    shrink, rounds = (4, 1) if quick else (1, 3)
    peers = ("scikit-image",) if find_spec("skimage") else ()
    versions = ", ".join(f"{name} {version(name)}" for name in ("girih-data3d", "numpy", "scipy", *peers))
    print(f"Python {platform.python_version()}, {versions}; {platform.machine()}, one thread\n")
    head = "| volume -> 1 mm | ours, CPU s | {}, CPU s | ratio | ours, MiB | {}, MiB | difference, std |"
    ruler = "|---|---:|---:|---:|---:|---:|---:|"

    print(
        '`method="spline3"`, without smoothing, against `scipy.ndimage.zoom(order=3, mode="nearest", grid_mode=True)`\n'
    )
    print(head.format("scipy", "scipy"), ruler, sep="\n")
    rng = np.random.default_rng(0)
    volumes = [(rng.standard_normal([n // shrink for n in shape], np.float32), mm) for shape, mm in CASES]
    ratios = [
        compare(
            volume,
            spacing,
            lambda v=volume, mm=spacing: resample(v, spacing_zyx_mm=mm, target_zyx_mm=TARGET, antialias=False),
            lambda v=volume, mm=spacing: scipy_zoom(v, new_shape(v.shape, mm, TARGET)),
            rounds,
        )
        for volume, spacing in volumes
    ]
    if peers:
        print('\n`method="nnunet"` against nnU-Net\'s default by scikit-image\n')
        print(head.format("scikit-image", "scikit-image"), ruler, sep="\n")
        for volume, spacing in volumes:
            resize = by_slices if max(spacing) > 3 * min(spacing) else at_once
            compare(
                volume,
                spacing,
                lambda v=volume, mm=spacing: resample(v, spacing_zyx_mm=mm, target_zyx_mm=TARGET, method="nnunet"),
                lambda v=volume, mm=spacing, f=resize: f(v, new_shape(v.shape, mm, TARGET)),
                rounds,
            )
    del volumes
    shape, spacing = LABELS
    labels = balls(tuple(n // (2 if quick else 1) for n in shape), OBJECTS)
    seconds = median(
        cpu_seconds(lambda: resample_instances(labels, spacing_zyx_mm=spacing, target_zyx_mm=TARGET))
        for _ in range(rounds)
    )
    print(f"\n`resample_instances`, {labels.shape} at {spacing} mm, {OBJECTS} objects: {seconds:.2f} CPU s")
    if min(ratios) < WANTED and not quick:
        raise SystemExit(f"the spline is {min(ratios):.1f} times as fast as scipy's, wanted {WANTED}")


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
