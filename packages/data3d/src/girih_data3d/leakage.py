"""Scans that are in two datasets, or in two parts of one: what a network was trained on must not score it.

Public datasets contain each other: LUNA16 lies in LIDC-IDRI, images of the Medical Segmentation Decathlon lie in
AbdomenAtlas. A scan is known again by its SeriesInstanceUID or by the hash of the order of its voxels' values
(`channel_sha256`), which outlives another file format, type of voxels, direction of axes, slope or unit. It does not
outlive resampling, cropping, clipped intensities or lossy compression: no leak found is no proof that there is none.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from girih_data3d.splits import Split
from girih_data3d.store import Store

Reason = Literal["series", "content", "patient"]
WORDS: dict[Reason, str] = {"series": "the same series", "content": "the same voxels", "patient": "the same patient"}
SHOWN = 5
"""Leaks that an error names."""
Evidence = tuple[Reason, str]
Rows = dict[str, tuple[bool, list[Evidence]]]
"""Case id -> whether its voxels were hashed, and what the scan is known again by, the strongest first."""


@dataclass(frozen=True)
class Leak:
    """Two cases that should not be on both sides."""

    case_a: str
    case_b: str
    reason: Reason
    """The strongest one: "series" before "content" before "patient"."""
    value: str
    """What they share: the UID, the hash or the patient's id."""

    def __str__(self) -> str:
        return f"{self.case_a} and {self.case_b}: {WORDS[self.reason]} ({self.value})"


@dataclass(frozen=True)
class LeakReport:
    """Every case of either side that is on the other side too, and those of which that is not known."""

    leaks: tuple[Leak, ...]
    """One for each case of the first side, with the first such case of the second, by rising id; then one for each case
    of the second that these do not name, with the first such case of the first."""
    unknown_a: tuple[str, ...]
    """Cases prepared by a version that took no hash of the voxels, and without a leak: prepare them again to know."""
    unknown_b: tuple[str, ...]

    def __str__(self) -> str:
        reasons = Counter(leak.reason for leak in self.leaks)
        found = ", ".join(f"{reasons[reason]} by {WORDS[reason]}" for reason in WORDS if reasons[reason])
        unknown = ""
        if self.unknown_a or self.unknown_b:
            unknown = (
                f"; not known of {len(self.unknown_a)} cases of the first and {len(self.unknown_b)} of the second, "
                "which an older version prepared without a hash of their voxels: prepare them again"
            )
        return f"{len(self.leaks)} leaks{f' ({found})' if found else ''}{unknown}"


class LeakError(ValueError):
    """The same scan or patient is on both sides, or it is not known whether one is; `report` says which."""

    def __init__(self, message: str, report: LeakReport | None = None) -> None:
        super().__init__(message, report)
        self.message, self.report = message, report

    def __str__(self) -> str:
        return self.message


def find_leaks(a: Store, b: Store, *, same_patients: bool = False) -> LeakReport:
    """Return the cases of `a` (to pre-train on) that are also in `b` (to evaluate on), of both all.

    Patients' ids are compared within one dataset (two stores of one name), but else only if `same_patients` says that
    both take them from one register: patient "1" of two hospitals is two people. With `Store.select` it is about some
    cases only. It takes time and memory in proportion to the number of cases, and opens none of them.
    """
    patients = same_patients or a.name == b.name
    return _compared(_rows(a, patients=patients), _rows(b, patients=patients))


def find_leaks_within(store: Store, split: Split) -> LeakReport:
    """Return the training cases of a split that are also validated or tested on, and so on for validation and test.

    Raises:
        ValueError: the split is of a dataset of another name, or names a case that the store lacks.
    """
    split.check_cases(store.name, set(store))
    rows = _rows(store, patients=True)
    found: dict[tuple[str, str], Leak] = {}
    unknown: set[str] = set()
    for number in range(len(split.folds)):
        parts = split.parts(number)
        train, val, test = ({case_id: rows[case_id] for case_id in ids} for ids in parts.values())
        for before, after in ((train, val | test), (val, test)):
            report = _compared(before, after)
            found |= {(leak.case_a, leak.case_b): leak for leak in report.leaks}
            unknown |= {*report.unknown_a, *report.unknown_b}
    unknown -= {case_id for pair in found for case_id in pair}
    return LeakReport(tuple(found[pair] for pair in sorted(found)), tuple(sorted(unknown)), ())


def check_no_leak(a: Store, b: Store, *, same_patients: bool = False, allow_unknown: bool = False) -> None:
    """Make sure that no scan of `a` (to pre-train on) is in `b` (to evaluate on); see `find_leaks`.

    Raises:
        LeakError: some are, or (unless `allow_unknown`) it is not known whether some are; the first are named.
    """
    report = find_leaks(a, b, same_patients=same_patients)
    if report.leaks or ((report.unknown_a or report.unknown_b) and not allow_unknown):
        shown = "".join(f"\n  {leak}" for leak in report.leaks[:SHOWN])
        more = f"\n  and {len(report.leaks) - SHOWN} more" if len(report.leaks) > SHOWN else ""
        raise LeakError(f"{a.name} ({a.root}) and {b.name} ({b.root}): {report}{shown}{more}", report)


def _rows(store: Store, *, patients: bool) -> Rows:
    index = store.index
    rows: Rows = {}
    columns = zip(index.case_ids, index.series_uids, index.scan_sha256, index.patient_ids, strict=True)
    for case_id, series_uid, scan_sha256, patient_id in columns:
        evidence: list[Evidence] = [] if series_uid is None else [("series", series_uid)]
        evidence += [("content", digest) for digest in scan_sha256 or ()]
        if patients:
            evidence.append(("patient", patient_id))
        rows[case_id] = (scan_sha256 is not None, evidence)
    return rows


def _compared(a: Rows, b: Rows) -> LeakReport:
    """Return which rows of either side share evidence with a row of the other."""
    in_b, in_a = _shared(a, b), _shared(b, a)
    leaks = [Leak(case_id, other, *evidence) for case_id, (other, evidence) in in_b.items()]
    named = {leak.case_b for leak in leaks}
    leaks += [Leak(other, case_id, *shared) for case_id, (other, shared) in in_a.items() if case_id not in named]
    unknown_a, unknown_b = (
        tuple(case_id for case_id, (hashed, _) in rows.items() if not hashed and case_id not in leaked)
        for rows, leaked in ((a, in_b), (b, in_a))
    )
    return LeakReport(tuple(leaks), unknown_a, unknown_b)


def _shared(rows: Rows, others: Rows) -> dict[str, tuple[str, Evidence]]:
    """Return of each row that shares evidence with another one the first of these, and the strongest evidence."""
    first: dict[Evidence, str] = {}
    for case_id, (_, evidence) in others.items():
        for shared in evidence:
            first.setdefault(shared, case_id)
    strongest = ((case_id, next((e for e in evidence if e in first), None)) for case_id, (_, evidence) in rows.items())
    return {case_id: (first[shared], shared) for case_id, shared in strongest if shared is not None}
