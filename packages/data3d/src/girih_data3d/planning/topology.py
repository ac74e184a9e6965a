"""Stages of a network for a patch and a voxel size, by the rules of nnU-Net v1 and nnDetection (planner BoxC002)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, product

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
SHORT, LONG = 32, 3
ALIKE = 1.1
"""Factor of voxels within which the shape of a patch counts more than its size."""


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


def possible_patches(patch_zyx: Sequence[int], spacing_mm: Sequence[Number]) -> list[Topology]:
    """Return the topologies of a patch and of smaller ones, most voxels first, down to two stages.

    The patches are square across the coarsest axis, as the first one is, and about of its shape: of no axis above 32
    voxels is more than three times the share taken that is taken of another. Of those with the same stages whose voxels
    are within a tenth of each other, the one stays whose shares differ least. nnDetection instead takes
    from one axis after the other and stops at the first patch that fits; but a patch that has lost a stage detects on a
    finer map, which takes more memory than the larger patch did, so that others that fit are passed by.

    The list does not depend on the memory: so a larger budget never gives a smaller patch.
    """
    coarse = max(range(3), key=lambda axis: (spacing_mm[axis], -axis))
    best: dict[tuple[object, ...], tuple[float, int, Topology]] = {}
    for along, across in product(_sides(patch_zyx[coarse]), _sides(patch_zyx[(coarse + 1) % 3])):
        found = plan_topology([along if axis == coarse else across for axis in range(3)], spacing_mm)
        if len(found.kernels) < 2:
            continue
        voxels = math.prod(found.patch_zyx)
        shares = [n / largest for n, largest in zip(found.patch_zyx, patch_zyx, strict=True)]
        longest = max([share for n, share in zip(found.patch_zyx, shares, strict=True) if n > SHORT], default=0.0)
        if longest > LONG * min(shares):
            continue
        entry = (max(shares) / min(shares), -voxels, found)
        alike = (found.downsampling, found.kernels, math.floor(math.log(voxels) / math.log(ALIKE)))
        if alike not in best or entry[:2] < best[alike][:2]:
            best[alike] = entry
    return [found for _, _, found in sorted(best.values(), key=lambda entry: (entry[1], entry[0]))]


def _sides(largest: int) -> list[int]:
    """Return the side and smaller ones, multiples of 8 up to 128, of 16 up to 256, of 32 above."""
    steps = (*range(8, 128, 8), *range(128, 256, 16), *range(256, largest, 32))
    return [largest, *(side for side in steps if side < largest)]


def _triple(values: Sequence[int] | Iterator[int]) -> Size:
    z, y, x = values
    return z, y, x
