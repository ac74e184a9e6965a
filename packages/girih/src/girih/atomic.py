"""Write a file aside and rename it, so that a kill at any time leaves the old file, the new one, or none."""

import contextlib
import io
import json
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

PREFIX = ".partial-"
_STALE_SECONDS = 24 * 3600


@runtime_checkable
class Readable(Protocol):
    """An open binary file."""

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes; none at the end."""
        ...


def write_aside(place: Path, content: Readable, *, aside: Path | None = None) -> None:
    """Copy `content` to `place` through a file `.partial-*` in the folder `aside`, by default that of `place`.

    Raises:
        OSError: it cannot be written, for one because the disk is full; `place` is as it was, and named.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    written = (aside or place.parent) / f"{PREFIX}{uuid.uuid4().hex}"
    try:
        with written.open("xb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        written.replace(place)
    except OSError as error:
        if error.errno is None:  # what `content` has to say, not the system
            raise
        raise OSError(error.errno, error.strerror, str(place)) from error
    finally:
        written.unlink(missing_ok=True)


def write_bytes(place: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    write_aside(place, io.BytesIO(content))


def write_text(place: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all."""
    write_bytes(place, text.encode())


def write_json(place: Path, content: Any) -> None:
    """Write JSON whole or not at all.

    Raises:
        ValueError: a number is NaN or infinite, which JSON has not.
    """
    write_text(place, json.dumps(content, indent=1, allow_nan=False) + "\n")


def remove_stale(folder: Path) -> None:
    """Remove what calls that were killed more than a day ago left in `folder`."""
    for left in folder.glob(f"{PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):  # another process tidies up too
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
