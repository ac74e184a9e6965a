"""D02, RibFrac: CT with a numbered mask and a type of every rib fracture."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from girih_data3d.case_source import CaseSource, Dataset
from girih_data3d.errors import ManifestError
from girih_data3d.formats.cases import make_dataset, make_source, refuse_missing
from girih_data3d.formats.format import Counts, Format
from girih_data3d.formats.listing import Listing, find_root, list_folder
from girih_data3d.formats.table import Row, read_csv

NAME = "ribfrac"
TABLE = re.compile(r"ribfrac-(train|val|test)-info.*\.csv", re.IGNORECASE)
SCAN = re.compile(r"(RibFrac\d+)-(image|label)\.nii(\.gz)?", re.IGNORECASE)
CODES = {1: "displaced", 2: "nondisplaced", 3: "buckle", 4: "segmental"}
UNDEFINED = -1
FRACTURE = "fracture"
INNER = (
    *(f"ribfrac-train-{what}-{part}" for what in ("images", "labels") for part in (1, 2)),
    *(f"ribfrac-val-{what}" for what in ("images", "labels")),
    "ribfrac-test-images",
)
"""Folders that archives unpack to."""
LABELLED = 500
"""Number of the last case whose labels are public."""
DEPTH = 3
"""Folders below the dataset's in which scans are looked for: the archives unpack to ribfrac-train-images-1/Part1."""


def read(
    folder: Path,
    *,
    classes: Literal["fracture", "codes"] = "fracture",
    undefined: Literal["default", "keep", "ignore"] = "default",
    unlabelled: bool = False,
    partial: bool = False,
) -> Dataset:
    """Read `ribfrac-{train-info-1, train-info-2, val-info}.csv` and `RibFrac{n}-{image, label}.nii.gz` in any folder.

    Objects are those of the label files, by their numbers, which are never made anew. Parts "train" and "val" are those
    of the tables. Columns are public_id, label_id, label_code, in any spelling; label 0 is the background.

    Args:
        folder: that holds the tables and, in it or up to three folders deeper, the scans.
        classes: "fracture" is one class, as in the paper; "codes" are displaced, nondisplaced, buckle and segmental.
        undefined: fractures with code -1: "keep" them as fractures, only with classes "fracture", or "ignore" them
            (real, but neither trained on nor scored; with "codes" they bear the class displaced, for they need one).
            By default they are kept with "fracture" and ignored with "codes".
        unlabelled: also the images above number 500, whose labels are hidden, as part "test".
        partial: leave out cases in the tables whose image is not there.

    Raises:
        ManifestError: no tables, a row that cannot be, a label twice, a case in two tables, a file of a pair is
            missing, a file twice, or a case up to number 500 that is in no table.
    """
    if classes == "codes" and undefined == "keep":
        raise ValueError(f"format {NAME}: undefined is 'keep', which needs classes=fracture: no code has that class")
    root = find_root(folder, _is_root, "ribfrac-*-info*.csv", inner=INNER).folder
    parts, codes = _tables(root)
    images, labels = _scans(root)
    absent = [case_id for case_id in codes if case_id not in images]
    if not partial:
        refuse_missing(root, "image", {case_id: f"{case_id}-image.nii.gz" for case_id in absent})
    wanted = [case_id for case_id in codes if case_id in images]
    refuse_missing(root, "label", {c: f"{c}-label.nii.gz" for c in wanted if c not in labels})
    for case_id, path in (*images.items(), *labels.items()):
        if case_id not in codes and (case_id in labels or int(case_id.removeprefix("RibFrac")) <= LABELLED):
            raise ManifestError(f"{path}: case {case_id!r} is in none of the tables in {root}")
    ignored = undefined == "ignore" or (undefined == "default" and classes == "codes")
    sources = [
        _case(case_id, images[case_id], labels[case_id], codes[case_id], parts[case_id], classes == "codes", ignored)
        for case_id in wanted
    ]
    hidden = {case_id: path for case_id, path in images.items() if case_id not in codes}
    passed_over = [f"{case_id}: no image" for case_id in absent]
    if unlabelled:
        sources += [make_source(str(path), c, (path,), modality="CT", part="test") for c, path in hidden.items()]
    else:
        passed_over += [f"{case_id}: its labels are not public" for case_id in hidden]
    return make_dataset(root, NAME, CODES.values() if classes == "codes" else (FRACTURE,), sources, passed_over)


def _is_root(listing: Listing) -> bool:
    return any(map(TABLE.fullmatch, listing.files))


def _case(
    case_id: str, image: Path, label: Path, codes: Mapping[int, int], part: str, by_code: bool, ignored: bool
) -> CaseSource:
    return make_source(
        str(image),
        case_id,
        (image,),
        instances=(label,),
        instance_classes={number: code - 1 if by_code and code > 0 else 0 for number, code in codes.items()},
        ignore=tuple(number for number, code in codes.items() if code == UNDEFINED and ignored),
        modality="CT",
        part=part,
    )


def _tables(root: Path) -> tuple[dict[str, str], dict[str, dict[int, int]]]:
    """Return of each case its part, and the codes of its objects by their numbers."""
    parts: dict[str, str] = {}
    codes: dict[str, dict[int, int]] = {}
    owner: dict[str, str] = {}
    for name in list_folder(root).files:
        match = TABLE.fullmatch(name)
        if match is None:
            continue
        columns = {"public_id": (), "label_id": (), "label_code": ()}
        for row in read_csv(root / name, columns):
            case_id = _case_id(row)
            if owner.setdefault(case_id, name) != name:
                raise ManifestError(f"{row.where}: case {case_id!r} is in {owner[case_id]} too")
            parts[case_id] = match[1].lower()
            number, code = row.whole("label_id", 0), row.whole("label_code", UNDEFINED, max(CODES))
            if (number == 0) != (code == 0):
                raise ManifestError(
                    f"{row.where}: label {number} has code {code}; only the background has 0, and it has"
                )
            found = codes.setdefault(case_id, {})
            if number in found:
                raise ManifestError(f"{row.where}: label {number} of {case_id} is there twice")
            found[number] = code
    return parts, {case_id: {n: code for n, code in found.items() if n} for case_id, found in codes.items()}


def _case_id(row: Row) -> str:
    text = row.text("public_id")
    match = re.fullmatch(r"ribfrac0*(\d+)", text, re.IGNORECASE)
    if match is None:
        raise ManifestError(f"{row.where}: public_id is {text!r}, wanted RibFrac and a number")
    return f"RibFrac{match[1]}"


def _scans(root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return images and labels by case, wherever they lie."""
    found: dict[str, dict[str, Path]] = {"image": {}, "label": {}}
    for path, match in _matches(root, DEPTH):
        case_id = f"RibFrac{int(match[1][len('RibFrac') :])}"
        other = found[match[2].lower()].setdefault(case_id, path)
        if other != path:
            raise ManifestError(f"{path}: the {match[2]} of {case_id} is there twice, here and at {other}")
    return found["image"], found["label"]


def _matches(folder: Path, depth: int) -> Iterator[tuple[Path, re.Match[str]]]:
    listing = list_folder(folder)
    for name in listing.files:
        match = SCAN.fullmatch(name)
        if match is not None:
            yield folder / name, match
    for name in listing.folders if depth else ():
        yield from _matches(folder / name, depth - 1)


FORMAT = Format(
    name=NAME,
    title="D02 RibFrac",
    home="RibFrac challenge",
    licence="CC BY-NC 4.0",
    read=read,
    counts=Counts(500, 4422, {"train": 336, "val": 84, "test": 80}, official={"train": 420, "val": 80}),
    unverified=(
        "whether every label of the tables has voxels, and every number in the label files a row",
        "whether the 4422 objects include those of code -1",
    ),
)
