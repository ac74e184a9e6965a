"""A prepared dataset on disk."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from girih_data3d.case import Case
from girih_data3d.errors import ManifestError, StaleCaseError
from girih_data3d.layout import case_folder, read_dataset_record
from girih_data3d.spec import PrepareSpec


@dataclass(frozen=True)
class Store:
    """A folder of prepared cases: `store[case_id]` opens one. Picklable; holds no open file."""

    root: Path
    name: str
    classes: tuple[str, ...]
    spec: PrepareSpec
    case_ids: tuple[str, ...]
    """Sorted; as found on opening."""

    @classmethod
    def open(cls, root: Path | str) -> "Store":
        """Open a dataset that `prepare_many` wrote.

        Raises:
            ManifestError: no dataset.json, a broken one, or one of another schema.
        """
        root = Path(root)
        record = read_dataset_record(root)
        spec = PrepareSpec.from_json(record["spec"])
        if spec.sha256 != record["spec_hash"]:
            raise ManifestError(
                f"{root / 'dataset.json'}: spec_hash {record['spec_hash']}, the spec's is {spec.sha256}"
            )
        found = sorted(p.name.removesuffix(".zarr") for p in (root / "cases").glob("??/*.zarr"))
        return cls(root, record["name"], tuple(record["classes"]), spec, tuple(found))

    def __getitem__(self, case_id: str) -> Case:
        """Open a case.

        Raises:
            KeyError: no such case.
            CorruptCaseError: it is damaged.
            StaleCaseError: it was prepared with another spec than the dataset's.
        """
        folder = case_folder(self.root, case_id)
        if not folder.is_dir():
            raise KeyError(f"no case {case_id!r} in {self.root} ({len(self.case_ids)} cases)")
        case = Case(folder)
        if case.spec_hash != self.spec.sha256:
            raise StaleCaseError(f"{folder}: prepared with spec {case.spec_hash}, the dataset's is {self.spec.sha256}")
        return case

    def __len__(self) -> int:
        return len(self.case_ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.case_ids)
