"""Read windows of a one-shard zarr array straight from its file: look up, read, check and unpack the touched chunks.

The layout is zarr v3's `sharding_indexed` codec: compressed inner chunks, then an index of (offset, length) pairs and
its CRC-32C at the end of the file; every inner chunk ends with its own CRC-32C.
"""

import itertools
import json
import math
import operator
import os
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs.blosc
import numpy as np
from jaxtyping import Shaped

from girih_data3d.errors import CorruptCaseError

numcodecs.blosc.use_threads = False  # as zarr itself sets: blosc's own thread pool does not survive a fork

EMPTY = 2**64 - 1
CRC_BYTES = 4


class ShardReader:
    """One zarr v3 array on local disk that lies in one shard.

    The file is opened at the first read; a copy made by fork or pickle reads on its own. Attributes: `shape`, `dtype`,
    `attributes` (the array's own).

    Raises:
        CorruptCaseError: on opening or reading: a missing or short file, a checksum that fails, an unknown layout.
    """

    def __init__(self, folder: Path, case_id: str) -> None:
        self.folder, self.case_id = folder, case_id
        try:
            record = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
            sharding, chunk = _layout(record)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise CorruptCaseError(case_id, str(folder / "zarr.json"), f"{type(error).__name__}: {error}") from error
        self.shape: tuple[int, ...] = tuple(record["shape"])
        self.dtype: np.dtype[Any] = np.dtype(record["data_type"]).newbyteorder("<")
        self.attributes: dict[str, Any] = record["attributes"]
        self.chunk = chunk
        self.path = folder.joinpath("c", *("0" for _ in self.shape))
        self._grid = tuple(outer // inner for outer, inner in zip(sharding, chunk, strict=True))
        self._handle: int | None = None
        self._index: np.ndarray | None = None

    def read(self, start: tuple[int, ...], size: tuple[int, ...]) -> Shaped[np.ndarray, "*size"]:
        """Return the window of `size` voxels at `start`, as stored; it has to lie inside the array.

        Raises:
            ValueError: the window leaves the array.
        """
        if any(a < 0 or n < 1 or a + n > end for a, n, end in zip(start, size, self.shape, strict=True)):
            raise ValueError(f"{self.folder}: window {size} at {start} leaves the array of shape {self.shape}")
        handle, index = self._open()
        out = np.empty(size, self.dtype)
        scratch = np.empty(self.chunk, self.dtype)
        stop = tuple(a + n for a, n in zip(start, size, strict=True))
        touched = [range(a // c, -(-b // c)) for a, b, c in zip(start, stop, self.chunk, strict=True)]
        for where in itertools.product(*touched):
            self._unpack(handle, index[where], scratch)
            into, taken = [], []
            for i, c, a, b in zip(where, self.chunk, start, stop, strict=True):
                low, high = max(i * c, a), min((i + 1) * c, b)
                into.append(slice(low - a, high - a))
                taken.append(slice(low - i * c, high - i * c))
            out[tuple(into)] = scratch[tuple(taken)]
        return out

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    def _open(self) -> tuple[int, np.ndarray]:
        try:
            if self._handle is None:
                self._handle = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            if self._index is None:
                entries = math.prod(self._grid) * 16
                end = os.fstat(self._handle).st_size
                content = os.pread(self._handle, entries + CRC_BYTES, max(0, end - entries - CRC_BYTES))
                self._index = np.frombuffer(self._checked(content, entries, "index"), "<u8").reshape(*self._grid, 2)
        except OSError as error:
            raise CorruptCaseError(self.case_id, str(self.path), f"not readable: {error}") from error
        return self._handle, self._index

    def _unpack(self, handle: int, entry: np.ndarray, scratch: np.ndarray) -> None:
        """Read one inner chunk into `scratch`."""
        offset, length = int(entry[0]), int(entry[1])
        if offset == EMPTY and length == EMPTY:
            scratch[...] = 0  # zarr leaves out chunks that hold nothing but the fill value
            return
        try:
            packed = self._checked(os.pread(handle, length, offset), length - CRC_BYTES, f"chunk at byte {offset}")
            numcodecs.blosc.decompress(packed, scratch)
        except (OSError, OverflowError, RuntimeError, ValueError) as error:
            if isinstance(error, CorruptCaseError):
                raise
            raise CorruptCaseError(self.case_id, str(self.path), f"chunk at byte {offset}: {error}") from error

    def _checked(self, content: bytes, length: int, what: str) -> bytes:
        """Return `content` without its checksum, after checking it."""
        if len(content) != length + CRC_BYTES:
            found = f"{len(content)} bytes, wanted {length + CRC_BYTES}"
            raise CorruptCaseError(self.case_id, str(self.path), f"{what} is truncated: {found}")
        body, crc = content[:length], int.from_bytes(content[length:], "little")
        if google_crc32c.value(body) != crc:
            raise CorruptCaseError(self.case_id, str(self.path), f"{what} fails its checksum")
        return body


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
        "one_shard": len(outer) == len(record["shape"]) and all(map(operator.le, record["shape"], outer)),
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
        "one_shard": True,
    }
    for key, value in wanted.items():
        if found[key] != value:
            raise ValueError(f"unknown array layout: {key} is {found[key]!r}, wanted {value!r}")
    return outer, tuple(inner["chunk_shape"])
