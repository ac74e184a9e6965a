"""A prepared dataset, on local disk or in any zarr store."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from zarr.abc.store import Store as ZarrStore

from girih_data3d.case import Case
from girih_data3d.errors import ManifestError, StaleCaseError
from girih_data3d.folder import DamageError, Folder, LocalFolder
from girih_data3d.index import CaseIndex, open_index, read_index
from girih_data3d.layout import INDEX, RECORD, case_key, parse_dataset_record, read_dataset_record
from girih_data3d.open_files import OpenFiles
from girih_data3d.remote_reader import RemoteFolder
from girih_data3d.spec import PrepareSpec


@dataclass(frozen=True, eq=False)
class Store:
    """Prepared cases: `store[case_id]` opens one. Picklable; a copy opens its own files."""

    root: Path | ZarrStore
    name: str
    classes: tuple[str, ...]
    spec: PrepareSpec
    index: CaseIndex = field(repr=False)
    """What is known about the cases without opening them; as found on opening."""
    files: OpenFiles = field(repr=False)
    """The files that its cases keep open."""

    @classmethod
    def open(cls, root: Path | str | ZarrStore, *, io: Literal["pread", "mmap"] = "pread") -> "Store":
        """Open a dataset that `prepare_many` wrote.

        Args:
            root: a folder, or any zarr store object (an HTTP server, an object store) of which it is the root. The
                latter needs the index; its workers start by forkserver or spawn, for such stores do not survive a fork.
            io: how files on local disk are read; "mmap" helps on some network file systems, but a file that is
                truncated while it is open kills the process.

        Raises:
            ManifestError: no dataset.json, a broken one, or one of another schema; a damaged index.
            CorruptCaseError: a case that the index lacks has a damaged record.
            ValueError: an unknown `io`.
        """
        if io not in ("pread", "mmap"):
            raise ValueError(f"io is {io!r}, wanted 'pread' or 'mmap'")
        if isinstance(root, str) and "://" in root:
            raise ManifestError(f"{root}: wanted a folder, or a zarr store object such as zarr.storage.FsspecStore")
        if isinstance(root, ZarrStore):
            where = RemoteFolder(root, "")
            try:
                record = parse_dataset_record(where.contents([RECORD])[RECORD], where.locate(RECORD))
                index = read_index(RemoteFolder(root, INDEX))
            except DamageError as error:
                raise ManifestError(f"{error.path}: {error.reason}") from error
        else:
            root = Path(root)
            record = read_dataset_record(root)
            index = open_index(root)
        files = OpenFiles(mapped=io == "mmap")
        return cls(root, record["name"], tuple(record["classes"]), spec_of(record, str(root)), index, files)

    def select(self, case_ids: Iterable[str]) -> "Store":
        """Return the dataset of these cases only, in the order of their ids; nothing is copied.

        Raises:
            KeyError: no such case.
        """
        wanted = sorted(set(case_ids))
        rows = [self.index.row(case_id) for case_id in wanted]
        if None in rows:
            raise KeyError(f"no case {wanted[rows.index(None)]!r} in {self.root} ({len(self)} cases)")
        return replace(self, index=self.index.take([row for row in rows if row is not None]))

    @staticmethod
    def is_at(folder: Path) -> bool:
        """Return whether a folder's dataset.json is a prepared dataset's, and not the manifest of a folder of scans."""
        record = folder / RECORD
        return record.is_file() and b'"spec_hash"' in record.read_bytes()

    @property
    def case_ids(self) -> tuple[str, ...]:
        """Sorted; as found on opening."""
        return self.index.case_ids

    def __getitem__(self, case_id: str) -> Case:
        """Open a case.

        Raises:
            KeyError: no such case.
            CorruptCaseError: it is damaged.
            StaleCaseError: it was prepared again since the index was written, or with another spec or other classes
                than the dataset's.
        """
        row = self.index.row(case_id)
        if row is None:
            raise KeyError(f"no case {case_id!r} in {self.root} ({len(self)} cases)")
        case = Case(self._folder(case_key(case_id)), case_id)
        where = case.where.locate("zarr.json")
        if case.spec_hash != self.spec.sha256:
            raise StaleCaseError(f"{where}: prepared with spec {case.spec_hash}, the dataset's is {self.spec.sha256}")
        if case.truth is not None and case.truth["classes"] != list(self.classes):
            found = case.truth["classes"]
            raise StaleCaseError(f"{where}: prepared with the classes {found}, the dataset's are {list(self.classes)}")
        if case.checksum != self.index.checksums[row]:
            raise StaleCaseError(f"{where}: prepared again since the index was written; call update_index and reopen")
        return case

    def __len__(self) -> int:
        return len(self.case_ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.case_ids)

    def _folder(self, key: str) -> Folder:
        if isinstance(self.root, ZarrStore):
            return RemoteFolder(self.root, key)
        return LocalFolder(self.root / key, self.files)


def spec_of(record: Mapping[str, Any], root: str) -> PrepareSpec:
    """Return the spec in a dataset's record.

    Raises:
        ManifestError: it is broken, or not the one that the record's hash is of.
    """
    try:
        spec = PrepareSpec.from_json(record["spec"])
    except (ValueError, TypeError) as error:
        raise ManifestError(f"{root}/{RECORD}: spec: {error}") from error
    if spec.sha256 != record["spec_hash"]:
        raise ManifestError(f"{root}/{RECORD}: spec_hash {record['spec_hash']}, the spec's is {spec.sha256}")
    return spec
