"""Tables of public datasets: columns under several spellings, rows that know where they stand."""

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from girih_data3d.errors import ManifestError

Columns = Mapping[str, Sequence[str]]
"""Name of a column in the program -> other spellings; case, spaces, dashes and underscores never count."""

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
"""A narrower idea than Python's, to which 1_0 is ten."""


@dataclass(frozen=True)
class Row:
    """One row: `row["label_id"]` is its text without spaces around it, "" where the table lacks an optional column."""

    where: str
    """File and row, as counted by a spreadsheet: the header is row 1."""
    values: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.values.get(column, "")

    def text(self, column: str) -> str:
        """Return a text that is not empty."""
        return self[column] or self._refuse(column, "a text")

    def whole(self, column: str, low: int = -(2**31), high: int = 2**31 - 1) -> int:
        """Return a whole number in low..high; "3.0" is one."""
        value = self.number(column)
        if value != int(value) or not low <= value <= high:
            self._refuse(column, f"a whole number from {low} to {high}")
        return int(value)

    def number(self, column: str) -> float:
        """Return a finite number."""
        value = float(self[column]) if NUMBER.fullmatch(self[column]) else math.nan
        if not math.isfinite(value):
            self._refuse(column, "a finite number")
        return value

    def _refuse(self, column: str, wanted: str) -> str:
        raise ManifestError(f"{self.where}: {column} is {self[column]!r}, wanted {wanted}")


def read_csv(path: Path, required: Columns, optional: Columns | None = None) -> list[Row]:
    """Return the rows of a CSV file (UTF-8, with or without byte order mark; comma, semicolon or tab).

    Raises:
        ManifestError: unreadable; or as `rows_of`.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: not a readable CSV file in UTF-8: {error}") from error
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    try:
        return list(rows_of(path, csv.reader(io.StringIO(text), delimiter=delimiter), required, optional))
    except csv.Error as error:
        raise ManifestError(f"{path}: not a readable CSV file: {error}") from error


def rows_of(
    path: Path, lines: Iterable[Sequence[Any]], required: Columns, optional: Columns | None = None
) -> Iterator[Row]:
    """Yield the rows below a header line; cells are texts, numbers or None, empty lines are passed over.

    A row that ends early has empty cells there.

    Raises:
        ManifestError: no header, a required column under no known spelling, a column twice, or a cell that is not empty
            beyond the header's last.
    """
    numbered = enumerate(([_text(cell) for cell in line] for line in lines), start=1)
    header = next(((number, line) for number, line in numbered if any(line)), None)
    if header is None:
        raise ManifestError(f"{path}: empty, wanted a header with {', '.join(required)}")
    places = _places(path, header[1], required, optional or {})
    for number, line in numbered:
        if not any(line):
            continue
        if any(line[len(header[1]) :]):
            raise ManifestError(f"{path}: row {number} has {len(line)} cells, the header has {len(header[1])}")
        line += [""] * (len(header[1]) - len(line))
        yield Row(f"{path}: row {number}", {name: line[place] for name, place in places.items()})


def _places(path: Path, header: Sequence[str], required: Columns, optional: Columns) -> dict[str, int]:
    spelt = [_letters(cell) for cell in header]
    places = {}
    for name, spellings in (*required.items(), *optional.items()):
        known = {_letters(spelling) for spelling in (name, *spellings)}
        found = [place for place, cell in enumerate(spelt) if cell in known]
        if len(found) > 1:
            raise ManifestError(f"{path}: column {name} is there {len(found)} times: {list(header)}")
        if found:
            places[name] = found[0]
        elif name in required:
            others = f" (or {', '.join(spellings)})" if spellings else ""
            raise ManifestError(f"{path}: no column {name}{others}, found {list(header)}")
    return places


def _letters(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def _text(cell: Any) -> str:
    return "" if cell is None else str(cell).strip()
