"""Check a prepared dataset on local disk without trusting anything in it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, get_args

from girih_data3d.case import Case
from girih_data3d.decoding import check_content
from girih_data3d.errors import CorruptCaseError, ManifestError
from girih_data3d.folder import DamageError, LocalFolder
from girih_data3d.index import CaseIndex, written_index
from girih_data3d.layout import INDEX, RECORD, case_folder, case_key, list_cases, read_dataset_record
from girih_data3d.open_files import OpenFiles
from girih_data3d.pool import worker_pool
from girih_data3d.sealed import NAME, check_bytes
from girih_data3d.store import spec_of

Level = Literal["index", "checksum", "decode"]
Facts = tuple[str, list[str] | None, int]
"""Of a case: its spec's hash, its classes if it is labelled, its checksum."""


@dataclass
class Verification:
    """What `verify` found."""

    ok: list[str] = field(default_factory=list)
    """Case ids, sorted."""
    failed: dict[str, str] = field(default_factory=dict)
    """Case id -> what is wrong; also "dataset.json", "index.zarr", and the paths of strangers among the cases."""


def verify(root: Path | str, *, level: Level = "index", workers: int = 0) -> Verification:
    """Check a prepared dataset; each level includes those before it.

    Args:
        root: its folder.
        level: "index": dataset.json; the index against the folders; each case's record, its metadata files, the size of
            every file, unknown files. "checksum": every byte of every file. "decode": every chunk is decoded,
            intensities are finite, instance labels have the recorded sizes and boxes, foreground voxels their class.
        workers: processes that check cases; 0: this one does.

    Raises:
        ValueError: an unknown level, or a negative number of workers.
    """
    if level not in get_args(Level) or workers < 0:
        raise ValueError(f"level is {level!r}, workers {workers}: wanted {' or '.join(get_args(Level))}; 0 or more")
    root = Path(root)
    result = Verification()
    record, index = None, None
    try:
        found = read_dataset_record(root)
        spec_of(found, str(root))
        record = found
    except ValueError as error:
        result.failed[RECORD] = str(error)
    try:
        index = written_index(root)
        if index is None:
            result.failed[INDEX] = "missing; update_index writes it"
    except ManifestError as error:
        result.failed[INDEX] = str(error)
    present = list_cases(root)
    for stranger in _strangers(root):
        result.failed[stranger] = "not a case of this dataset"
    for case_id, facts in zip(present, _checked(root, present, level, workers), strict=True):
        problem = facts if isinstance(facts, str) else _mismatch(case_id, facts, record, index)
        if problem is None:
            result.ok.append(case_id)
        else:
            result.failed[case_id] = problem
    for case_id in sorted(set(() if index is None else index.case_ids) - set(present)):
        result.failed[case_id] = "in the index, but its folder is gone"
    return result


def _checked(root: Path, case_ids: tuple[str, ...], level: Level, workers: int) -> Iterator[str | Facts]:
    """Check each case by itself, in this process or in others."""
    if not workers:
        yield from map(_check, repeat(root), case_ids, repeat(level))
        return
    with worker_pool(workers) as pool:
        chunk = max(1, min(64, len(case_ids) // (8 * workers)))
        yield from pool.map(_check, repeat(root), case_ids, repeat(level), chunksize=chunk)


def _check(root: Path, case_id: str, level: Level) -> str | Facts:
    """Return what is wrong with a case, or the facts about it."""
    folder = case_folder(root, case_id)
    where = LocalFolder(folder, OpenFiles())
    try:
        case = Case(where, case_id)
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
        unknown = sorted(found - {NAME, *case.files})
        if unknown:
            return f"{folder / unknown[0]}: not a file of this case ({len(unknown)} such files)"
        if level != "index":
            check_bytes(where, case.files)
        if level == "decode":
            check_content(case)
    except DamageError as error:
        return f"{error.path}: {error.reason}"
    except (CorruptCaseError, OSError) as error:
        return str(error)
    return case.spec_hash, None if case.truth is None else case.truth["classes"], case.checksum


def _mismatch(case_id: str, facts: Facts, record: dict[str, Any] | None, index: CaseIndex | None) -> str | None:
    """Return why a sound case does not belong to this dataset."""
    spec_hash, classes, checksum = facts
    if record is not None and spec_hash != record["spec_hash"]:
        return f"prepared with spec {spec_hash}, the dataset's is {record['spec_hash']}"
    if record is not None and classes not in (None, record["classes"]):
        return f"prepared with the classes {classes}, the dataset's are {record['classes']}"
    if index is None:
        return None
    row = index.row(case_id)
    if row is None:
        return "not in the index; update_index adds it"
    if index.checksums[row] != checksum:
        return "prepared again since the index was written; update_index follows"
    return None


def _strangers(root: Path) -> Iterator[str]:
    """Yield the paths of what is among the cases, but is none or lies in the wrong place."""
    folder = root / "cases"
    for spread in sorted(folder.iterdir()) if folder.is_dir() else ():
        for path in sorted(spread.iterdir()) if spread.is_dir() else [spread]:
            name = path.relative_to(root).as_posix()
            if name != case_key(path.name.removesuffix(".zarr")) or not path.is_dir():
                yield name
