"""CT-RATE: 25,692 chest CT scans of 21,304 patients in one or more reconstructions each, without labels."""

import hashlib
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

from girih_data3d.case_source import CaseSource, Dataset
from girih_data3d.errors import ManifestError
from girih_data3d.formats.cases import make_dataset, make_source
from girih_data3d.formats.format import Format
from girih_data3d.formats.listing import Listing, find_root, list_folder
from girih_data3d.formats.table import Row, read_csv

NAME = "ct-rate"
VOLUME = re.compile(r"(?P<scan>(?P<patient>(?P<part>train|valid)_\d+)_[a-z]+)_\d+\.nii\.gz")
PARTS = {"train": "train", "valid": "val"}
"""Beginning of the folders' names -> official part."""
INNER = ("train", "train_fixed", "valid", "valid_fixed")
TABLES = {"train": ("train_metadata.csv",), "valid": ("validation_metadata.csv", "valid_metadata.csv")}
NUMBER = r"([0-9]+\.?[0-9]*|\.[0-9]+)"
PAIR = re.compile(rf"\[?\s*{NUMBER}(?:\s*[,;]\s*|\s+){NUMBER}\s*\]?")
"""How XYSpacing is written: [0.7, 0.7]."""
COLUMNS = {"VolumeName": (), "RescaleSlope": (), "RescaleIntercept": (), "XYSpacing": (), "ZSpacing": ()}


def read(
    folder: Path,
    *,
    keep: Literal["scan", "patient", "all"] = "scan",
    seed: int = 0,
    release: Literal["auto", "original", "fixed"] = "auto",
    chest_only: bool = True,
    partial: bool = False,
) -> Dataset:
    """Read `{train, valid}/train_1/train_1_a/train_1_a_1.nii.gz` (patient, scan, reconstruction) and `metadata`.

    The headers of the original files hold neither voxel sizes nor Hounsfield units: slope, intercept and spacing are
    those of `metadata/{train, validation}_metadata.csv`, columns VolumeName, RescaleSlope, RescaleIntercept, XYSpacing
    ("[0.7, 0.7]") and ZSpacing, as the authors' loader takes them. In the second release, folders `train_fixed` and
    `valid_fixed`, voxels and headers are right, and these numbers would spoil them once more; they are read as they
    are. Of both releases a column SeriesInstanceUID is taken, where the table has one.

    Args:
        folder: that holds train or train_fixed, or the one above.
        keep: one reconstruction of each "scan" (two of one scan are nearly the same image), of each "patient", or
            "all"; the choice depends on `seed` and names only.
        seed: of that choice.
        release: which files; "auto" takes the fixed ones where both are there.
        chest_only: leave out the volumes of `metadata/no_chest_{train, valid}.txt`, where there is such a list.
        partial: take the files that are there, though the table lists others.

    Raises:
        ManifestError: another layout, no table for original files, a file without a row, a row without a file, a name
            that is no volume's, or numbers that cannot be.
    """
    root = find_root(folder, _is_root, "train or train_fixed (valid or valid_fixed)", inner=INNER)
    sources: list[CaseSource] = []
    passed_over: list[str] = []
    for begin, part in PARTS.items():
        place = _place(root, begin, release)
        if place is None:
            continue
        rows = _rows(root, begin)
        if rows is None and not place.endswith("_fixed"):
            raise ManifestError(
                f"{root.folder / place}: no metadata/{TABLES[begin][0]} in {root.folder}, which has the slopes and "
                "voxel sizes of these files"
            )
        others = _no_chest(root, begin) if chest_only else frozenset()
        files = {name: path for name, path in _files(root.folder / place, begin).items() if name not in others}
        passed_over += [f"{name}: shows no chest" for name in sorted(others)]
        wanted = [name for name in rows or () if name not in others and name not in files]
        if wanted and not partial:
            raise ManifestError(
                f"{_expected(root.folder / place, wanted[0])}: no such file ({len(wanted)} such rows of the table); "
                "partial=true takes the files that are there"
            )
        cases = {name: _case(name, path, part, rows, fixed=place.endswith("_fixed")) for name, path in files.items()}
        sources += [cases[name] for name in _kept(cases, keep, seed)]
    if not sources:
        raise ManifestError(
            f"{root.folder}: no volumes such as train_1/train_1_a/train_1_a_1.nii.gz (release {release})"
        )
    return make_dataset(root.folder, NAME, (), sources, passed_over)


def _is_root(listing: Listing) -> bool:
    return any(f"{begin}{end}" in listing.folders for begin in PARTS for end in ("", "_fixed"))


def _place(root: Listing, begin: str, release: str) -> str | None:
    """Return the folder of a part's files."""
    names = {"original": (begin,), "fixed": (f"{begin}_fixed",), "auto": (f"{begin}_fixed", begin)}[release]
    return next((name for name in names if name in root.folders), None)


def _files(folder: Path, begin: str) -> dict[str, Path]:
    """Return the volumes of a part by name."""
    found: dict[str, Path] = {}
    for patient in list_folder(folder).folders:
        for scan in list_folder(folder / patient).folders:
            listing = list_folder(folder / patient / scan)
            for name in listing.files:
                match = VOLUME.fullmatch(name)
                if match is None or (match["patient"], match["scan"]) != (patient, scan):
                    raise ManifestError(f"{listing.folder / name}: wanted a name such as {scan}_1.nii.gz here")
                if match["part"] != begin:
                    raise ManifestError(
                        f"{listing.folder / name}: a volume of {match['part']}, but {folder} is of {begin}"
                    )
                found[name] = listing.folder / name
    return found


def _expected(folder: Path, name: str) -> Path:
    match = VOLUME.fullmatch(name)
    return folder / name if match is None else folder / match["patient"] / match["scan"] / name


def _rows(root: Listing, begin: str) -> dict[str, Row] | None:
    """Return the rows of a part's table by volume; None if there is no table."""
    path = _beside(root, TABLES[begin])
    if path is None:
        return None
    rows: dict[str, Row] = {}
    for row in read_csv(path, COLUMNS, {"SeriesInstanceUID": ()}):
        name = row.text("VolumeName")
        name = name if name.endswith(".nii.gz") else f"{name}.nii.gz"
        match = VOLUME.fullmatch(name)
        if match is None or match["part"] != begin:
            raise ManifestError(f"{row.where}: VolumeName is {name!r}, wanted a name such as {begin}_1_a_1.nii.gz")
        if name in rows:
            raise ManifestError(f"{row.where}: {name} is there twice, first in {rows[name].where}")
        rows[name] = row
    return rows


def _no_chest(root: Listing, begin: str) -> frozenset[str]:
    """Return the names of volumes that show no chest."""
    path = _beside(root, (f"no_chest_{begin}.txt",))
    if path is None:
        return frozenset()
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: not a readable list in UTF-8: {error}") from error
    names = (re.split(r"[/\\]", line.strip())[-1] for line in lines if line.strip())
    return frozenset(name if name.endswith(".nii.gz") else f"{name}.nii.gz" for name in names)


def _beside(root: Listing, names: Iterable[str]) -> Path | None:
    """Return the first of these files, in the folder metadata or beside it."""
    inside = list_folder(root.folder / "metadata").names if "metadata" in root.folders else frozenset[str]()
    for name in names:
        if name in inside:
            return root.folder / "metadata" / name
        if name in root.files:
            return root.folder / name
    return None


def _kept(names: Collection[str], keep: str, seed: int) -> list[str]:
    """Return one name of each group, that of the smallest SHA-256 of "<seed>/<name>"; or all."""
    if keep == "all":
        return sorted(names)
    groups: dict[str, list[str]] = {}
    for name in names:
        match = VOLUME.fullmatch(name)
        if match is not None:
            groups.setdefault(match[keep], []).append(name)
    chosen = (
        min(group, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest()) for group in groups.values()
    )
    return sorted(chosen)


def _case(name: str, path: Path, part: str, rows: dict[str, Row] | None, *, fixed: bool) -> CaseSource:
    row = None if rows is None else rows.get(name)
    if row is None and not fixed:
        raise ManifestError(f"{path}: no row of the table has this volume")
    numbers = None if fixed else row
    where = str(path) if row is None else row.where
    return make_source(
        where,
        name.removesuffix(".nii.gz"),
        (path,),
        patient_id="_".join(name.split("_")[:2]),
        modality="CT",
        part=part,
        rescale=None if numbers is None else (numbers.number("RescaleSlope"), numbers.number("RescaleIntercept")),
        spacing_zyx_mm=None if numbers is None else _spacing(numbers),
        series_uid=None if row is None else row["SeriesInstanceUID"],
    )


def _spacing(row: Row) -> tuple[float, float, float]:
    """Return the voxel size along z, y (of rows, DICOM's first number) and x."""
    match = PAIR.fullmatch(row["XYSpacing"])
    if match is None:
        raise ManifestError(f"{row.where}: XYSpacing is {row['XYSpacing']!r}, wanted two numbers such as [0.7, 0.7]")
    return row.number("ZSpacing"), float(match[1]), float(match[2])


FORMAT = Format(
    name=NAME,
    title="CT-RATE",
    home="CT-RATE on Hugging Face (on request)",
    licence="CC BY-NC-SA 4.0, no redistribution",
    read=read,
    unverified=(
        "whether the two numbers of XYSpacing ever differ, and that the first is that of rows",
        "that voxels and headers of the fixed release need nothing of the table (as its users report)",
    ),
)
