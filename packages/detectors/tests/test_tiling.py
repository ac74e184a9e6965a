"""Tiles cover the volume, evenly and without duplicates."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from girih_detectors.inference import centre_weight, read_tile, tile_grid, tile_starts


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


@given(st.tuples(*[st.integers(1, 24)] * 3), st.tuples(*[st.integers(1, 9)] * 3), st.floats(0, 0.8))
def test_every_voxel_of_a_volume_is_covered(shape, patch, overlap) -> None:
    covered = np.zeros(shape, dtype=int)
    grid = tile_grid(shape, patch, overlap)
    for start in grid:
        covered[tuple(slice(max(0, s), s + p) for s, p in zip(start, patch, strict=True))] += 1
    counts = []
    for n, p in zip(shape, patch, strict=True):
        starts = tile_starts(n, p, overlap)
        counts.append([sum(s <= i < s + p for s in starts) for i in range(n)])
    assert covered.min() >= 1
    assert np.array_equal(covered, np.einsum("i,j,k->ijk", *counts))
    assert len(set(grid)) == len(grid)


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
        assert np.array_equal(read_tile(image, start, patch), padded[(slice(None), *where)])


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
