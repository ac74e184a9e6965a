"""Checks that all formats share when names and tables become the cases of a dataset."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from girih_data3d.case_source import CaseSource, Dataset
from girih_data3d.errors import ManifestError


def make_source(where: str, case_id: str, images: tuple[Path, ...], **fields: Any) -> CaseSource:
    """Return a case; `where` (a file, or file and row) begins the message if it cannot be.

    Paint "none", as options spell it, is no paint.

    Raises:
        ManifestError: an id that cannot name a folder, or fields that contradict each other.
    """
    if fields.get("paint") == "none":
        fields["paint"] = None
    try:
        return CaseSource(case_id, images, **fields)
    except ValueError as error:
        raise ManifestError(f"{where}: {error}") from error


def make_dataset(
    where: Path, name: str, classes: Iterable[str], sources: Iterable[CaseSource], passed_over: Iterable[str] = ()
) -> Dataset:
    """Return a dataset of at least one case, every case and class once.

    `passed_over` has an entry for each thing in the folder that could be a case, or part of one, and is in none: its
    name, a colon, and why.

    Raises:
        ManifestError: no case, a case id twice (letters' case does not count: some file systems ignore it), or a class
            twice.
    """
    try:
        dataset = Dataset(name, tuple(classes), tuple(sources), tuple(passed_over))
    except ValueError as error:
        raise ManifestError(f"{where}: {error}") from error
    if not dataset.sources:
        raise ManifestError(f"{where}: no case of {name} in it")
    if len(set(dataset.classes)) != len(dataset.classes):
        raise ManifestError(f"{where}: a class is given twice: {list(dataset.classes)}")
    return dataset


def refuse_missing(where: Path, what: str, missing: Mapping[str, str]) -> None:
    """Refuse files of pairs whose other file is missing.

    Args:
        where: the folder in which they should lie.
        what: what each of them is, such as "label".
        missing: case id -> name of the file.

    Raises:
        ManifestError: some are missing; the message names the first and their number.
    """
    if missing:
        case_id, name = next(iter(missing.items()))
        raise ManifestError(f"{where / name}: no such file, the {what} of case {case_id!r} ({len(missing)} such cases)")
