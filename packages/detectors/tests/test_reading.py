"""Tiles are read ahead by threads, and only those that hold something."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from girih_detectors.inference import read_tile, tile_grid
from girih_detectors.inference.reading import READERS, read_batches, tiles_with


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_all_tiles_come_in_order(batch_size) -> None:
    image = np.random.default_rng(0).normal(size=(2, 9, 13, 6)).astype(np.float32)
    patch = (4, 6, 8)  # wider than the image
    tiles = tile_grid((9, 13, 6), patch, 0.5)
    seen = []
    for starts, voxels in read_batches(image, tiles, patch, batch_size):
        assert voxels.shape == (len(starts), 2, *patch)
        for start, tile in zip(starts, voxels, strict=True):
            assert np.array_equal(tile.numpy(), read_tile(image, start, patch))
        seen += starts
    assert seen == tiles
    assert list(read_batches(image, [], patch, batch_size)) == []


class Watched:
    """Counts the reads that have begun."""

    def __init__(self, shape) -> None:
        self.shape, self.begun, self.lock = (1, *shape), 0, threading.Lock()

    def __getitem__(self, index):
        with self.lock:
            self.begun += 1
        return np.zeros([part.stop - part.start for part in index], dtype=np.float32)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_reading_stays_a_few_tiles_ahead(batch_size) -> None:
    image, patch, taken = Watched((40, 40, 40)), (8, 8, 8), 0
    tiles = tile_grid((40, 40, 40), patch, 0.5)
    most = max(READERS + batch_size - 1, batch_size)
    for starts, _ in read_batches(image, tiles, patch, batch_size):
        taken += len(starts)
        assert image.begun <= taken + most  # whatever the number of tiles: 729
    assert image.begun == taken == 729


def test_threads_end_with_the_caller() -> None:
    image = Watched((64, 8, 8))
    batches = read_batches(image, tile_grid((64, 8, 8), (8, 8, 8), 0.0), (8, 8, 8), 1)
    next(batches)
    batches.close()
    assert image.begun <= 1 + READERS
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tiles")]


class OnceOnly:
    """A mask of which no voxel may be read twice."""

    def __init__(self, mask) -> None:
        self.mask, self.shape, self.reads = mask, mask.shape, np.zeros(mask.shape, dtype=int)

    def __getitem__(self, index):
        assert all(0 <= part.start < part.stop <= n for part, n in zip(index, self.shape, strict=True))
        self.reads[index] += 1
        return self.mask[index]


@given(
    st.tuples(*[st.integers(1, 20)] * 3),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.sampled_from([0.0, 0.3, 0.5, 0.75]),
    st.integers(0, 6),
    st.integers(0, 1000),
)
def test_tiles_with_something_are_those_in_which_something_is(shape, patch, overlap, voxels, seed) -> None:
    mask, rng = np.zeros(shape, dtype=bool), np.random.default_rng(seed)
    for _ in range(voxels):
        mask[tuple(rng.integers(0, n) for n in shape)] = True
    tiles = tile_grid(shape, patch, overlap)
    watched = OnceOnly(mask)
    found = tiles_with(watched, tiles, patch)
    places = [tuple(slice(max(0, s), s + p) for s, p in zip(start, patch, strict=True)) for start in tiles]
    assert found == [start for start, place in zip(tiles, places, strict=True) if mask[place].any()]
    assert (watched.reads == 1).all()


def test_batches_are_tensors_of_float32() -> None:
    ((starts, voxels),) = read_batches(np.ones((1, 2, 2, 2), dtype=np.int16), [(0, 0, 0)], (2, 2, 2), 1)
    assert starts == [(0, 0, 0)]
    assert voxels.dtype == torch.float32
    assert voxels.sum() == 8
