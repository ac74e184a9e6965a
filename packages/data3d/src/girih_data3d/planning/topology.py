"""Stages of a network for a patch and a voxel size, by the rules of nnU-Net v1 and nnDetection (planner BoxC002)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from girih_data3d.planning.spacing import Size
from girih_data3d.resampling import Number

START_CHANNELS, MAX_CHANNELS = 32, 320
PYRAMID_CHANNELS = 128
"""Of the maps that detect, and of the heads."""
SMALLEST_EDGE = 4
"""Shortest edge of the coarsest map, of axes that are long enough to be pooled at all."""
SIMILAR = 2
"""Axes whose spacings differ by less than this factor are convolved and pooled together."""
DETECTION_LEVELS, FINEST_LEVEL = 4, 2


@dataclass(frozen=True)
class Topology:
    """A patch and the stages of an encoder for it; triples are (z, y, x), stages finest first."""

    patch_zyx: Size
    downsampling: tuple[Size, ...]
    """Step of each stage against the one before; the first is (1, 1, 1)."""
    kernels: tuple[Size, ...]

    @property
    def strides(self) -> tuple[Size, ...]:
        """Voxels per cell of each stage."""
        return tuple(accumulate(self.downsampling, lambda a, b: (a[0] * b[0], a[1] * b[1], a[2] * b[2])))

    @property
    def channels(self) -> tuple[int, ...]:
        """32 in the first stage, twice as many in each, at most 320."""
        return tuple(min(START_CHANNELS * 2**stage, MAX_CHANNELS) for stage in range(len(self.kernels)))

    @property
    def levels(self) -> tuple[int, ...]:
        """Stages whose maps detect: the last four, from stage 2 at the latest, never the first."""
        stages = len(self.kernels)
        return tuple(range(min(max(1, stages - DETECTION_LEVELS), FINEST_LEVEL), stages))


def plan_topology(patch_zyx: Sequence[int], spacing_mm: Sequence[Number]) -> Topology:
    """Return the stages for a patch, which is padded to multiples of their strides.

    Every step halves the axes whose spacing is below twice the finest and that have at least 8 cells, until there is
    none. A stage convolves with 3 along the axes of the largest group of similar spacings, with 1 along the others; the
    last one with 3 along all.
    """
    size, spacing = list(patch_zyx), [float(mm) for mm in spacing_mm]
    steps: list[Size] = [(1, 1, 1)]
    kernels: list[Size] = []
    while True:
        finest = min(spacing)
        pooled = [spacing[i] / finest < SIMILAR and size[i] >= 2 * SMALLEST_EDGE for i in range(3)]
        if not any(pooled):
            break
        groups = [[max(a, b) / min(a, b) < SIMILAR for b in spacing] for a in spacing]
        kernels.append(_triple(3 if member else 1 for member in max(groups, key=sum)))
        steps.append(_triple(2 if halved else 1 for halved in pooled))
        for axis in range(3):
            if pooled[axis]:
                spacing[axis] *= 2
                size[axis] = -(-size[axis] // 2)
    kernels.append((3, 3, 3))
    found = Topology(_triple(patch_zyx), tuple(steps), tuple(kernels))
    padded = _triple(-(-n // stride) * stride for n, stride in zip(patch_zyx, found.strides[-1], strict=True))
    return Topology(padded, found.downsampling, found.kernels)


def smaller_and_smaller(
    patch_zyx: Sequence[int], spacing_mm: Sequence[Number], median_zyx: Sequence[Number]
) -> Iterator[Topology]:
    """Yield the topology of a patch, then of ever smaller ones, down to two stages.

    The axis with the largest share of the median scan (the last of equals) loses its stride, or half of it where its
    coarsest map has four cells only. Which patches come does not depend on who stops when, and each has fewer voxels
    than the one before: so a larger memory budget never gives a smaller patch.
    """
    while True:
        found = plan_topology(patch_zyx, spacing_mm)
        if len(found.kernels) < 2:
            return
        yield found
        strides, size = found.strides[-1], list(found.patch_zyx)
        losses = [
            stride if n > SMALLEST_EDGE * stride else stride // 2 for n, stride in zip(size, strides, strict=True)
        ]
        axes = [axis for axis in range(3) if losses[axis] and size[axis] > losses[axis]]
        if not axes:
            return
        axis = max(axes, key=lambda i: (size[i] / median_zyx[i], i))
        size[axis] -= losses[axis]
        patch_zyx = size


def _triple(values: Sequence[int] | Iterator[int]) -> Size:
    z, y, x = values
    return z, y, x
