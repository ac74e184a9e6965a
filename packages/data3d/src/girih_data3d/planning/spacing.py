"""The voxel size that a dataset is resampled to, and the largest patch that its scans suggest.

As nnU-Net and nnDetection do, but without turning axes: they put the coarsest axis first, and every rule of theirs that
is about the first axis is here about the coarsest one, wherever it is.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Real

from girih_data3d.resampling import Number

Spacing = tuple[Number, Number, Number]
Size = tuple[int, int, int]

ANISOTROPIC_ABOVE = 3
"""Ratio of the coarsest to the finest spacing, and of voxels the other way round (nnU-Net: anisotropy threshold)."""
COARSE_PERCENTILE = 10
LARGEST_AXIS = 512
"""Voxels of the coarsest axis of the first patch, before it is clipped to the scans."""


def target_spacing(spacings_mm: Real[np.ndarray, "n 3"], sizes: Real[np.ndarray, "n 3"]) -> Spacing:
    """Return the median voxel size of each axis (z, y, x); of a coarse axis the 10th percentile.

    An axis is coarse if its median spacing is above three times the finest, and three times its median size below the
    others. Its new spacing does not fall below the finest.

    Args:
        spacings_mm: of the scans.
        sizes: voxels of the scans after cropping.
    """
    target, size = np.median(spacings_mm, axis=0), np.median(sizes, axis=0)
    coarse = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != coarse]
    finest = min(target[others])
    if target[coarse] > ANISOTROPIC_ABOVE * finest and size[coarse] * ANISOTROPIC_ABOVE < min(size[others]):
        target[coarse] = np.percentile(spacings_mm[:, coarse], COARSE_PERCENTILE)
        if target[coarse] < finest:
            target[coarse] = finest + 1e-5  # stays the coarsest axis, as in nnU-Net
    z, y, x = (round(float(mm), 6) for mm in target)
    return z, y, x


def median_size(
    spacings_mm: Real[np.ndarray, "n 3"], sizes: Real[np.ndarray, "n 3"], target_mm: Sequence[Number]
) -> tuple[float, float, float]:
    """Return the median voxels per axis of the scans at the target spacing; not rounded."""
    z, y, x = np.median(sizes * spacings_mm / np.asarray(target_mm, np.float64), axis=0).tolist()
    return z, y, x


def first_patch(target_mm: Sequence[Number], median_zyx: Sequence[Number]) -> Size:
    """Return the patch before memory counts: equal sides in mm, 512 voxels along the coarsest axis, clipped.

    That is: along the coarsest axis at most the median scan, along the others at most the smaller of the other two.
    """
    target = np.asarray(target_mm, np.float64)
    coarse = int(np.argmax(target))
    across = min(median_zyx[axis] for axis in range(3) if axis != coarse)
    limits = [median_zyx[axis] if axis == coarse else across for axis in range(3)]
    equal_mm = np.round(LARGEST_AXIS * target.max() / target)
    z, y, x = (max(1, round(min(float(size), limit))) for size, limit in zip(equal_mm, limits, strict=True))
    return z, y, x
