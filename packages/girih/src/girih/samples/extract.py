"""Take listed members out of a .tar.gz or .whl, each written aside and renamed, so that a kill leaves no half file."""

from __future__ import annotations

import hashlib
import json
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from girih.atomic import Readable, remove_stale, write_aside, write_json
from girih.samples.pins import Archive

RECORD = "extracted.json"


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
        write_aside(places[name], content, aside=target.parent)
        hashes[name] = sha256(places[name])
    missing = sorted(set(places) - set(hashes))
    if missing:
        raise ValueError(f"{source}: {len(missing)} listed members are not in the archive, the first is {missing[0]!r}")
    record = {"archive_sha256": archive.sha256, "members_sha256": hashes}
    write_json(target / RECORD, record)


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
