"""Take listed members out of a .tar.gz or .whl, each written aside and renamed, so that a kill leaves no half file."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import stat
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

from girih.samples.pins import Archive

RECORD = "extracted.json"
_STALE_SECONDS = 24 * 3600


@runtime_checkable
class Readable(Protocol):
    """An open binary file."""

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes; none at the end."""
        ...


def extract(archive: Archive, source: Path, target: Path) -> None:
    """Bring the members of `archive` below `target` to their full and true content.

    `source` is the archive's file, already compared with its pin. A member `a/b` becomes `target/a/b`. Nothing is
    done if all are there and hash as when they were extracted: `target/extracted.json`, written last, says how.

    Raises:
        ValueError: a listed member is missing, doubled, a link or another special entry, or would leave `target`.
    """
    if is_extracted(archive, target):
        return
    places = {name: _inside(target, name) for name in archive.members}
    target.mkdir(parents=True, exist_ok=True)
    remove_stale(target.parent)
    hashes: dict[str, str] = {}
    opened = _tar_members(source) if archive.is_source else _zip_members(source)
    for name, content in opened:
        if name not in places:
            continue
        if name in hashes:
            raise ValueError(f"{source}: member {name!r} is there twice")
        if content is None:
            raise ValueError(f"{source}: member {name!r} is a link or a special file, wanted a regular file")
        hashes[name] = _write_aside(content, target.parent, places[name])
    missing = sorted(set(places) - set(hashes))
    if missing:
        raise ValueError(f"{source}: {len(missing)} listed members are not in the archive, the first is {missing[0]!r}")
    record = {"archive_sha256": archive.sha256, "members_sha256": hashes}
    _write_aside(io.BytesIO(json.dumps(record, indent=1).encode()), target.parent, target / RECORD)


def is_extracted(archive: Archive, target: Path) -> bool:
    """Return whether all members lie below `target` with the content they had when they were extracted."""
    try:
        record = json.loads((target / RECORD).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    if record["archive_sha256"] != archive.sha256:
        return False
    hashes = record["members_sha256"]
    return set(hashes) == set(archive.members) and all(
        (target / name).is_file() and sha256(target / name) == digest for name, digest in hashes.items()
    )


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_stale(folder: Path) -> None:
    """Remove what calls that were killed more than a day ago left in `folder`."""
    for left in folder.glob(".partial-*"):
        with contextlib.suppress(FileNotFoundError):  # another process tidies up too
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _inside(target: Path, name: str) -> Path:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0]:
        raise ValueError(f"member {name!r} would be written outside of {target}")
    return target / path


def _tar_members(source: Path) -> Iterator[tuple[str, Readable | None]]:
    with tarfile.open(source, "r:gz") as tar:
        for member in tar:
            yield _without_first_folder(member.name), tar.extractfile(member) if member.isreg() else None


def _zip_members(source: Path) -> Iterator[tuple[str, Readable | None]]:
    with zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            regular = not member.is_dir() and kind in (0, stat.S_IFREG)  # 0: written on a system without file modes
            if regular:
                with archive.open(member) as content:
                    yield _without_first_folder(member.filename), content
            else:
                yield _without_first_folder(member.filename), None


def _without_first_folder(name: str) -> str:
    return name.partition("/")[2]


def _write_aside(content: Readable, aside: Path, place: Path) -> str:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=aside, prefix=".partial-", delete=False) as file:
        written = Path(file.name)
    try:
        with written.open("wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        digest = sha256(written)
        written.chmod(0o644)  # temporary files are private; a cache may be shared
        written.replace(place)
    finally:
        written.unlink(missing_ok=True)
    return digest
