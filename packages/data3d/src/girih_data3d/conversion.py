"""Prepare cases into a dataset on disk: per-case atomic, resumable, with a report of what happened."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from girih_data3d.annotations import ground_truth, read_objects
from girih_data3d.atomic import remove_abandoned, written_aside
from girih_data3d.case_writer import write_case
from girih_data3d.errors import ScanError, StaleCaseError
from girih_data3d.instances import boxes_of
from girih_data3d.layout import SCHEMA, case_folder, read_dataset_record
from girih_data3d.manifest import CaseSource, Dataset
from girih_data3d.prepare import choose_grid, labels_on_grid, prepare_on_grid
from girih_data3d.provenance import origin_of, recorded_origin
from girih_data3d.scan import read_labels
from girih_data3d.source import read_source
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


def prepare_case(
    source: CaseSource,
    root: Path | str,
    spec: PrepareSpec,
    *,
    classes: tuple[str, ...] = (),
    overwrite: bool = False,
) -> Literal["done", "skipped"]:
    """Prepare one case: written to root/.tmp, flushed, renamed into place, so that a visible case is complete.

    Args:
        source: the files.
        root: folder of the prepared dataset.
        spec: how to prepare.
        classes: names of the dataset's classes.
        overwrite: replace a case that was made from other files or with another spec.

    Returns:
        "skipped" if the case is there already, from the same files (name, size, SHA-256) and the same spec.

    Raises:
        ScanError: a file cannot be read, the files do not lie on one grid, or objects and their classes do not agree.
        StaleCaseError: the case is there, but from other files or another spec, and not `overwrite`.
    """
    root = Path(root)
    origin = origin_of(source)
    target = case_folder(root, source.case_id)
    if target.exists():
        found = recorded_origin(target)
        if found == (spec.sha256, origin):
            return "skipped"
        if not overwrite:
            changed = "another spec" if found[0] != spec.sha256 else "other source files or annotations"
            what = "holds no readable record" if found[0] is None else f"was prepared from {changed}"
            raise StaleCaseError(f"{target}: {what}; pass overwrite=True to replace it")
    scan = read_source(source)
    objects, instances = read_objects(source, scan, classes)
    grid = choose_grid(scan, spec, instances)
    semantic = None if source.semantic is None else read_labels(source.semantic, like=scan).values
    if semantic is not None and semantic.max() > np.iinfo(np.int16).max:
        raise ScanError(f"{source.semantic}: label {semantic.max()}, wanted at most {np.iinfo(np.int16).max}")
    truth = ground_truth(source, scan, instances, objects, classes)
    volume, prepared = prepare_on_grid(scan, spec, grid)
    if instances is not None:
        instances = labels_on_grid(instances, grid)
        boxes = boxes_of(instances, len(objects))
        voxels = np.bincount(instances.ravel(), minlength=len(objects) + 1)[1:]
        for record, box, count in zip(objects, boxes, voxels, strict=True):
            record |= {"box": box.tolist(), "voxels": int(count)}
    attributes = {
        "schema": SCHEMA,
        "created_by": f"girih-data3d {version('girih-data3d')}",
        "case_id": source.case_id,
        "patient_id": source.patient_id or source.case_id,
        "modality": source.modality,
        "spec_hash": spec.sha256,
        "source": origin,
        "prepared": prepared,
        "objects": objects,
        "truth": truth,
    }
    with written_aside(root, target) as aside:
        write_case(
            aside,
            volume=volume.values,
            affine=grid.affine,
            spec=spec,
            instances=instances,
            semantic=None if semantic is None else labels_on_grid(semantic, grid).astype(np.int16),
            attributes=attributes,
        )
    return "done"


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
