"""JSON objects of which every key is known and every value has its type."""

import json
import reprlib
from pathlib import Path
from typing import Any

from girih_data3d.errors import ManifestError


class Checked(dict[str, Any]):
    """A JSON object with exactly the expected keys; null counts as absent."""

    def __init__(self, content: Any, where: str, required: set[str], optional: set[str]) -> None:
        if not isinstance(content, dict):
            raise ManifestError(f"{where}: found {type(content).__name__}, wanted an object")
        for key in content:
            if key not in required | optional:
                raise ManifestError(f"{where}: unknown key {key!r}, known are {sorted(required | optional)}")
        super().__init__({key: value for key, value in content.items() if value is not None})
        for key in sorted(required - set(self)):
            raise ManifestError(f"{where}: key {key!r} is missing")
        self.where = where

    def text(self, key: str) -> str:
        """Return a text that is not empty."""
        if not isinstance(self[key], str) or not self[key]:
            raise self.wrong(key, "text")
        return str(self[key])

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts, none of them empty."""
        if not isinstance(self[key], list) or not all(isinstance(v, str) and v for v in self[key]):
            raise self.wrong(key, "a list of texts")
        return tuple(self[key])

    def wrong(self, key: str, wanted: str) -> ManifestError:
        """Return the error that names a key, its value and what was wanted."""
        return ManifestError(f"{self.where}: {key} is {reprlib.repr(self[key])}, wanted {wanted}")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        ManifestError: unreadable, not JSON, nested too deeply, or an object with a key twice.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_each_key_once)
    except (OSError, ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: not a readable {path.name}: {error}") from error


def is_whole(value: Any, low: int, high: int = 2**31 - 1) -> bool:
    """Return whether a JSON value is a whole number in low..high."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} is given twice")
    return content
