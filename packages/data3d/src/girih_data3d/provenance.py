"""What a prepared case was made from, so that a change of it is noticed."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from girih_data3d.errors import ScanError
from girih_data3d.itk import voxel_file
from girih_data3d.manifest import CaseSource
from girih_data3d.scan import ITK_SUFFIXES

QUICK = ("folder", "mtime_ns")
"""What may differ between copies of a file: only says whether to look at it again."""


def origin_of(source: CaseSource, recorded: Any = None) -> dict[str, Any]:
    """Return what a prepared case depends on, as plain JSON values: every field of its source.

    A file is {"name", "folder", "size", "mtime_ns", "sha256"}; if all but the hash are as `recorded`, it is not read
    and its recorded hash stands. For a folder, and a header whose voxels lie in another file, size is the sum, times
    are those of all files, and the hash is that of all.

    Raises:
        ScanError: a file cannot be read.
    """
    fields = {f.name: getattr(source, f.name) for f in dataclasses.fields(source) if f.name != "case_id"}
    origin: dict[str, Any] = _plain(fields, recorded)
    return origin


def is_origin(source: CaseSource, recorded: Any) -> bool:
    """Return whether a case whose record says `recorded` was made from this source, wherever it was copied to."""
    return bool(_timeless(origin_of(source, recorded)) == _timeless(recorded))


def _plain(value: Any, recorded: Any) -> Any:
    """Return a value as JSON would give it back, files as their fingerprints; `recorded` is what stood there before."""
    if isinstance(value, Path):
        return _fingerprint(value, recorded if isinstance(recorded, dict) else {})
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        known = recorded if isinstance(recorded, dict) else {}
        return {str(key): _plain(value[key], known.get(str(key))) for key in sorted(value)}
    if isinstance(value, tuple | list):
        beside = recorded if isinstance(recorded, list) and len(recorded) == len(value) else [None] * len(value)
        return [_plain(item, old) for item, old in zip(value, beside, strict=True)]
    return value


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in QUICK}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _fingerprint(path: Path, recorded: dict[str, Any]) -> dict[str, Any]:
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
