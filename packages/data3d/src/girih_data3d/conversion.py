"""Prepare cases into a dataset on disk: per-case atomic, resumable, with a report of what happened."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from girih_data3d.atomic import remove_abandoned, written_aside
from girih_data3d.case_preparation import prepare_case
from girih_data3d.errors import StaleCaseError
from girih_data3d.layout import SCHEMA, read_dataset_record
from girih_data3d.manifest import CaseSource, Dataset
from girih_data3d.spec import PrepareSpec

Outcome = Literal["done", "skipped", "failed"]


@dataclass
class Report:
    """What `prepare_many` did; case ids in the dataset's order."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Present already, from the same files and the same spec."""
    failed: dict[str, str] = field(default_factory=dict)
    """Case id -> reason."""


def prepare_many(
    dataset: Dataset,
    root: Path | str,
    spec: PrepareSpec,
    *,
    executor: Executor | None = None,
    overwrite: bool = False,
    on_progress: Callable[[str, Outcome], None] | None = None,
) -> Report:
    """Prepare every case of a dataset; run again after an interruption, it goes on where it stopped.

    Args:
        dataset: from `read_manifest`.
        root: folder of the prepared dataset; made if absent.
        spec: how to prepare.
        executor: runs `prepare_case` (a process pool, a Dask client's executor); None: here, one after the other.
        overwrite: replace cases that were made from other files or with another spec.
        on_progress: called with (case id, outcome) after each case.

    Returns:
        What was done; a case that cannot be read does not stop the others, it is in `failed` with the reason.

    Raises:
        StaleCaseError: `root` holds a dataset of another name, classes or spec, and not `overwrite`.
    """
    root = Path(root)
    _write_dataset(dataset, root, spec, overwrite)
    remove_abandoned(root)
    outcomes: dict[str, tuple[Outcome, str]] = {}
    for case_id, outcome, reason in _outcomes(dataset, root, spec, executor, overwrite):
        outcomes[case_id] = (outcome, reason)
        if on_progress is not None:
            on_progress(case_id, outcome)
    report = Report()
    for source in dataset.sources:
        outcome, reason = outcomes[source.case_id]
        if outcome == "failed":
            report.failed[source.case_id] = reason
        else:
            (report.done if outcome == "done" else report.skipped).append(source.case_id)
    return report


def _outcomes(
    dataset: Dataset, root: Path, spec: PrepareSpec, executor: Executor | None, overwrite: bool
) -> Iterator[tuple[str, Outcome, str]]:
    jobs = [(source, root, spec, dataset.classes, overwrite) for source in dataset.sources]
    if executor is None:
        for job in jobs:
            yield _try_case(*job)
        return
    waiting = [executor.submit(_try_case, *job) for job in jobs]
    try:
        for finished in as_completed(waiting):
            yield finished.result()
    finally:
        for future in waiting:
            future.cancel()


def _try_case(
    source: CaseSource, root: Path, spec: PrepareSpec, classes: tuple[str, ...], overwrite: bool
) -> tuple[str, Outcome, str]:
    try:
        return source.case_id, prepare_case(source, root, spec, classes=classes, overwrite=overwrite), ""
    except (ValueError, OSError, MemoryError) as error:
        return source.case_id, "failed", f"{type(error).__name__}: {error}"


def _write_dataset(dataset: Dataset, root: Path, spec: PrepareSpec, overwrite: bool) -> None:
    record = {
        "schema": SCHEMA,
        "created_by": f"girih-data3d {version('girih-data3d')}",
        "name": dataset.name,
        "classes": list(dataset.classes),
        "spec": spec.to_json(),
        "spec_hash": spec.sha256,
    }
    path = root / "dataset.json"
    if path.exists():
        found = read_dataset_record(root)
        other = [key for key in ("name", "classes", "spec_hash") if found.get(key) != record[key]]
        if not other:
            return
        if not overwrite:
            shown = f"{other[0]} {found.get(other[0])!r}, wanted {record[other[0]]!r}"
            raise StaleCaseError(f"{path}: prepared with {shown}; pass overwrite=True or another folder")
    with written_aside(root, path) as aside:
        aside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
