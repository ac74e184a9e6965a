"""Tiles cover the volume, evenly and without duplicates."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from girih_detectors.inference import centre_weight, tile_grid, tile_starts
from girih_detectors.inference.tiling import fill_tile


@pytest.mark.parametrize(
    ("length", "starts"),
    [(128, [0]), (192, [0, 64]), (200, [0, 36, 72]), (256, [0, 64, 128]), (300, [0, 57, 115, 172]), (100, [-14])],
)
def test_starts_for_a_patch_of_128(length, starts) -> None:
    assert tile_starts(length, 128, 0.5) == starts


def test_27_tiles_cover_256_cubed() -> None:
    grid = tile_grid((256, 256, 256), (128, 128, 128), 0.5)
    assert len(grid) == len(set(grid)) == 27
    assert grid[:2] == [(0, 0, 0), (0, 0, 64)]


@given(st.integers(1, 400), st.integers(1, 130), st.floats(0, 0.95))
def test_every_voxel_is_covered_and_neighbours_overlap(length, patch, overlap) -> None:
    starts = tile_starts(length, patch, overlap)
    if length <= patch:
        assert len(starts) == 1
        assert starts[0] <= 0
        assert abs((starts[0] + patch - length) + starts[0]) <= 1  # as much padding before as after
        return
    stride = patch - int(overlap * patch)
    assert starts[0] == 0
    assert starts[-1] == length - patch
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert len(starts) == math.ceil((length - patch) / stride) + 1
    assert steps.max() <= stride
    assert steps.max() - steps.min() <= 1


@given(st.integers(1, 400), st.integers(1, 130), st.floats(0, 0.95))
def test_a_mirrored_axis_has_the_mirrored_tiles(length, patch, overlap) -> None:
    starts = tile_starts(length, patch, overlap)
    mirrored = [length - patch - start for start in reversed(starts)]
    middle = len(starts) // 2
    if (length - patch) % 2 and len(starts) % 2:  # it would start at half a voxel
        assert abs(starts.pop(middle) - mirrored.pop(middle)) == 1
    assert starts == mirrored


class Counted:
    """An image that counts how often each voxel is read."""

    def __init__(self, shape) -> None:
        self.shape, self.reads = (1, *shape), np.zeros((1, *shape), dtype=int)

    def __getitem__(self, index):
        self.reads[index] += 1
        return self.reads[index].astype(np.float32)


@given(st.tuples(*[st.integers(1, 12)] * 3), st.tuples(*[st.integers(1, 9)] * 3), st.sampled_from([0.0, 0.3, 0.5, 0.8]))
def test_every_voxel_of_a_volume_is_read_by_the_tiles_that_cover_it(shape, patch, overlap) -> None:
    image, grid = Counted(shape), tile_grid(shape, patch, overlap)
    for start in grid:
        fill_tile(np.empty((1, *patch), dtype=np.float32), image, start)
    first, voxels = np.array(grid), np.argwhere(np.ones(shape))
    covers = ((voxels[:, None] >= first) & (voxels[:, None] < first + patch)).all(axis=2)
    assert np.array_equal(image.reads[0].ravel(), covers.sum(axis=1))
    assert covers.any(axis=1).all()
    assert len(set(grid)) == len(grid)


@given(st.integers(1, 60), st.integers(1, 20), st.sampled_from([0.0, 0.3, 0.5, 0.8]))
def test_neighbours_share_the_overlap(length, patch, overlap) -> None:  # counted voxel by voxel
    tiles = [set(range(start, start + patch)) for start in tile_starts(length, patch, overlap)]
    assert set.union(*tiles) >= set(range(length))
    for one, other in pairwise(tiles):
        assert len(one & other) >= int(overlap * patch)


def test_bad_lengths_and_overlaps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"overlap is 1\.0"):
        tile_starts(10, 4, 1.0)
    with pytest.raises(ValueError, match="an axis of 0 voxels"):
        tile_starts(0, 4, 0.5)


@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 6)] * 3))
def test_tiles_equal_a_padded_copy(shape, patch) -> None:
    image = np.arange(1, 2 * math.prod(shape) + 1, dtype=np.float32).reshape(2, *shape)
    padded = np.pad(image, [(0, 0)] + [(8, 8)] * 3)
    for start in tile_grid(shape, patch, 0.5):
        where = tuple(slice(8 + s, 8 + s + p) for s, p in zip(start, patch, strict=True))
        tile = np.full((2, *patch), np.nan, dtype=np.float32)
        fill_tile(tile, image, start)
        assert np.array_equal(tile, padded[(slice(None), *where)])


def test_centre_weight_by_place() -> None:  # numbers measured on nnDetection with a cubic tile
    places = torch.tensor([[64.0, 64, 64], [0, 64, 64], [0, 0, 64], [0, 0, 0]])
    weights = centre_weight(torch.cat([places, places], dim=1), (128, 128, 128))
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.9226, 0.6835, 0.5]), atol=1e-4, rtol=0)


@given(st.tuples(*[st.integers(1, 200)] * 3), st.integers(0, 1000))
def test_centre_weight_is_its_formula(patch, seed) -> None:
    boxes = np.random.default_rng(seed).uniform(-1, 1.5, size=(5, 6)) * [*patch, *patch]
    middle = np.array(patch) / 2
    distance = [np.sqrt((((box[:3] + box[3:]) / 2 - middle) ** 2).sum() / (middle**2).sum()) for box in boxes]
    wanted = [1 - max(0.0, d - 0.5) for d in distance]
    np.testing.assert_allclose(centre_weight(torch.tensor(boxes), patch).numpy(), wanted, rtol=1e-9)
