"""Where the files of one prepared case, or of the index, lie: a folder on local disk, or a prefix in a zarr store."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from girih_data3d.open_files import OpenFiles
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
        """Return a reader of a zarr array; `metadata` is the content of its zarr.json, checked."""


class LocalFolder:
    """A folder on local disk; its arrays are read through `files`."""

    def __init__(self, path: Path, files: OpenFiles) -> None:
        self.path, self.files = path, files

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
            return {name: (self.path / name).stat().st_size for name in names}
        except OSError as error:
            raise DamageError(str(error.filename), f"not readable: {error}") from error

    def array(self, name: str, metadata: dict[str, Any], case_id: str) -> ShardReader:
        """Return a reader of an array; `metadata` is the content of its zarr.json."""
        return ShardReader(self.path / name, case_id, self.files, record=metadata)
