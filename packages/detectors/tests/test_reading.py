"""Tiles are read ahead by threads, and only those that hold something."""

import math
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from girih_detectors.inference import reading, tile_grid
from girih_detectors.inference.reading import READERS, read_batches, tiles_with
from girih_detectors.inference.tiling import fill_tile


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_all_tiles_come_in_order(batch_size) -> None:
    image = np.random.default_rng(0).normal(size=(2, 9, 13, 6)).astype(np.float32)
    patch = (4, 6, 8)  # wider than the image
    tiles = tile_grid((9, 13, 6), patch, 0.5)
    seen = []
    for starts, voxels in read_batches(image, tiles, patch, batch_size):
        assert voxels.shape == (len(starts), 2, *patch)
        for start, tile in zip(starts, voxels, strict=True):
            wanted = np.empty((2, *patch), dtype=np.float32)
            fill_tile(wanted, image, start)
            assert np.array_equal(tile.numpy(), wanted)
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
    most = READERS + batch_size - 1
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


def test_tiles_that_nobody_waits_for_are_not_read(monkeypatch) -> None:
    close, shutdown = threading.Event(), ThreadPoolExecutor.shutdown

    class Stuck(Watched):
        def __getitem__(self, index):
            voxels = super().__getitem__(index)
            assert index[1].start < 8 * 8 or close.wait(timeout=30)  # the second batch comes when all is over
            return voxels

    def cancels_first(self, wait=True, *, cancel_futures=False):
        shutdown(self, wait=False, cancel_futures=cancel_futures)
        close.set()
        shutdown(self, wait=wait)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", cancels_first)
    image = Stuck((256, 8, 8))
    batches = read_batches(image, tile_grid((256, 8, 8), (8, 8, 8), 0.0), (8, 8, 8), 8)
    next(batches)
    batches.close()
    assert image.begun <= 8 + READERS  # not 16


@pytest.mark.parametrize(("batch_size", "most"), [(1, 1 + 4), (2, 1 + 2), (3, 1 + 2), (8, 1 + 1)])
def test_memory_holds_the_batch_in_hand_and_those_ahead(batch_size, most, monkeypatch) -> None:
    room, held, empty = [], [], torch.empty

    def counted(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        room.append(weakref.ref(tensor))
        held.append(sum(one() is not None for one in room))
        return tensor

    monkeypatch.setattr(torch, "empty", counted)
    image = np.zeros((1, 256, 8, 8), dtype=np.float32)
    for _, voxels in read_batches(image, tile_grid((256, 8, 8), (8, 8, 8), 0.0), (8, 8, 8), batch_size):
        del voxels
    assert len(held) == -(-32 // batch_size)
    assert max(held) == most


class OnceOnly:
    """A mask of which no voxel may be read twice."""

    def __init__(self, mask) -> None:
        self.mask, self.shape, self.reads, self.most = mask, mask.shape, np.zeros(mask.shape, dtype=int), 0

    def __getitem__(self, index):
        self.most = max(self.most, math.prod(part.stop - part.start for part in index))
        assert all(0 <= part.start < part.stop <= n for part, n in zip(index, self.shape, strict=True))
        self.reads[index] += 1
        return self.mask[index]


@given(
    st.tuples(*[st.integers(1, 20)] * 3),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.sampled_from([0.0, 0.3, 0.5, 0.75]),
    st.integers(0, 6),
    st.integers(0, 1000),
    st.sampled_from([1, 100, 10_000]),
)
def test_tiles_with_something_are_those_in_which_something_is(shape, patch, overlap, voxels, seed, at_once) -> None:
    mask, rng = np.zeros(shape, dtype=bool), np.random.default_rng(seed)
    for _ in range(voxels):
        mask[tuple(rng.integers(0, n) for n in shape)] = True
    tiles = tile_grid(shape, patch, overlap)
    watched = OnceOnly(mask)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(reading, "MASK_VOXELS", at_once)
        found = tiles_with(watched, tiles, patch)
    assert watched.most <= max(at_once, patch[0] * shape[2])
    places = [tuple(slice(max(0, s), s + p) for s, p in zip(start, patch, strict=True)) for start in tiles]
    assert found == [start for start, place in zip(tiles, places, strict=True) if mask[place].any()]
    assert (watched.reads == 1).all()


class Computed:
    """A mask of a wide scan that is made as it is read, and knows the largest block that was asked for."""

    shape, most = (200, 2048, 2048), 0

    def __getitem__(self, index):
        shape = [part.stop - part.start for part in index]
        self.most = max(self.most, math.prod(shape))
        return np.broadcast_to(np.zeros((), dtype=bool), shape)


def test_a_mask_is_never_whole() -> None:
    mask, patch = Computed(), (192, 192, 192)
    assert tiles_with(mask, tile_grid(mask.shape, patch, 0.25), patch) == []
    assert mask.most <= reading.MASK_VOXELS == 2**23  # a tile's depth of the whole plane has 96 times as many


class Wrapped:
    """An array of which a slice is no numpy array yet, as xarray's."""

    def __init__(self, mask) -> None:
        self.mask, self.shape = mask, mask.shape

    def __getitem__(self, index):
        return Wrapped(self.mask[index])

    def __array__(self, dtype=None, copy=None):
        return self.mask


@pytest.mark.parametrize("like", [Wrapped, torch.from_numpy, np.asarray])
def test_masks_of_other_libraries(like) -> None:
    mask = np.zeros((8, 8, 8), dtype=bool)
    mask[5, 1, 6] = True
    assert tiles_with(like(mask), tile_grid((8, 8, 8), (4, 4, 4), 0.0), (4, 4, 4)) == [(4, 0, 4)]


@pytest.mark.parametrize("kind", [OSError, RuntimeError, KeyError, EOFError])
def test_a_mask_that_cannot_be_read_is_named(kind) -> None:
    class Gone(Computed):
        def __getitem__(self, index):
            raise kind("the disk is gone")

    class Short(Computed):
        def __getitem__(self, index):
            return super().__getitem__(index)[:1]

    where = r"^the mask of valid voxels from \(0, 0, 0\) to \(\d+, \d+, 2048\) \(z, y, x\)"
    tiles = tile_grid(Computed.shape, (100, 100, 100), 0.0)
    with pytest.raises(ValueError, match=f"{where} cannot be read: .*the disk is gone"):
        tiles_with(Gone(), tiles, (100, 100, 100))
    with pytest.raises(ValueError, match=rf"{where} has \(1, \d+, 2048\) voxels, wanted \(100, "):
        tiles_with(Short(), tiles, (100, 100, 100))


def test_batches_are_tensors_of_float32() -> None:
    ((starts, voxels),) = read_batches(np.ones((1, 2, 2, 2), dtype=np.int16), [(0, 0, 0)], (2, 2, 2), 1)
    assert starts == [(0, 0, 0)]
    assert voxels.dtype == torch.float32
    assert voxels.sum() == 8
