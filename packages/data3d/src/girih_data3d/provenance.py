"""What a prepared case was made from, so that a change of it is noticed."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from girih_data3d.case_source import CaseSource
from girih_data3d.errors import ScanError
from girih_data3d.itk import voxel_file
from girih_data3d.scan import ITK_SUFFIXES

QUICK = ("folder", "mtime_ns")
"""What may differ between copies of a file: only says whether to look at it again."""


def origin_of(source: CaseSource, recorded: Any = None, *, hashed: bool = True) -> dict[str, Any]:
    """Return what a prepared case depends on, as plain JSON values: every field of its source.

    A file is {"name", "folder", "size", "mtime_ns", "sha256"}; if all but the hash are as `recorded`, it is not read
    and its recorded hash stands. For a folder, and a header whose voxels lie in another file, size is the sum, times
    are those of all files, and the hash is that of all. A rule is {"name", "values"}: of its class, of its fields.
    With `hashed` False no file is read, and none has a hash.

    Raises:
        ScanError: a file cannot be read.
        ValueError: a rule holds what is neither a plain value nor a path.
    """
    fields = _fields(source)
    del fields["case_id"]
    if source.rule is not None:
        fields["rule"] = {"name": type(source.rule).__name__, "values": _fields(source.rule)}
    origin: dict[str, Any] = _plain(fields, recorded, hashed)
    return origin


def is_origin(source: CaseSource, recorded: Any) -> bool:
    """Return whether a case whose record says `recorded` was made from this source, wherever it was copied to.

    A field of which the record does not speak, for it was written before there was one, has to be None; except for the
    series, which says nothing about the content.
    """
    found = origin_of(source, recorded)
    if isinstance(recorded, dict) and "series_uid" not in recorded:
        del found["series_uid"]
    if isinstance(recorded, dict) and recorded.get("instance_classes") == {} and found["instance_classes"] is None:
        found["instance_classes"] = {}  # once the default
    return bool(_timeless(found) == _timeless(recorded))


def _fields(record: Any) -> dict[str, Any]:
    return {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}


def _plain(value: Any, recorded: Any, hashed: bool) -> Any:
    """Return a value as JSON would give it back, files as their fingerprints; `recorded` is what stood there before."""
    if isinstance(value, Path):
        return _fingerprint(value, recorded if isinstance(recorded, dict) else {}, hashed)
    if dataclasses.is_dataclass(value):
        value = _fields(value)
    if isinstance(value, Mapping):
        known = recorded if isinstance(recorded, dict) else {}
        return {str(key): _plain(value[key], known.get(str(key)), hashed) for key in sorted(value)}
    if isinstance(value, tuple | list):
        beside = recorded if isinstance(recorded, list) and len(recorded) == len(value) else [None] * len(value)
        return [_plain(item, old, hashed) for item, old in zip(value, beside, strict=True)]
    if value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"{value!r} of type {type(value).__name__} cannot be recorded, wanted a plain value or a path")
    return value


def _timeless(value: Any) -> Any:
    """Return a record without what may differ between copies, and without None, which is as good as absent."""
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in QUICK and item is not None}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _fingerprint(path: Path, recorded: dict[str, Any], hashed: bool) -> dict[str, Any]:
    try:
        members = _members(path)
        stats = {file: file.stat() for file in dict.fromkeys([path, *members])}
        quick = {
            "name": path.name,
            "folder": path.parent.name,
            "size": sum(stats[member].st_size for member in members),
            "mtime_ns": [status.st_mtime_ns for status in stats.values()],
        }
        if quick == {key: recorded.get(key) for key in quick}:
            return recorded
        if not hashed:
            return quick
        digest = hashlib.sha256()
        for member in members:
            if len(members) > 1 or member != path:
                digest.update(f"{member.name}\0{stats[member].st_size}\0".encode())
            with member.open("rb") as stream:
                while block := stream.read(1 << 22):
                    digest.update(block)
    except OSError as error:
        raise ScanError(f"{path}: not readable: {error}") from error
    return {**quick, "sha256": digest.hexdigest()}


def _members(path: Path) -> list[Path]:
    """Return the files that a path stands for: itself, those of a folder, or a header and its voxels."""
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.is_file())
    if path.suffix.lower() in ITK_SUFFIXES:
        voxels = voxel_file(path)
        return [path] if voxels == path else [path, voxels]
    return [path]
