"""Prepare one case: read, place on the target grid, write aside, rename into place."""

from pathlib import Path
from typing import Literal

import numpy as np
import xarray as xr
from jaxtyping import Bool, Int16

from girih_data3d.annotations import ground_truth, objects_on_grid, read_annotations
from girih_data3d.atomic import written_aside
from girih_data3d.case_source import CaseSource
from girih_data3d.case_writer import write_case
from girih_data3d.errors import ScanError, StaleCaseError
from girih_data3d.folder import DamageError, LocalFolder
from girih_data3d.instances import find_windows
from girih_data3d.layout import SCHEMA, case_folder
from girih_data3d.object_rules import check_values
from girih_data3d.open_files import OpenFiles
from girih_data3d.prepare import Grid, choose_grid, labels_on_grid, prepare_on_grid, valid_on_grid
from girih_data3d.provenance import is_origin, origin_of
from girih_data3d.scan import channel_sha256, read_labels
from girih_data3d.sealed import check_bytes, check_files, read_case_seal
from girih_data3d.source import read_source
from girih_data3d.spec import PrepareSpec


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
        overwrite: replace a case that is damaged, was made from other files, with another spec or other classes, or by
            a version that recorded neither its series nor a hash of its voxels; reads every byte of a case that is
            there.

    Returns:
        "skipped" if the case is there already with all its files, made from the same files (name, size, and time or
        SHA-256) with the same spec and classes.

    Raises:
        ScanError: a file cannot be read or changes meanwhile, the files do not lie on one grid, or objects and their
            classes do not agree.
        StaleCaseError: the case is there, but damaged or made from other files, with another spec or other classes,
            and not `overwrite`.
    """
    root = Path(root)
    target = case_folder(root, source.case_id)
    if target.exists():
        difference = _difference(target, source, spec, classes, strict=overwrite)
        if difference is None:
            return "skipped"
        if not overwrite:
            raise StaleCaseError(f"{target}: {difference}; pass overwrite=True to replace it")
    origin = origin_of(source)  # before the voxels are read: what changes from now on is noticed
    scan = read_source(source)
    scan_sha256 = [digest for channel in scan.values if (digest := channel_sha256(channel)) is not None]
    annotations = read_annotations(source, scan, classes)
    grid = choose_grid(scan, spec, None if annotations is None else annotations.boxes)
    truth = ground_truth(source, scan, annotations, classes)
    objects, layers = ([], []) if annotations is None else objects_on_grid(annotations, grid)
    notes = {
        "objects_clipped": 0 if annotations is None else annotations.clipped,
        "found": {} if annotations is None else {name: int(n) for name, n in annotations.found.items()},
    }
    del annotations  # its label maps are as large as the scan
    semantic = _semantic(source, scan, grid)
    valid = _valid(source, scan, grid)
    volume, prepared = prepare_on_grid(scan, spec, grid)
    del scan
    if not is_origin(source, origin):
        raise ScanError(f"case {source.case_id!r}: one of its files changed while it was read; prepare it again")
    attributes = {
        "schema": SCHEMA,
        "case_id": source.case_id,
        "patient_id": source.patient_id or source.case_id,
        "modality": source.modality,
        "series_uid": source.series_uid,
        "part": source.part,
        "scan_sha256": scan_sha256,
        "spec_hash": spec.sha256,
        "source": origin,
        "prepared": prepared,
        "truth": truth,
        "notes": notes,
    }
    with written_aside(root, target) as aside:
        write_case(
            aside,
            volume=volume.values,
            affine=grid.affine,
            spec=spec,
            instances=layers,
            objects=objects,
            semantic=semantic,
            valid=valid,
            attributes=attributes,
        )
    return "done"


def _difference(
    target: Path, source: CaseSource, spec: PrepareSpec, classes: tuple[str, ...], *, strict: bool
) -> str | None:
    """Return how a case on disk differs from what is asked for; None if it does not.

    `strict` looks at every byte, and at what only tells whether the scan is in another dataset.
    """
    folder = LocalFolder(target, OpenFiles())
    try:
        found = read_case_seal(folder, source.case_id)
        check_files(folder, found, whole=())
        if strict:
            check_bytes(folder, found.files)
    except DamageError as error:
        return f"is damaged ({error.path}: {error.reason})"
    record = found.attributes["girih"]
    if strict and (record.get("scan_sha256") is None or record.get("series_uid") != source.series_uid):
        return "was prepared without its series or a hash of its voxels"
    if record["spec_hash"] != spec.sha256:
        return "was prepared with another spec"
    if record["truth"] is not None and record["truth"]["classes"] != list(classes):
        return "was prepared with other classes"
    return None if is_origin(source, record["source"]) else "was prepared from other source files or annotations"


def _semantic(source: CaseSource, scan: xr.DataArray, grid: Grid) -> Int16[np.ndarray, "z y x"] | None:
    if source.semantic is None:
        return None
    labels = read_labels(source.semantic, like=scan).values
    if source.semantic_values is not None:
        check_values(source.semantic, find_windows(labels), source.semantic_values)
    if labels.max() > np.iinfo(np.int16).max:
        raise ScanError(f"{source.semantic}: label {labels.max()}, wanted at most {np.iinfo(np.int16).max}")
    return labels_on_grid(labels, grid).astype(np.int16)


def _valid(source: CaseSource, scan: xr.DataArray, grid: Grid) -> Bool[np.ndarray, "z y x"] | None:
    return None if source.defaced is None else valid_on_grid(read_labels(source.defaced, like=scan).values > 0, grid)
