"""Which cases train, validate and test: the record of it, its file split.json, and its checks."""

import json
import os
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from girih_data3d.case_source import Dataset
from girih_data3d.checked_json import Checked, is_whole, read_json
from girih_data3d.errors import ManifestError
from girih_data3d.store import Store

SCHEMA = 1
SPELLINGS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
"""Of official parts, in lower case."""
LARGEST_SEED = 2**63 - 1
Cases = Store | Dataset
"""What has cases, patients and official parts: a prepared dataset, or one still to prepare."""


@dataclass(frozen=True)
class Fold:
    """The ids of the cases that one training learns from, chooses by, and is scored on besides `Split.test`."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...] = ()
    """Of this fold alone, where every case is tested once in some fold, as in LUNA16's ten."""


@dataclass(frozen=True)
class Split:
    """How a dataset is divided.

    Raises:
        ValueError: no fold, a fold that trains on nothing, a case twice or in two parts of one fold.
    """

    dataset: str
    rule: str
    """How it came about, in words."""
    seed: int
    folds: tuple[Fold, ...]
    test: tuple[str, ...] = ()
    """In no fold: scored once, at the end."""

    def __post_init__(self) -> None:
        if not self.folds:
            raise ValueError("folds is empty, wanted at least one")
        for number in range(len(self.folds)):
            parts = self.parts(number)
            if not parts["train"]:
                raise ValueError(f"folds[{number}]: train is empty, wanted at least one case")
            seen: dict[str, str] = {}
            for case_id, part in _each(parts):
                if case_id in seen:
                    found = f"twice in {part}" if seen[case_id] == part else f"in {seen[case_id]} and in {part}"
                    raise ValueError(f"folds[{number}]: case {case_id!r} is {found}, wanted in one part, once")
                seen[case_id] = part

    def parts(self, fold: int = 0) -> dict[str, tuple[str, ...]]:
        """Return the case ids of "train", "val" and "test" (the fold's and the common one) of a fold.

        Raises:
            ValueError: no such fold.
        """
        if not 0 <= fold < len(self.folds):
            raise ValueError(f"fold is {fold}, wanted 0 to {len(self.folds) - 1}")
        chosen = self.folds[fold]
        return {"train": chosen.train, "val": chosen.val, "test": (*self.test, *chosen.test)}

    def check_cases(self, dataset: str, case_ids: Collection[str]) -> None:
        """Make sure that this is the dataset that is divided, and that it has all the cases.

        Raises:
            ValueError: another dataset's name, or a case that is not among these.
        """
        if dataset != self.dataset:
            raise ValueError(f"the split is of dataset {self.dataset!r}, found dataset {dataset!r}")
        for number in range(len(self.folds)):
            for case_id, part in _each(self.parts(number)):
                if case_id not in case_ids:
                    raise ValueError(
                        f"folds[{number}]: {part} names case {case_id!r}, which dataset {dataset!r} with its "
                        f"{len(case_ids)} cases lacks"
                    )

    def check(self, cases: Cases) -> None:
        """Make sure that these cases can be divided so.

        Raises:
            ValueError: a dataset of another name, a case that it lacks, or a patient in two parts of one fold.
        """
        patients = {member.case_id: member.patient_id for member in members(cases)}
        self.check_cases(cases.name, patients)
        for number in range(len(self.folds)):
            seen: dict[str, tuple[str, str]] = {}
            for case_id, part in _each(self.parts(number)):
                other, there = seen.setdefault(patients[case_id], (case_id, part))
                if there != part:
                    raise ValueError(
                        f"folds[{number}]: patient {patients[case_id]!r} is in {there} (case {other!r}) and in {part} "
                        f"(case {case_id!r}), wanted in one part"
                    )

    def write(self, path: Path | str) -> None:
        """Write it as JSON, one case id a line; a file that is there is replaced in one step, folders are made."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {"schema": SCHEMA, "dataset": self.dataset, "rule": self.rule, "seed": self.seed}
        record["folds"] = [
            {part: list(ids) for part, ids in vars(fold).items() if ids or part != "test"} for fold in self.folds
        ]
        record["test"] = list(self.test)
        aside = path.with_name(f".partial-{uuid.uuid4().hex}")
        try:
            with aside.open("x", encoding="utf-8") as stream:
                stream.write(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


@dataclass(frozen=True)
class Member:
    """What dividing a dataset needs to know of a case."""

    case_id: str
    patient_id: str
    part: str | None
    """The official one; "train", "val" and "test" however they are spelt."""
    annotated: bool
    """Whether it is, or will be when prepared, known which objects there are."""
    objects: int | None
    """How many there are (not those to ignore); None: unknown, or not before the case is prepared."""


def read_split(path: Path | str) -> Split:
    """Read a split.json: {"schema": 1, "dataset", "rule", "seed", "folds": [{"train", "val", "test"?}], "test"}.

    Raises:
        ManifestError: missing or broken JSON, an unknown or missing key, a value of another type, or what `Split`
            refuses.
    """
    path = Path(path)
    top = Checked(read_json(path), f"{path}", {"schema", "dataset", "rule", "seed", "folds"}, {"test"})
    if top["schema"] != SCHEMA:
        raise ManifestError(f"{path}: schema is {top['schema']!r}, wanted {SCHEMA}")
    if not is_whole(top["seed"], 0, LARGEST_SEED):
        raise top.wrong("seed", "a whole number, 0 or more")
    if not isinstance(top["folds"], list):
        raise top.wrong("folds", "a list")
    folds = []
    for number, content in enumerate(top["folds"]):
        fold = Checked(content, f"{path}: folds[{number}]", {"train", "val"}, {"test"})
        folds.append(Fold(fold.texts("train"), fold.texts("val"), fold.texts("test") if "test" in fold else ()))
    test = top.texts("test") if "test" in top else ()
    try:
        return Split(top.text("dataset"), top.text("rule"), top["seed"], tuple(folds), test)
    except ManifestError:
        raise
    except ValueError as error:
        raise ManifestError(f"{path}: {error}") from error


def members(cases: Cases) -> tuple[Member, ...]:
    """Return the cases of a dataset, sorted by id; a case that names no patient is its own."""
    if isinstance(cases, Dataset):
        found = [
            Member(
                case_id=source.case_id,
                patient_id=source.patient_id or source.case_id,
                part=_spelt(source.part),
                annotated=bool(source.instances) or source.objects is not None or source.rule is not None,
                objects=None if source.objects is None else sum(not label.ignore for label in source.objects),
            )
            for source in cases.sources
        ]
        return tuple(sorted(found, key=lambda member: member.case_id))
    index = cases.index
    counts = [0] * len(index)
    for row in index.box_case.tolist():
        counts[row] += 1
    columns = zip(index.case_ids, index.patient_ids, index.parts, index.annotated.tolist(), counts, strict=True)
    return tuple(
        Member(case_id, patient_id, _spelt(part), annotated, count if annotated else None)
        for case_id, patient_id, part, annotated, count in columns
    )


def _spelt(part: str | None) -> str | None:
    name = (part or "").casefold()
    name = SPELLINGS.get(name, name)
    return name if name in ("train", "val", "test") else part


def _each(parts: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    for part, case_ids in parts.items():
        for case_id in case_ids:
            yield case_id, part
