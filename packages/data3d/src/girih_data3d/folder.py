"""Where the files of one prepared case, or of the index, lie: a folder on local disk, or a prefix in a zarr store."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from girih_data3d.open_files import OpenFile, OpenFiles, Stamp, stamp_of
from girih_data3d.shard_reader import ShardReader
from girih_data3d.window import Reader


class DamageError(ValueError):
    """A file is missing or has changed; callers say which case or dataset it belongs to."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason


@runtime_checkable
class Folder(Protocol):
    """Files by their names relative to the folder."""

    def locate(self, name: str) -> str:
        """Return the full name of a file, for messages."""

    def contents(self, names: Collection[str]) -> dict[str, bytes]:
        """Return the content of each file, or raise DamageError for one that cannot be read."""

    def sizes(self, names: Collection[str]) -> dict[str, int]:
        """Return the number of bytes of each file, or raise DamageError for one that is missing."""

    def array(self, name: str, metadata: dict[str, Any], case_id: str) -> Reader:
        """Return a reader of an array, whose shards `sizes` was asked about; `metadata` is what its zarr.json holds."""


class LocalFolder:
    """A folder on local disk; its arrays are read through `files`, and only from the files that `sizes` has seen."""

    def __init__(self, path: Path, files: OpenFiles) -> None:
        self.path, self.files = path, files
        self._stamps: dict[Path, Stamp] = {}

    def locate(self, name: str) -> str:
        """Return the full name of a file, for messages."""
        return str(self.path / name)

    def contents(self, names: Collection[str]) -> dict[str, bytes]:
        """Return the content of each file.

        Raises:
            DamageError: a file cannot be read.
        """
        try:
            return {name: (self.path / name).read_bytes() for name in names}
        except OSError as error:
            raise DamageError(str(error.filename), f"not readable: {error}") from error

    def sizes(self, names: Collection[str]) -> dict[str, int]:
        """Return the number of bytes of each file.

        Raises:
            DamageError: a file is missing.
        """
        try:
            found = {name: (self.path / name).stat() for name in names}
        except OSError as error:
            raise DamageError(str(error.filename), f"not readable: {error}") from error
        self._stamps |= {self.path / name: stamp_of(status) for name, status in found.items()}
        return {name: status.st_size for name, status in found.items()}

    def array(self, name: str, metadata: dict[str, Any], case_id: str) -> ShardReader:
        """Return a reader of an array, whose shards `sizes` was asked about; `metadata` is what its zarr.json holds."""
        return ShardReader(self.path / name, case_id, _SeenFiles(self.files, self._stamps), metadata)


class _SeenFiles:
    """Opens files that have not been replaced since they were seen."""

    def __init__(self, files: OpenFiles, stamps: Mapping[Path, Stamp]) -> None:
        self._files, self._stamps = files, stamps

    def open(self, path: Path) -> OpenFile:
        if path not in self._stamps:
            raise FileNotFoundError(f"{path} is not a file of the case")
        return self._files.open(path, self._stamps[path])
