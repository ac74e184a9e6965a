"""The file that `girih sweep` writes and `girih predict --merging` reads."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from girih.atomic import write_json
from girih.runs import read_json
from girih_detectors.inference import Merging, SweepResult

SCHEMA = "girih-merging"
LOOKED = ("models", "mirror", "overlap")
"""How the boxes were found that the merging suits."""


def check_place(path: Path) -> None:
    """Check that the file may be written: it is named .json, and is not there or was written by `girih sweep`.

    Raises:
        ValueError: it is not so.
    """
    if path.suffix != ".json":
        raise ValueError(f"--out is {path}, wanted the name of a file that ends in .json")
    if path.exists():
        read_json(path, SCHEMA, "where `girih sweep` has been")


def write_merging(path: Path, result: SweepResult, looked: Mapping[str, Any], *, metric: str) -> None:
    """Write the best merging, and what all trials scored.

    Args:
        path: the file.
        result: of the sweep.
        looked: how the boxes were found, see `LOOKED`.
        metric: what the scores are.
    """
    write_json(
        path,
        {
            "schema": f"{SCHEMA}/1",
            "merging": dataclasses.asdict(result.merging),
            "metric": metric,
            "score": _number(result.score),
            "start_score": _number(result.start_score),
            "rows": [{**row, "score": _number(row["score"])} for row in result.rows],
            **{name: looked[name] for name in LOOKED},
        },
    )


def read_merging(path: Path, looked: Mapping[str, Any]) -> tuple[Merging, str | None]:
    """Return the merging in a file, and in words what it was made for if that is another way to look than `looked`.

    Raises:
        ValueError: no such file, or a field of it is missing, unknown or out of range.
    """
    content = read_json(path, SCHEMA, "where `girih sweep` has been")
    found, known = content.get("merging"), [field.name for field in dataclasses.fields(Merging)]
    if not isinstance(found, dict) or set(found) != set(known):
        said = sorted(found) if isinstance(found, dict) else f"a {type(found).__name__}"
        raise ValueError(f"{path}: merging is {said}, wanted an object with {', '.join(known)}")
    try:
        merging = Merging(**found)
    except ValueError as error:
        raise ValueError(f"{path}: merging: {error}") from error
    others = [f"{name} {content.get(name)}, now {looked[name]}" for name in LOOKED if content.get(name) != looked[name]]
    return merging, f"{path} is for {'; '.join(others)}" if others else None


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
