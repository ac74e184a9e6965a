"""Prepared cases in any zarr store (HTTP, object stores, memory), checked as strictly as on local disk.

Shards are read by byte ranges: those of all chunks of a patch at once, and a shard's index once per case. zarr-python's
own array would take an object that vanishes between two requests for one that was never written, and give zeros.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import PurePath, PurePosixPath
from typing import Any, TypeVar

from jaxtyping import Shaped
from numpy import ndarray
from zarr.abc.store import ByteRequest, RangeByteRequest, Store
from zarr.buffer import default_buffer_prototype
from zarr.core.sync import sync

from girih_data3d.errors import CorruptCaseError
from girih_data3d.folder import DamageError
from girih_data3d.resampling import Number
from girih_data3d.shard_reader import ShardReader

T = TypeVar("T")
GAP = 1 << 17
"""Bytes between two wanted ranges up to which they are asked for in one request."""


class RemoteFolder:
    """The files below a prefix of a zarr store."""

    def __init__(self, store: Store, key: str) -> None:
        self.store, self.key = store, f"{key}/" if key else ""
        self._sizes: dict[str, int] = {}

    def locate(self, name: str) -> str:
        """Return the full name of a file, for messages."""
        return f"{self.store}/{self.key}{name}"

    def contents(self, names: Collection[str]) -> dict[str, bytes]:
        """Return the content of each file; all are asked for at once.

        Raises:
            DamageError: a file is missing.
        """
        return self._all(names, lambda key: _get(self.store, key))

    def sizes(self, names: Collection[str]) -> dict[str, int]:
        """Return the number of bytes of each file; all are asked for at once.

        Raises:
            DamageError: a file is missing.
        """
        found = self._all(names, self.store.getsize)
        self._sizes |= {self.key + name: size for name, size in found.items()}
        return found

    def array(self, name: str, metadata: dict[str, Any], case_id: str) -> "RemoteReader":
        """Return a reader of an array, whose shards `sizes` was asked about; `metadata` is what its zarr.json holds."""
        return RemoteReader(self.store, self.key + name, metadata, case_id, self._sizes)

    def _all(self, names: Collection[str], ask: Callable[[str], Awaitable[T]]) -> dict[str, T]:
        async def one(name: str) -> T:
            try:
                return await ask(self.key + name)
            except FileNotFoundError as error:
                raise DamageError(self.locate(name), "missing") from error

        async def every() -> list[T]:
            return await asyncio.gather(*(one(name) for name in names))

        return dict(zip(names, sync(every()), strict=True))


class RemoteReader(ShardReader):
    """One sharded zarr array in a zarr store. Pickles if the store does; the copy opens its own connection.

    An object is known by its size only: one of the same size that takes its place after the case was opened is read
    as if it belonged to the case.
    Trouble with the network is raised as the store raises it, damage as CorruptCaseError.
    """

    def __init__(
        self, store: Store, key: str, metadata: dict[str, Any], case_id: str, sizes: Mapping[str, int]
    ) -> None:
        super().__init__(PurePosixPath(key), case_id, _RemoteFiles(store, sizes), metadata)
        self._store = store

    def read_into(
        self, out: Shaped[ndarray, "*window"], start: tuple[int, ...], *, scale: Number = 1, offset: Number = 0
    ) -> None:
        """Fill `out`, of any type, with the window of its shape at `start`: stored value * scale + offset.

        Raises:
            CorruptCaseError: a shard is missing, truncated or fails a checksum.
            ValueError: the window leaves the array.
        """
        try:
            super().read_into(out, start, scale=scale, offset=offset)
        except CorruptCaseError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
                raise cause from None
            raise CorruptCaseError(error.case_id, f"{self._store}/{error.path}", error.reason) from error


class _RemoteFiles:
    """Opens objects of a zarr store as files."""

    def __init__(self, store: Store, sizes: Mapping[str, int]) -> None:
        self._store, self._sizes = store, sizes

    def open(self, path: PurePath) -> "_RemoteFile":
        if str(path) not in self._sizes:
            raise FileNotFoundError(f"{path} is not a file of the case")
        return _RemoteFile(self._store, str(path), self._sizes[str(path)])


class _RemoteFile:
    """An object of a zarr store, of which parts are fetched together before they are read."""

    def __init__(self, store: Store, key: str, size: int) -> None:
        self._store, self._key, self.size = store, key, size
        self._starts: list[int] = []
        self._blocks: list[bytes] = []

    def prefetch(self, ranges: list[tuple[int, int]]) -> None:
        """Fetch these (offset, length) ranges, which rise; near ones in one request, all requests at once."""
        spans: list[list[int]] = []
        for offset, length in ranges:
            if spans and offset - spans[-1][1] <= GAP:
                spans[-1][1] = offset + length
            else:
                spans.append([offset, offset + length])

        async def every() -> list[bytes]:
            return await asyncio.gather(*(self._fetch(*span) for span in spans))

        self._starts, self._blocks = [start for start, _ in spans], sync(every())

    def read(self, length: int, offset: int) -> bytes:
        k = bisect_right(self._starts, offset) - 1
        if k >= 0 and offset < self._starts[k] + len(self._blocks[k]):
            first = offset - self._starts[k]
            return self._blocks[k][first : first + length]
        return sync(self._fetch(offset, offset + length))

    async def _fetch(self, start: int, stop: int) -> bytes:
        try:
            return await _get(self._store, self._key, RangeByteRequest(start, stop))
        except Exception:  # whatever the store's library raises: obstore's errors and fsspec's share no class
            found = await self._store.getsize(self._key)
            if found != self.size:  # servers refuse a range beyond the end in different ways
                raise ValueError(f"{found} bytes, wanted {self.size}") from None
            raise


async def _get(store: Store, key: str, part: ByteRequest | None = None) -> bytes:
    found = await store.get(key, default_buffer_prototype(), part)
    if found is None:
        raise FileNotFoundError(f"{key} is missing")
    return found.to_bytes()
