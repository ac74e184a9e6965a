"""Where things lie in a prepared dataset, and the record that describes it."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from girih_data3d.checksum import own_checksum
from girih_data3d.errors import ManifestError

SCHEMA = 1
"""Version of the layout on disk."""
RECORD = "dataset.json"
INDEX = "index.zarr"
"""Both in the dataset's root."""


def case_key(case_id: str) -> str:
    """Return where a case lies below the root: cases/<2 hex digits of its id's SHA-1>/<id>.zarr."""
    spread = hashlib.sha1(case_id.encode(), usedforsecurity=False).hexdigest()[:2]
    return f"cases/{spread}/{case_id}.zarr"


def case_folder(root: Path, case_id: str) -> Path:
    """Return the folder of a case on local disk."""
    return root / case_key(case_id)


def list_cases(root: Path) -> tuple[str, ...]:
    """Return the ids of the cases on local disk, sorted; nothing is opened."""
    found: set[str] = set()
    folder = root / "cases"
    for spread in os.scandir(folder) if folder.is_dir() else ():
        if spread.is_dir():
            names = (case.name for case in os.scandir(spread.path))
            found |= {name.removesuffix(".zarr") for name in names if name.endswith(".zarr")}
    return tuple(sorted(found))


def parse_dataset_record(content: bytes, where: str) -> dict[str, Any]:
    """Return the content of a dataset.json.

    Raises:
        ManifestError: damaged, or of another schema.
    """
    if b'"cases"' in content and b'"spec_hash"' not in content:
        raise ManifestError(
            f"{where}: describes scans to prepare, wanted the folder of a prepared dataset; prepare them"
        )
    try:
        own_checksum(content)
        record = json.loads(content)
    except ValueError as error:
        remedy = "remove it, and prepare again what is in this folder: that writes it anew"
        raise ManifestError(f"{where}: not a prepared dataset, or damaged: {error}; {remedy}") from error
    keys = {"schema", "name", "classes", "spec", "spec_hash"}
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or not keys <= set(record):
        raise ManifestError(f"{where}: not a prepared dataset of schema {SCHEMA} with the keys {sorted(keys)}")
    return record


def read_dataset_record(root: Path) -> dict[str, Any]:
    """Return the content of root/dataset.json.

    Raises:
        ManifestError: missing, damaged, or of another schema.
    """
    path = root / RECORD
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: not a prepared dataset: {error}") from error
    return parse_dataset_record(content, str(path))
