"""Write a file aside and rename it, so that a kill at any time leaves the old file, the new one, or none."""

import contextlib
import io
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

_STALE_SECONDS = 24 * 3600


@runtime_checkable
class Readable(Protocol):
    """An open binary file."""

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes; none at the end."""
        ...


def write_aside(content: Readable, place: Path, *, aside: Path | None = None) -> None:
    """Copy `content` to `place` through a file `.partial-*` in the folder `aside`, by default that of `place`."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=aside or place.parent, prefix=".partial-", delete=False) as file:
        written = Path(file.name)
    try:
        with written.open("wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        written.chmod(0o644)  # temporary files are private; a cache may be shared
        written.replace(place)
    finally:
        written.unlink(missing_ok=True)


def write_json(content: Any, place: Path) -> None:
    """Write `content` as indented JSON, aside and renamed. Not-a-number is refused."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_aside(io.BytesIO(text.encode()), place)


def remove_stale(folder: Path) -> None:
    """Remove what calls that were killed more than a day ago left in `folder`."""
    for left in folder.glob(".partial-*"):
        with contextlib.suppress(FileNotFoundError):  # another process tidies up too
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
