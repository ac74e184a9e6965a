"""JSON for people: a list of numbers or words stays on one line, so that two files compare line by line."""

import json
from collections.abc import Mapping
from typing import Any

WIDTH = 120
"""Longest line of an object or a list of lists that is not broken up."""


def plain(value: Any) -> Any:
    """Return a value as JSON gives it back: tuples as lists, mappings as dictionaries."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def readable_json(value: Any, indent: str = "") -> str:
    """Return a value as JSON, its keys in their order.

    Raises:
        ValueError: a number that is not finite.
    """
    flat = json.dumps(value, allow_nan=False, ensure_ascii=False)
    nested = isinstance(value, dict) or (isinstance(value, list | tuple) and any(map(_is_container, value)))
    if not nested or not value or (isinstance(value, dict) and indent and len(indent + flat) <= WIDTH):
        return flat
    deeper = indent + " "
    if isinstance(value, dict):
        lines = [f"{json.dumps(key, ensure_ascii=False)}: {readable_json(item, deeper)}" for key, item in value.items()]
        left, right = "{", "}"
    else:
        lines = [readable_json(item, deeper) for item in value]
        left, right = "[", "]"
    inside = f",\n{deeper}".join(lines)
    return f"{left}\n{deeper}{inside}\n{indent}{right}"


def _is_container(value: Any) -> bool:
    return isinstance(value, dict | list | tuple)
