"""The table of a dataset's cases, in arrays: what samplers and statistics need, without opening a case.

On disk it is root/index.zarr, one zarr array per column, a text column as UTF-8 bytes and the ends of its texts. It is
derived from the cases: it can be removed at any time, and `update_index` writes it again.
"""

import dataclasses
import json
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from sys import intern
from typing import Any

import numpy as np
import zarr
from jaxtyping import Bool, Float32, Float64, Int64, Integer, UInt32
from zarr.buffer import cpu
from zarr.codecs import BloscCodec
from zarr.storage import MemoryStore

from girih_data3d.affine import spacing_zyx
from girih_data3d.atomic import written_aside
from girih_data3d.checksum import crc32c
from girih_data3d.errors import CorruptCaseError, ManifestError
from girih_data3d.folder import DamageError, Folder, LocalFolder
from girih_data3d.layout import INDEX, SCHEMA, case_folder, list_cases
from girih_data3d.open_files import OpenFiles
from girih_data3d.sealed import NAME, Seal, check_files, read_case_seal, read_seal, seal

LATER = ("series_uids", "parts", "scan_sha256")
"""Columns of text that an older index lacks; and so are their values None."""
TEXTS = ("case_ids", "patient_ids", "modalities", *LATER)
CONTENT = ("case_id", "patient_id", "modality", "spec_hash", "prepared", "objects", "truth")
"""What a record says about the data themselves."""
NUMBERS: dict[str, tuple[Any, ...]] = {
    "checksums": (np.uint32,),
    "contents": (np.uint32,),
    "bytes": (np.int64,),
    "channels": (np.int64,),
    "shapes": (np.int64, 3),
    "spacings_mm": (np.float64, 3),
    "annotated": (bool,),
    "instances": (bool,),
    "semantic": (bool,),
    "valid": (bool,),
}


@dataclass(frozen=True, eq=False)
class CaseIndex:
    """One row per case, sorted by case id; the objects (not those to ignore) of all cases in three more columns."""

    case_ids: tuple[str, ...]
    patient_ids: tuple[str, ...]
    modalities: tuple[str | None, ...]
    series_uids: tuple[str | None, ...]
    """DICOM SeriesInstanceUID; None: unknown."""
    parts: tuple[str | None, ...]
    """Official part of the dataset; None: none."""
    scan_sha256: tuple[tuple[str, ...] | None, ...]
    """Of each channel of the scan before any resampling, see `channel_sha256`, that is not constant; None: an older
    version prepared it."""
    checksums: UInt32[np.ndarray, " n"]
    """CRC-32C over everything that is written about the case, and so over all its files."""
    contents: UInt32[np.ndarray, " n"]
    """CRC-32C over voxels, labels, places and spec: equal for equal data, from whichever copy of the source files."""
    bytes: Int64[np.ndarray, " n"]
    """On disk."""
    channels: Int64[np.ndarray, " n"]
    shapes: Int64[np.ndarray, "n 3"]
    """Voxels (z, y, x)."""
    spacings_mm: Float64[np.ndarray, "n 3"]
    """(z, y, x)."""
    annotated: Bool[np.ndarray, " n"]
    """Whether it is known which objects there are, even if there are none."""
    instances: Bool[np.ndarray, " n"]
    """Whether there are masks of objects."""
    semantic: Bool[np.ndarray, " n"]
    """Whether there are tissue labels."""
    valid: Bool[np.ndarray, " n"]
    """Whether it is known which voxels show the patient: others were defaced."""
    boxes: Float32[np.ndarray, "m 6"]
    """Voxel edges of the prepared grid."""
    labels: Int64[np.ndarray, " m"]
    """Index of the class."""
    box_case: Int64[np.ndarray, " m"]
    """Row of the case, rising."""

    def __len__(self) -> int:
        return len(self.case_ids)

    def row(self, case_id: str) -> int | None:
        """Return the row of a case; None if there is none."""
        row = bisect_left(self.case_ids, case_id)
        return row if row < len(self) and self.case_ids[row] == case_id else None

    def take(self, rows: Sequence[int]) -> "CaseIndex":
        """Return the table of these rows, in their order, with their objects."""
        chosen = np.asarray(rows, np.int64)
        first, last = (np.searchsorted(self.box_case, chosen, side) for side in ("left", "right"))
        counts = last - first
        # object j of row k of the new table was object first[k] + j
        objects = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
        columns: dict[str, Any] = {}
        for name, column in _columns(self).items():
            if name in TEXTS:
                columns[name] = tuple(column[row] for row in chosen.tolist())
            else:
                columns[name] = column[objects if name in ("boxes", "labels") else chosen]
        return CaseIndex(**columns, box_case=np.repeat(np.arange(len(chosen)), counts))


def open_index(root: Path) -> CaseIndex:
    """Return the table of the cases that are on local disk now; those that the index lacks are looked at themselves.

    Raises:
        ManifestError: the index is damaged.
        CorruptCaseError: so is the record of a case that the index lacks.
    """
    known = written_index(root) or table_of([])
    return _followed(root, known, list_cases(root), changed=(), strict=True)


def update_index(root: Path | str, changed: Collection[str] | None = None) -> CaseIndex:
    """Bring root/index.zarr up to date and return it.

    The rows of `changed` cases (None: of all) and those that are missing are read from the cases, the rows of cases
    that are gone are dropped. A damaged index is built anew. A case whose record is damaged gets no row; `Store.open`
    names it.
    """
    root = Path(root)
    number = _number(root / INDEX)
    try:
        known = written_index(root) or table_of([])
    except ManifestError:
        known = table_of([])
    present = list_cases(root)
    index = _followed(root, known, present, changed=present if changed is None else changed, strict=False)
    same = index.case_ids == known.case_ids and np.array_equal(index.checksums, known.checksums)
    if same and (root / INDEX).is_dir():
        return index
    with written_aside(root, root / INDEX) as aside:
        write_index(aside, index)
        overtaken = _number(root / INDEX) != number
    return update_index(root) if overtaken else index  # what another process has just written is lost


def read_index(folder: Folder) -> CaseIndex:
    """Read an index, every byte of it checked.

    Raises:
        DamageError: a file is missing, differs, or does not hold what it should.
    """
    found = read_seal(folder)
    if found.attributes["girih"].get("schema") != SCHEMA:
        raise DamageError(folder.locate(NAME), f"schema {found.attributes['girih'].get('schema')!r}, wanted {SCHEMA}")
    contents = {NAME: b'{"zarr_format": 3, "node_type": "group"}', **check_files(folder, found, whole=found.files)}
    store = MemoryStore({name: cpu.Buffer.from_bytes(content) for name, content in contents.items()}, read_only=True)
    group = zarr.open_group(store, mode="r")
    columns: dict[str, Any] = {name: array[...] for name, array in group.arrays()}
    count = len(columns["checksums"])
    for name in TEXTS:
        known = name not in LATER or name in columns
        columns[name] = _texts(columns[name].tobytes(), columns.pop(f"{name}_ends")) if known else ("",) * count
    for name in ("modalities", *LATER):
        columns[name] = tuple(intern(text) if text else None for text in columns[name])
    columns["scan_sha256"] = tuple(text and tuple(text.split()) for text in columns["scan_sha256"])  # " ": ()
    columns.setdefault("valid", np.zeros(count, bool))
    return CaseIndex(**columns)


def written_index(root: Path) -> CaseIndex | None:
    """Return the index as it was written last; None if there is none.

    Raises:
        ManifestError: it is damaged.
    """
    folder = root / INDEX
    number = _number(folder)
    if number is None:
        return None
    try:
        return read_index(LocalFolder(folder, OpenFiles()))
    except DamageError as error:
        if _number(folder) != number:  # another process has replaced it while it was being read
            return written_index(root)
        raise ManifestError(
            f"{error.path}: {error.reason}; the index is derived: remove {folder}, or call update_index({str(root)!r})"
        ) from error


def _number(folder: Path) -> int | None:
    """Return the number by which the file system knows a folder; None if there is none."""
    try:
        return folder.stat().st_ino
    except FileNotFoundError:
        return None


def row_of(found: Seal) -> dict[str, Any]:
    """Return the row of a case: one value per column, and lists of its objects."""
    record = found.attributes["girih"]
    objects = [o for o in record["objects"] if not o["ignore"]]
    return {
        "case_ids": record["case_id"],
        "patient_ids": record["patient_id"],
        "modalities": record["modality"] or None,
        "series_uids": record.get("series_uid") or None,
        "parts": record.get("part") or None,
        "scan_sha256": None if record.get("scan_sha256") is None else tuple(record["scan_sha256"]),
        "checksums": found.checksum,
        "contents": crc32c(json.dumps([[record[key] for key in CONTENT], found.files], sort_keys=True).encode()),
        "bytes": found.size,
        "channels": record["shape"][0],
        "shapes": record["shape"][1:],
        "spacings_mm": spacing_zyx(np.array(record["prepared"]["affine"], np.float64)),
        "annotated": record["truth"] is not None,
        "instances": "labels/instances/zarr.json" in found.files,
        "semantic": "labels/semantic/zarr.json" in found.files,
        "valid": "labels/valid/zarr.json" in found.files,
        "boxes": [o["box"] for o in objects],
        "labels": [o["class"] for o in objects],
    }


def _followed(
    root: Path, known: CaseIndex, present: tuple[str, ...], *, changed: Collection[str], strict: bool
) -> CaseIndex:
    """Return the table of the cases `present`."""
    if known.case_ids == present and not changed:
        return known
    old, again, kept = set(known.case_ids), set(changed), set(present)
    rows: list[dict[str, Any]] = []
    for case_id in present:
        if case_id in old and case_id not in again:
            continue
        try:
            rows.append(row_of(read_case_seal(LocalFolder(case_folder(root, case_id), OpenFiles()), case_id)))
        except DamageError as error:
            if strict:
                raise CorruptCaseError(case_id, error.path, error.reason) from error
    kept -= again
    return _joined(known.take([row for row, name in enumerate(known.case_ids) if name in kept]), table_of(rows))


def _joined(one: CaseIndex, other: CaseIndex) -> CaseIndex:
    """Return the rows of both tables, sorted."""
    a, b = _columns(one), _columns(other)
    columns: dict[str, Any] = {
        name: a[name] + b[name] if name in TEXTS else np.concatenate([a[name], b[name]]) for name in a
    }
    both = CaseIndex(**columns, box_case=np.concatenate([one.box_case, other.box_case + len(one)]))
    return both.take(sorted(range(len(both)), key=both.case_ids.__getitem__))


def table_of(rows: Sequence[dict[str, Any]]) -> CaseIndex:
    """Return the table of rows that `row_of` gave."""
    columns: dict[str, Any] = {name: tuple(row[name] for row in rows) for name in TEXTS}
    for name, (kind, *shape) in NUMBERS.items():
        columns[name] = np.array([row[name] for row in rows], kind).reshape(-1, *shape)
    return CaseIndex(
        **columns,
        boxes=np.array([box for row in rows for box in row["boxes"]], np.float32).reshape(-1, 6),
        labels=np.array([label for row in rows for label in row["labels"]], np.int64),
        box_case=np.repeat(np.arange(len(rows), dtype=np.int64), [len(row["labels"]) for row in rows]),
    )


def write_index(folder: Path, index: CaseIndex) -> None:
    """Write an index into a new folder."""
    columns: dict[str, np.ndarray] = {"box_case": index.box_case}
    for name, column in _columns(index).items():
        if name in TEXTS:
            texts = (" ".join(text) or " " if isinstance(text, tuple) else text or "" for text in column)
            encoded = [text.encode() for text in texts]
            columns[name] = np.frombuffer(b"".join(encoded), np.uint8)
            columns[f"{name}_ends"] = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        else:
            columns[name] = column
    group = zarr.create_group(store=str(folder), zarr_format=3)
    for name, values in columns.items():
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=tuple(max(1, n) for n in values.shape),
            compressors=[BloscCodec(cname="zstd", clevel=3, shuffle="shuffle")],
            fill_value=0,
        )
        array[...] = values
    seal(folder, {"girih": {"schema": SCHEMA}})


def _texts(joined: bytes, ends: Integer[np.ndarray, " n"]) -> tuple[str, ...]:
    starts = [0, *ends.tolist()]
    return tuple(joined[a:b].decode() for a, b in pairwise(starts))


def _columns(index: CaseIndex) -> dict[str, Any]:
    """Return all columns but `box_case`, whose values are rows of this very table."""
    return {f.name: getattr(index, f.name) for f in dataclasses.fields(index) if f.name != "box_case"}
