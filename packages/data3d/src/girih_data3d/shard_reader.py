"""Read windows of a sharded zarr array straight from its shards: look up, read, check and unpack the touched chunks.

The layout is zarr v3's `sharding_indexed` codec: compressed inner chunks, then an index of (offset, length) pairs and
its CRC-32C at the end of the file; every inner chunk ends with its own CRC-32C.
"""

import itertools
import math
from pathlib import PurePath
from typing import Any, Protocol, runtime_checkable

import google_crc32c
import numcodecs.blosc
import numpy as np
from jaxtyping import Shaped

from girih_data3d.errors import CorruptCaseError, StaleCaseError
from girih_data3d.resampling import Number

numcodecs.blosc.use_threads = False  # as zarr itself sets: blosc's own thread pool does not survive a fork

EMPTY = 2**64 - 1
CRC_BYTES = 4
RESIDUE = 0x48674BC7
"""CRC-32C of anything that is followed by its own CRC-32C (RFC 3385)."""


@runtime_checkable
class File(Protocol):
    """A file of which any part can be read; `size` in bytes."""

    size: int

    def read(self, length: int, offset: int) -> bytes:
        """Return up to `length` bytes from `offset`; fewer at the end of the file."""

    def prefetch(self, ranges: list[tuple[int, int]]) -> None:
        """Start to load these (offset, length) ranges, which are read next."""


@runtime_checkable
class Files(Protocol):
    """Opens files by their paths."""

    def open(self, path: Any) -> File:
        """Return a file, or raise OSError, or StaleCaseError if it is not the one that is meant."""


class ShardReader:
    """One sharded zarr v3 array.

    Files are opened at the first read; a copy made by fork or pickle reads on its own. Attributes: `shape`, `dtype`.

    Args:
        folder: of the array.
        case_id: that errors name.
        files: opens the shards below `folder`.
        record: content of the array's zarr.json.

    Raises:
        CorruptCaseError: an unknown layout; on reading: a missing or short file, a checksum that fails.
        StaleCaseError: on reading: the case was replaced since it was opened.
    """

    def __init__(self, folder: PurePath, case_id: str, files: Files, record: dict[str, Any]) -> None:
        self.folder, self.case_id = folder, case_id
        try:
            shard, chunk = _layout(record)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise CorruptCaseError(case_id, str(folder / "zarr.json"), f"{type(error).__name__}: {error}") from error
        self.shape: tuple[int, ...] = tuple(record["shape"])
        self.dtype: np.dtype[Any] = np.dtype(record["data_type"]).newbyteorder("<")
        self.shard, self.chunk = shard, chunk
        self._files = files
        self._indices: dict[tuple[int, ...], np.ndarray] = {}

    def read_into(
        self, out: Shaped[np.ndarray, "*window"], start: tuple[int, ...], *, scale: Number = 1, offset: Number = 0
    ) -> None:
        """Fill `out`, of any type, with the window of its shape at `start`: stored value * scale + offset.

        Raises:
            ValueError: the window leaves the array.
        """
        size = out.shape
        if any(a < 0 or n < 1 or a + n > end for a, n, end in zip(start, size, self.shape, strict=True)):
            raise ValueError(f"{self.folder}: window {size} at {start} leaves the array of shape {self.shape}")
        shards = [_spans(a, n, s) for a, n, s in zip(start, size, self.shard, strict=True)]
        for place in itertools.product(*shards):
            where, into, taken = zip(*place, strict=True)
            self._read_shard(where, out[into], tuple(part.start for part in taken), scale, offset)

    def _read_shard(
        self,
        where: tuple[int, ...],
        out: Shaped[np.ndarray, "*window"],
        start: tuple[int, ...],
        scale: Number,
        offset: Number,
    ) -> None:
        """Fill `out` with a window of one shard; `start` counts from the shard's corner.

        Chunks are put together slab by slab (one chunk thick) in a small buffer and then moved on in one go: written
        to `out` directly, their short rows would lie too far apart for the processor's caches.
        """
        path = self.folder.joinpath("c", *map(str, where))
        try:
            file = self._files.open(path)
            index = self._index(where, file)
            spans = [_spans(a, n, c) for a, n, c in zip(start, out.shape, self.chunk, strict=True)]
            touched = index[tuple(slice(s[0][0], s[-1][0] + 1) for s in spans)].reshape(-1, 2)
            file.prefetch(_runs(touched))
            entries = iter(touched.tolist())
            chunk = np.empty(self.chunk, self.dtype)
            slab = np.empty((*self.chunk[:-2], *out.shape[-2:]), self.dtype)
            rows = list(itertools.product(*spans[-2:]))
            for head in itertools.product(*spans[:-2]):
                _, into, taken = zip(*head, strict=True) if head else ((), (), ())  # a table has two axes only
                for (_, into_y, taken_y), (_, into_x, taken_x) in rows:
                    at, length = next(entries)
                    self._unpack(file, at, length, chunk)
                    slab[(*taken, into_y, into_x)] = chunk[(*taken, taken_y, taken_x)]
                part = out[into]
                part[...] = slab[taken]
                if scale != 1:
                    part *= out.dtype.type(scale)
                if offset != 0:
                    part += out.dtype.type(offset)
        except StaleCaseError as error:
            raise StaleCaseError(f"{path}: replaced since case {self.case_id!r} was opened; open it again") from error
        except (OSError, OverflowError, RuntimeError, ValueError, IndexError) as error:
            raise CorruptCaseError(self.case_id, str(path), f"not readable: {error}") from error

    def _unpack(self, file: File, at: int, length: int, chunk: Shaped[np.ndarray, "*chunk"]) -> None:
        """Read one inner chunk, check it and decompress it into `chunk`."""
        if at == EMPTY:  # zarr leaves out chunks that hold nothing but the fill value
            chunk[...] = 0
            return
        packed = file.read(length, at)
        if len(packed) != length or google_crc32c.value(packed) != RESIDUE:
            raise ValueError(_fault(f"chunk at byte {at}", len(packed), length))
        numcodecs.blosc.decompress(packed, chunk)

    def _index(self, where: tuple[int, ...], file: File) -> np.ndarray:
        """Return (offset, length) of every chunk of a shard."""
        found = self._indices.get(where)
        if found is None:
            grid = [outer // inner for outer, inner in zip(self.shard, self.chunk, strict=True)]
            wanted = math.prod(grid) * 16 + CRC_BYTES
            content = file.read(wanted, max(0, file.size - wanted))
            if len(content) != wanted or google_crc32c.value(content) != RESIDUE:
                raise ValueError(_fault("index", len(content), wanted))
            found = self._indices[where] = np.frombuffer(content[:-CRC_BYTES], "<u8").reshape(*grid, 2)
        return found


def _spans(start: int, size: int, chunk: int) -> list[tuple[int, slice, slice]]:
    """Return for each chunk that an axis of the window touches: its number, its place in the window, and in itself."""
    spans = []
    for i in range(start // chunk, -(-(start + size) // chunk)):
        low, high = max(i * chunk, start), min((i + 1) * chunk, start + size)
        spans.append((i, slice(low - start, high - start), slice(low - i * chunk, high - i * chunk)))
    return spans


def _runs(entries: np.ndarray) -> list[tuple[int, int]]:
    """Return the byte ranges (offset, length) of chunks, those that follow one another joined."""
    kept = entries[entries[:, 0] != EMPTY].astype(np.int64)
    kept = kept[np.argsort(kept[:, 0])]
    if not len(kept):
        return []
    ends = kept.sum(axis=1)
    first = np.flatnonzero(np.concatenate([[True], kept[1:, 0] != ends[:-1]]))
    last = np.concatenate([first[1:] - 1, [len(kept) - 1]])
    return [(a, b - a) for a, b in zip(kept[first, 0].tolist(), ends[last].tolist(), strict=True)]


def _fault(what: str, found: int, wanted: int) -> str:
    return f"{what} fails its checksum" if found == wanted else f"{what} is truncated: {found} bytes, wanted {wanted}"


def _layout(record: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return shard and inner chunk shape of the one layout that this reader knows."""
    outer = tuple(record["chunk_grid"]["configuration"]["chunk_shape"])
    (sharding,) = record["codecs"]
    inner = sharding["configuration"]
    found = {
        "node": record["node_type"],
        "grid": record["chunk_grid"]["name"],
        "key": record["chunk_key_encoding"],
        "fill": record["fill_value"],
        "codec": sharding["name"],
        "inner": [codec["name"] for codec in inner["codecs"]],
        "endian": inner["codecs"][0].get("configuration", {"endian": "little"})["endian"],  # absent for bytes
        "index": [codec["name"] for codec in inner["index_codecs"]],
        "location": inner["index_location"],
        "rank": len(outer) == len(inner["chunk_shape"]) == len(record["shape"]),
    }
    wanted = {
        "node": "array",
        "grid": "regular",
        "key": {"name": "default", "configuration": {"separator": "/"}},
        "fill": 0,
        "codec": "sharding_indexed",
        "inner": ["bytes", "blosc", "crc32c"],
        "endian": "little",
        "index": ["bytes", "crc32c"],
        "location": "end",
        "rank": True,
    }
    for key, value in wanted.items():
        if found[key] != value:
            raise ValueError(f"unknown array layout: {key} is {found[key]!r}, wanted {value!r}")
    return outer, tuple(inner["chunk_shape"])
