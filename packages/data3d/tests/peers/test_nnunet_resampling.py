"""method="nnunet" against scikit-image, which nnU-Net v2 resizes images with."""

import numpy as np
import pytest
from scipy import ndimage
from skimage import transform

from girih_data3d import resample
from girih_data3d.resampling import new_shape

LARGEST_DIFFERENCE = 2e-6
"""Of the volume's range; float32 resolves 1e-7 of it, scikit-image computes in float64."""


def resize(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return transform.resize(array, shape, order=3, mode="edge", anti_aliasing=False)


def reference(volume: np.ndarray, shape: tuple[int, ...], coarse: int | None) -> np.ndarray:
    """nnU-Net's default, by its description: slices across `coarse` one by one, then the nearest of them."""
    volume = volume.astype(np.float64)
    if coarse is None:
        return resize(volume, shape)
    plane = tuple(n for axis, n in enumerate(shape) if axis != coarse)
    slices = np.stack([resize(s, plane) for s in np.moveaxis(volume, coarse, 0)], axis=coarse)
    step = volume.shape[coarse] / shape[coarse]
    places = list(np.meshgrid(*(np.arange(n, dtype=float) for n in shape), indexing="ij"))
    places[coarse] = step * (places[coarse] + 0.5) - 0.5
    return ndimage.map_coordinates(slices, np.array(places), order=0, mode="nearest")


def edges_and_noise(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Air, tissue and noise in HU: sharp edges overshoot, so that the clipping shows."""
    volume = np.random.default_rng(0).normal(0, 20, shape)
    volume[shape[0] // 4 :, shape[1] // 4 :, shape[2] // 3 :] += 1024
    return (volume - 1024).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
@pytest.mark.parametrize(
    ("shape", "spacing", "target", "coarse"),
    [
        ((20, 70, 66), (2.5, 0.8, 0.8), (1.0, 1.0, 1.0), 0),  # 3.125 times coarser: slice by slice
        ((20, 70, 66), (5.0, 0.7, 0.7), (2.5, 1.4, 1.4), 0),
        ((20, 70, 66), (5.0, 0.7, 0.7), (5.0, 1.1, 1.1), 0),  # z stays
        ((20, 70, 66), (5.0, 0.7, 0.7), (3.0, 0.7, 0.7), 0),  # only z changes
        ((60, 24, 66), (0.8, 4.0, 0.9), (1.0, 1.0, 1.0), 1),
        ((60, 70, 12), (0.8, 0.8, 4.0), (1.6, 0.5, 5.0), 2),
        ((40, 50, 45), (1.0, 1.0, 1.0), (3.5, 0.9, 0.9), 0),  # the target is anisotropic
        ((40, 70, 66), (2.4, 0.8, 0.8), (1.0, 1.0, 1.0), None),  # exactly 3 times
        ((60, 50, 40), (0.8, 1.0, 1.2), (1.5, 1.5, 1.5), None),
        ((30, 50, 40), (1.5, 1.5, 1.5), (0.8, 1.0, 1.2), None),
        ((60, 20, 20), (0.5, 2.0, 2.0), (1.0, 1.0, 1.0), None),  # two axes are the coarsest
    ],
)
def test_equals_scikit_image(
    shape: tuple[int, ...], spacing: tuple, target: tuple, coarse: int | None, dtype: type
) -> None:
    volume = edges_and_noise(shape, dtype)
    ours = resample(volume, spacing_zyx_mm=spacing, target_zyx_mm=target, method="nnunet")
    expected = reference(volume, new_shape(shape, spacing, target), coarse)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() < LARGEST_DIFFERENCE * np.ptp(volume)
    assert ours.min() >= volume.min()
    assert ours.max() <= volume.max()


def test_halves_along_the_coarse_axis_are_rounded_alike() -> None:
    for old in range(1, 30):
        for new in range(1, 60):
            volume = np.arange(old, dtype=np.float32).reshape(old, 1, 1)
            ours = resample(
                volume, spacing_zyx_mm=(10.0 * new, 1.0, 1.0), target_zyx_mm=(10.0 * old, 1.0, 1.0), method="nnunet"
            )
            np.testing.assert_array_equal(ours, reference(volume, (new, 1, 1), 0))
