"""What a prepared case was made from, so that a change of it is noticed."""

import hashlib
import json
from pathlib import Path
from typing import Any

from girih_data3d.errors import ScanError
from girih_data3d.manifest import CaseSource


def origin_of(source: CaseSource) -> dict[str, Any]:
    """Return what a prepared case depends on: the files' names, sizes and hashes, and the annotations."""
    files: dict[str, list[Path | None]] = {
        "images": list(source.images),
        "instances": [source.instances],
        "semantic": [source.semantic],
    }
    return {
        **{role: [_fingerprint(p) for p in paths if p is not None] for role, paths in files.items()},
        "instance_classes": {str(k): source.instance_classes[k] for k in sorted(source.instance_classes)},
        "ignore": sorted(source.ignore),
        "patient_id": source.patient_id,
        "modality": source.modality,
    }


def recorded_origin(folder: Path) -> tuple[str | None, Any]:
    """Return spec hash and source of a case on disk; (None, None) when it cannot be told."""
    try:
        record = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))["attributes"]["girih"]
        return record["spec_hash"], record["source"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


def _fingerprint(path: Path) -> dict[str, Any]:
    """Return name, size and SHA-256 of a file, or of all files of a folder in the order of their names."""
    digest, size = hashlib.sha256(), 0
    try:
        members = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
        for member in members:
            if path.is_dir():
                digest.update(f"{member.name}\0{member.stat().st_size}\0".encode())
            with member.open("rb") as stream:
                while block := stream.read(1 << 22):
                    digest.update(block)
                    size += len(block)
    except OSError as error:
        raise ScanError(f"{path}: not readable: {error}") from error
    return {"name": path.name, "size": size, "sha256": digest.hexdigest()}
