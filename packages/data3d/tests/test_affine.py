"""Affines and boxes: hand-computed cases and round trips."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import girih_data3d as d3
from girih_data3d.affine import rescale_affine, shift_affine, spacing_zyx

AFFINE = np.array([[-0.5, 0, 0, 10], [0, 2.0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])


def test_voxel_to_world_by_hand() -> None:
    np.testing.assert_allclose(d3.voxel_to_world(AFFINE, np.array([[1, 2, 4]])), [[8.0, -16.0, 8.0]])
    assert spacing_zyx(AFFINE) == (3.0, 2.0, 0.5)
    assert d3.voxel_to_world(AFFINE, np.zeros((0, 3))).shape == (0, 3)
    assert d3.world_to_voxel(AFFINE, np.zeros((0, 3))).shape == (0, 3)


@given(arrays(np.float64, (5, 3), elements=st.floats(-1e4, 1e4)))
def test_world_and_voxel_are_inverse(index: np.ndarray) -> None:
    np.testing.assert_allclose(d3.world_to_voxel(AFFINE, d3.voxel_to_world(AFFINE, index)), index, atol=1e-8)


def test_crop_and_rescale_keep_places() -> None:
    moved = shift_affine(AFFINE, np.array([1, 2, 3]))
    np.testing.assert_allclose(
        d3.voxel_to_world(moved, np.array([[0, 0, 0]])), d3.voxel_to_world(AFFINE, np.array([[1, 2, 3]]))
    )
    half = rescale_affine(AFFINE, (4, 6, 8), (8, 6, 2))
    assert spacing_zyx(half) == (1.5, 2.0, 2.0)
    edges = np.array([[-0.5, -0.5, -0.5], [3.5, 5.5, 7.5]])
    new_edges = np.array([[-0.5, -0.5, -0.5], [7.5, 5.5, 1.5]])
    np.testing.assert_allclose(d3.voxel_to_world(half, new_edges), d3.voxel_to_world(AFFINE, edges))


def test_boxes_through_ras_by_hand() -> None:
    box = np.array([[0.0, 0, 0, 1, 2, 4]])  # voxels z 0, y 0..1, x 0..3
    np.testing.assert_allclose(d3.boxes_to_ras(box, AFFINE), [[8.25, -21, 3.5, 10.25, -17, 6.5]])
    flipped = AFFINE @ np.array([[-1, 0, 0, 9], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # x' = 9 - x, 10 voxels
    np.testing.assert_allclose(d3.move_boxes(box, AFFINE, flipped), [[0, 0, 6, 1, 2, 10]])
    assert d3.move_boxes(np.zeros((0, 6)), AFFINE, flipped).shape == (0, 6)
