"""Resampling against scipy, and labels that never lose an object."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import girih_data3d as d3
from girih_data3d.resampling import new_shape

ONE = (1.0, 1.0, 1.0)
spacings = st.tuples(*[st.floats(0.4, 3.0)] * 3)
shapes = st.tuples(*[st.integers(1, 14)] * 3)


def reference(volume: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    zoom = np.array(shape) / volume.shape
    return ndimage.zoom(volume.astype(np.float64), zoom, order=order, mode="nearest", grid_mode=True)


@settings(max_examples=60, deadline=None)
@given(shapes, spacings, st.sampled_from([("spline3", 3), ("linear", 1)]))
def test_equals_scipy(shape: tuple, spacing: tuple, method: tuple[str, int]) -> None:
    volume = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    ours = d3.resample(volume, spacing_zyx_mm=spacing, target_zyx_mm=ONE, method=method[0], antialias=False)
    assert ours.shape == new_shape(shape, spacing, ONE)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, reference(volume, ours.shape, method[1]), atol=1e-4)


@pytest.mark.parametrize("shape", [(70, 45, 90), (33, 90, 64), (90, 33, 31)])  # several blocks of 32 per axis
@pytest.mark.parametrize("spacing", [(2.2, 0.7, 0.9), (0.6, 1.0, 1.7), (1.0, 0.8, 1.0)])
def test_long_axes_equal_scipy(shape: tuple, spacing: tuple) -> None:
    volume = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    ours = d3.resample(volume, spacing_zyx_mm=spacing, target_zyx_mm=ONE, antialias=False)
    np.testing.assert_allclose(ours, reference(volume, ours.shape, 3), atol=1e-5)


def clipped(volume: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return reference(volume, shape, 3).clip(volume.min(), volume.max())


@pytest.mark.parametrize("coarse", [0, 1, 2])
def test_nnunet_takes_the_nearest_slice_along_a_coarse_axis(coarse: int) -> None:
    volume = np.random.default_rng(0).normal(size=(2, 9, 40, 36)).astype(np.float32)
    spacing, target = (4.0, 0.8, 0.8), (2.5, 1.0, 0.5)
    expected = np.zeros((2, 14, 32, 58))
    for channel, z in np.ndindex(2, 14):
        expected[channel, z] = clipped(volume[channel, int((z + 0.5) * 9 / 14)], (32, 58))
    turn = ([1, 2, 3], [2, 1, 3], [2, 3, 1])[coarse]  # the coarse axis becomes number `coarse`
    back = np.argsort([0, *turn])
    mm = [tuple(values[turn[axis] - 1] for axis in range(3)) for values in (spacing, target)]
    ours = d3.resample(volume.transpose(0, *turn), spacing_zyx_mm=mm[0], target_zyx_mm=mm[1], method="nnunet")
    np.testing.assert_allclose(ours.transpose(back), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("spacing", "target"),
    [((1.3, 0.8, 0.9), ONE), ((3.0, 1.0, 1.0), ONE), ((0.5, 2.0, 2.0), ONE), ((2.0, 2.0, 2.0), (0.9, 1.2, 1.5))],
)
def test_nnunet_resamples_all_axes_at_once_and_clips(spacing: tuple, target: tuple) -> None:
    volume = np.random.default_rng(0).normal(size=(2, 14, 13, 12)).astype(np.float32)
    ours = d3.resample(volume, spacing_zyx_mm=spacing, target_zyx_mm=target, method="nnunet")
    for channel, out in zip(volume, ours, strict=True):
        np.testing.assert_allclose(out, clipped(channel, out.shape), atol=1e-5)
        assert channel.min() <= out.min() <= out.max() <= channel.max()


def test_channels_are_resampled_one_by_one() -> None:
    volume = np.random.default_rng(0).normal(size=(2, 6, 7, 8)).astype(np.float32)
    both = d3.resample(volume, spacing_zyx_mm=(2.0, 1.0, 0.6), target_zyx_mm=ONE)
    for channel, out in zip(volume, both, strict=True):
        one = d3.resample(channel, spacing_zyx_mm=(2.0, 1.0, 0.6), target_zyx_mm=ONE)
        np.testing.assert_allclose(out, one, atol=1e-5)


def test_linear_by_hand() -> None:
    volume = np.array([0.0, 4.0], np.float32).reshape(2, 1, 1)
    out = d3.resample(volume, spacing_zyx_mm=(2.0, 1.0, 1.0), target_zyx_mm=ONE, method="linear")
    assert out.ravel().tolist() == [0, 1, 3, 4]  # samples at -0.25, 0.25, 0.75, 1.25


def test_nearest_by_hand() -> None:
    volume = np.arange(6, dtype=np.float32).reshape(1, 1, 6)
    out = d3.resample(volume, spacing_zyx_mm=ONE, target_zyx_mm=(1.0, 1.0, 3.0), method="nearest")
    assert out.ravel().tolist() == [1, 4]
    out = d3.resample(volume, spacing_zyx_mm=(1.0, 1.0, 1.5), target_zyx_mm=ONE, method="nearest")
    assert out.ravel().tolist() == [0, 1, 1, 2, 3, 3, 4, 5, 5]


def test_smoothing_applies_to_coarser_axes_only() -> None:
    volume = np.random.default_rng(0).normal(size=(30, 30, 30)).astype(np.float32)
    smooth = d3.resample(volume, spacing_zyx_mm=(1.0, 1.0, 1.0), target_zyx_mm=(3.0, 0.5, 1.1))
    sigma = 0.5 * np.sqrt(3.0**2 - 1)
    by_hand = reference(ndimage.gaussian_filter1d(volume, sigma, axis=0, mode="nearest"), smooth.shape, 3)
    np.testing.assert_allclose(smooth, by_hand, atol=1e-4)


@pytest.mark.parametrize("method", ["spline3", "linear", "nearest", "nnunet"])
def test_same_spacing_gives_a_copy(method: str) -> None:
    volume = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    out = d3.resample(volume, spacing_zyx_mm=ONE, target_zyx_mm=ONE, method=method)
    np.testing.assert_array_equal(out, volume)
    assert not np.shares_memory(out, volume)


@pytest.mark.parametrize("bad", [(0.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (float("nan"), 1.0, 1.0)])
def test_bad_spacing(bad: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="wanted three positive lengths"):
        d3.resample(np.zeros((2, 2, 2), np.float32), spacing_zyx_mm=ONE, target_zyx_mm=bad)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(2, 9)] * 3), spacings)
def test_no_object_vanishes(seed: int, shape: tuple, spacing: tuple) -> None:
    labels = np.random.default_rng(seed).choice([0, 0, 0, 3, 7, 2_000_000_000], size=shape).astype(np.int32)
    if np.prod(new_shape(shape, spacing, ONE)) < 3:
        return
    out = d3.resample_instances(labels, spacing_zyx_mm=spacing, target_zyx_mm=ONE)
    assert set(np.unique(out)) - {0} == set(np.unique(labels)) - {0}
    assert out.shape == new_shape(shape, spacing, ONE)


def test_labels_equal_a_vote_over_whole_volumes() -> None:
    labels = np.zeros((12, 14, 10), np.int32)
    labels[2:7, 3:9, 1:6] = 4
    labels[7:10, 3:9, 1:6] = 2
    spacing = (1.7, 0.8, 1.3)
    out = d3.resample_instances(labels, spacing_zyx_mm=spacing, target_zyx_mm=ONE)
    votes = {
        i: d3.resample(labels == i, spacing_zyx_mm=spacing, target_zyx_mm=ONE, method="linear", antialias=False)
        for i in (2, 4)
    }
    expected = np.where(votes[2] >= votes[4], 2, 4) * (votes[2] + votes[4] >= 0.5 - 1e-6)
    np.testing.assert_array_equal(out, expected)


def test_one_voxel_object_survives_coarse_sampling() -> None:
    labels = np.zeros((9, 9, 9), np.int32)
    labels[0, 0, 0] = 1  # samples at 1, 4, 7 miss it
    out = d3.resample_instances(labels, spacing_zyx_mm=ONE, target_zyx_mm=(3.0, 3.0, 3.0))
    assert np.argwhere(out).tolist() == [[0, 0, 0]]


def test_more_objects_than_voxels() -> None:
    labels = np.arange(1, 9, dtype=np.int32).reshape(2, 2, 2)
    with pytest.raises(ValueError, match="8 objects do not fit into the 1 voxels"):
        d3.resample_instances(labels, spacing_zyx_mm=ONE, target_zyx_mm=(2.0, 2.0, 2.0))
    with pytest.raises(ValueError, match="smallest value -8"):
        d3.resample_instances(-labels, spacing_zyx_mm=ONE, target_zyx_mm=ONE)
