"""Files kept open for positioned reads: the most recently used ones, at most so many."""

import mmap
import os
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

from girih_data3d.errors import StaleCaseError

Stamp = tuple[int, int, int]
"""Number, time of change and size of a file: of a file that takes its place, at least one differs."""
ADVICE = hasattr(os, "posix_fadvise")  # not on macOS


def stamp_of(status: os.stat_result) -> Stamp:
    """Return what tells a file from one that takes its place."""
    return status.st_ino, status.st_mtime_ns, status.st_size


class OpenFile:
    """One file, read at any offset by any thread or forked process; closed when the last user lets go of it."""

    def __init__(self, path: Path, *, mapped: bool) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._map: mmap.mmap | None = None
        self.stamp = stamp_of(os.fstat(self._descriptor))
        self.size = self.stamp[2]
        if mapped and self.size:
            self._map = mmap.mmap(self._descriptor, self.size, prot=mmap.PROT_READ)
        elif ADVICE:  # patches are scattered: the kernel's read-ahead would fetch several times what is used
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def read(self, length: int, offset: int) -> bytes:
        """Return up to `length` bytes from `offset`; fewer at the end of the file."""
        if self._map is not None:
            return self._map[offset : offset + length]
        return os.pread(self._descriptor, length, offset)

    def prefetch(self, ranges: list[tuple[int, int]]) -> None:
        """Ask the kernel to start loading these (offset, length) ranges, all at once."""
        if self._map is None and ADVICE:
            for offset, length in ranges:
                os.posix_fadvise(self._descriptor, offset, length, os.POSIX_FADV_WILLNEED)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            if getattr(self, "_map", None) is not None:
                self._map.close()  # type: ignore[union-attr]  # just checked
            os.close(self._descriptor)


class OpenFiles:
    """The `limit` most recently used files. A pickled copy starts with none; a forked one shares them safely.

    No lock: every step on the dict is atomic (its keys hash and compare without running Python code), and a file that
    another thread pushes out stays open for its readers.

    Args:
        limit: most files to keep open.
        mapped: read through mmap instead of pread. Saves a copy on warm data; a file that is truncated while it is
            mapped kills the process.
    """

    def __init__(self, limit: int = 256, *, mapped: bool = False) -> None:
        self.limit, self.mapped = limit, mapped
        self._files: OrderedDict[tuple[str, Stamp], OpenFile] = OrderedDict()

    def open(self, path: Path, stamp: Stamp) -> OpenFile:
        """Return the file that had this stamp, opened if it is not.

        Raises:
            OSError: it cannot be opened.
            StaleCaseError: another file has taken its place.
        """
        key = (str(path), stamp)
        file = self._files.pop(key, None) or OpenFile(path, mapped=self.mapped)
        if file.stamp != stamp:
            raise StaleCaseError(f"{path}: replaced since it was looked at")
        self._files[key] = file
        while len(self._files) > self.limit:
            with suppress(KeyError):  # other threads may have pushed out all there was
                self._files.popitem(last=False)
        return file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}
