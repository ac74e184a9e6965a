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


def test_same_spacing_changes_nothing() -> None:
    volume = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(d3.resample(volume, spacing_zyx_mm=ONE, target_zyx_mm=ONE), volume)


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
