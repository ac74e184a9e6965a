"""Where things lie in a prepared dataset, and the checksums that guard them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import google_crc32c

from girih_data3d.errors import ManifestError

SCHEMA = 1
"""Version of the layout on disk."""


def case_folder(root: Path, case_id: str) -> Path:
    """Return where a case lies: cases/<2 hex digits of its id's SHA-1>/<id>.zarr."""
    spread = hashlib.sha1(case_id.encode(), usedforsecurity=False).hexdigest()[:2]
    return root / "cases" / spread / f"{case_id}.zarr"


def read_dataset_record(root: Path) -> dict[str, Any]:
    """Return the content of root/dataset.json.

    Raises:
        ManifestError: missing, broken, or of another schema.
    """
    path = root / "dataset.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: not a prepared dataset: {error}") from error
    keys = {"schema", "name", "classes", "spec", "spec_hash"}
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or not keys <= set(record):
        raise ManifestError(f"{path}: not a prepared dataset of schema {SCHEMA} with the keys {sorted(keys)}")
    return record


def file_crc32c(path: Path) -> int:
    """Return the CRC-32C of a file's content."""
    crc = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            crc = int(google_crc32c.extend(crc, block))
    return crc


def json_crc32c(content: dict[str, Any]) -> int:
    """Return the CRC-32C of a JSON value in its canonical form (sorted keys, no spaces)."""
    return int(google_crc32c.value(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()))
