"""Prepared cases in any zarr store (HTTP, object stores, memory): through zarr-python, and checked as on local disk."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar

import numpy as np
import zarr
from jaxtyping import Shaped
from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.buffer import default_buffer_prototype
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.metadata import ArrayV3Metadata
from zarr.core.sync import sync
from zarr.storage import StorePath, WrapperStore

from girih_data3d.errors import CorruptCaseError
from girih_data3d.folder import DamageError
from girih_data3d.resampling import Number

T = TypeVar("T")


class RemoteFolder:
    """The files below a prefix of a zarr store."""

    def __init__(self, store: Store, key: str) -> None:
        self.store, self.key = store, f"{key}/" if key else ""

    def locate(self, name: str) -> str:
        """Return the full name of a file, for messages."""
        return f"{self.store}/{self.key}{name}"

    def contents(self, names: Collection[str]) -> dict[str, bytes]:
        """Return the content of each file; all are asked for at once.

        Raises:
            DamageError: a file is missing.
        """

        async def content(key: str) -> bytes:
            found = await self.store.get(key, default_buffer_prototype())
            if found is None:
                raise FileNotFoundError(key)
            return found.to_bytes()

        return self._all(names, content)

    def sizes(self, names: Collection[str]) -> dict[str, int]:
        """Return the number of bytes of each file; all are asked for at once.

        Raises:
            DamageError: a file is missing.
        """
        return self._all(names, self.store.getsize)

    def array(self, name: str, metadata: dict[str, Any], case_id: str) -> "RemoteReader":
        """Return a reader of an array; `metadata` is the content of its zarr.json."""
        return RemoteReader(self.store, self.key + name, metadata, case_id)

    def _all(self, names: Collection[str], ask: Callable[[str], Awaitable[T]]) -> dict[str, T]:
        async def one(name: str) -> T:
            try:
                return await ask(self.key + name)
            except FileNotFoundError as error:
                raise DamageError(self.locate(name), "missing") from error

        async def every() -> list[T]:
            return await asyncio.gather(*(one(name) for name in names))

        return dict(zip(names, sync(every()), strict=True))


class RemoteReader:
    """One sharded zarr array in a zarr store.

    Pickles if the store does; the copy opens its own connection. Trouble with the network is raised as the store
    raises it, damage as CorruptCaseError.
    """

    def __init__(self, store: Store, key: str, metadata: dict[str, Any], case_id: str) -> None:
        self.case_id, self.path = case_id, f"{store}/{key}"
        self.shape: tuple[int, ...] = tuple(metadata["shape"])
        self.dtype: np.dtype[Any] = np.dtype(metadata["data_type"]).newbyteorder("<")
        self._store, self._key, self._metadata = store, key, metadata
        self._array: zarr.Array[Any] | None = None

    def read_into(
        self, out: Shaped[np.ndarray, "*window"], start: tuple[int, ...], *, scale: Number = 1, offset: Number = 0
    ) -> None:
        """Fill `out`, of any type, with the window of its shape at `start`: value * scale + offset.

        Raises:
            CorruptCaseError: a shard is missing, truncated or fails a checksum.
            ValueError: the window leaves the array.
        """
        if any(a < 0 or n < 1 or a + n > end for a, n, end in zip(start, out.shape, self.shape, strict=True)):
            raise ValueError(f"{self.path}: window {out.shape} at {start} leaves the array of shape {self.shape}")
        if self._array is None:
            store = StorePath(_Complete(self._store), self._key)
            self._array = zarr.Array(zarr.AsyncArray(ArrayV3Metadata.from_dict(self._metadata), store))
        try:
            out[...] = self._array[tuple(slice(a, a + n) for a, n in zip(start, out.shape, strict=True))]
        except (ValueError, RuntimeError) as error:  # a checksum, or what blosc says
            raise CorruptCaseError(self.case_id, self.path, f"not readable: {error}") from error
        if scale != 1:
            out *= out.dtype.type(scale)
        if offset != 0:
            out += out.dtype.type(offset)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}


class _Complete(WrapperStore[Store]):
    """A store in which nothing is missing: zarr would take a missing or short object for one that was never written."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        found = await self._store.get(key, prototype, byte_range)
        if found is None:
            raise ValueError(f"{key} is missing")
        wanted = len(found)
        if isinstance(byte_range, RangeByteRequest):
            wanted = byte_range.end - byte_range.start
        elif isinstance(byte_range, SuffixByteRequest):
            wanted = byte_range.suffix
        if len(found) != wanted:
            raise ValueError(f"{key} is truncated: {len(found)} bytes, wanted {wanted}")
        return found
