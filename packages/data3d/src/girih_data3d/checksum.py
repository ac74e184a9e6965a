"""CRC-32C, and JSON texts that hold their own: eight hex digits, taken with zeros in their place."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c

MARK = b'"checksum": "'
DIGITS = 8
BLANK = "0" * DIGITS
"""Stands as "checksum", the last of that name, in a record that `checked_text` is given."""


def checked_text(record: Mapping[str, Any], *, indent: int | None = None) -> bytes:
    """Return a record as JSON, its checksum filled in.

    Raises:
        ValueError: a value that is not finite.
    """
    blank = json.dumps(record, allow_nan=False, indent=indent).encode()
    head, mark, tail = blank.rpartition(MARK)
    return head + mark + f"{crc32c(blank):08x}".encode() + tail[DIGITS:]


def own_checksum(content: bytes) -> int:
    """Return the checksum that a text holds.

    Raises:
        ValueError: it holds none, or that of another text.
    """
    head, mark, tail = content.rpartition(MARK)
    if not mark:
        raise ValueError("holds no checksum")
    if f"{crc32c(head + mark + BLANK.encode() + tail[DIGITS:]):08x}".encode() != tail[:DIGITS]:
        raise ValueError("fails its checksum")
    return int(tail[:DIGITS], 16)


def crc32c(content: bytes) -> int:
    """Return the CRC-32C of bytes."""
    return int(google_crc32c.value(content))


def file_crc32c(path: Path) -> int:
    """Return the CRC-32C of a file's content."""
    crc = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            crc = int(google_crc32c.extend(crc, block))
    return crc
