"""D07, PN9: CT of 1 mm voxels as arrays of 0 to 255, with boxes of lung nodules of nine types."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from girih_data3d.case_source import Dataset
from girih_data3d.errors import ManifestError
from girih_data3d.formats.cases import make_dataset, make_source
from girih_data3d.formats.format import Counts, Format
from girih_data3d.formats.listing import Listing, find_root, list_folder
from girih_data3d.formats.table import Row, read_csv
from girih_data3d.object_label import ObjectLabel

NAME = "pn9"
SPLITS = "split_full_with_nodule_9classes"
PARTS = ("train", "val", "test")
TABLES = {"train": "train_anno.csv", "val": "train_anno.csv", "test": "test_anno.csv"}
"""Which table has the nodules of a part: validation scans are in that of the training scans (SANet's reader)."""
SCAN = "_zoom.npy"
SCAN_FOLDERS = ("full", "train", "test", "train/image", "test/image")
TYPES = ("CN", "0-3SN", "3-10SN", "10-30SN", ">30SN", "0-5PSN", ">5PSN", "0-5GGN", ">5GGN")
"""Calcified, solid, part-solid nodules and ground glass by millimetres, as the tables spell them (Mei et al. 2021)."""
AXES = ("z", "y", "x")
COLUMNS: Mapping[str, Sequence[str]] = {
    "pid": (),
    "nodule_class": ("class",),
    **{f"{axis}{end}": () for axis in "xyz" for end in ("min", "max")},
}
BLACKLIST = frozenset({9184, 5181, 7121, 805, 8832})
"""Scans that SANet (Mei et al. 2021, published code) does not train on."""
MODALITY = "CT windowed to 0..255"
"""Not "CT": there are no Hounsfield units, so that only z-scores, or no normalisation at all, make sense."""


def read(
    folder: Path,
    *,
    classes: Literal["nodule", "types"] = "nodule",
    skip_blacklisted: bool = False,
    paint: Literal["ellipsoid", "box", "none"] = "ellipsoid",
    partial: bool = False,
) -> Dataset:
    """Read `full/{pid}_zoom.npy`, and {train, val, test}.txt and {train, test}_anno.csv beside or in their folder.

    The arrays (1, z, y, x) have voxels of 1 mm and values from 0 to 255: prepare them with scheme "zscore" or "none",
    and without resampling. A pid is a number in the tables and text with zeros in front in file names and lists; they
    are compared as numbers. Boxes count voxels from 0, both ends inside (many have zmin = zmax), as SANet reads them; a
    row of six zeros says that there is no nodule, and a scan without any row is unlabelled (`passed_over` names it).
    Scans may also lie in folders train and test, as for nnDetection.

    Args:
        folder: the one with full and the tables.
        classes: "nodule" is one class, as in the paper; "types" are the nine of the tables.
        skip_blacklisted: leave out the five training scans that SANet leaves out; the paper counts them.
        paint: masks made of the boxes; "none" for a detector that needs none.
        partial: leave out scans of the lists that are not there.

    Raises:
        ManifestError: only slices as .jpg, no scans, lists or tables, a scan in two lists or in none, a scan of a list
            that is not there, a row of a scan that no list has, one that is there twice, or one that cannot be.
    """
    root = find_root(folder, lambda at: any(name in at.folders for name in ("full", "img", "train")), "full, train.txt")
    scans = _scans(root)
    tables = root.folder / SPLITS if "train.txt" not in root.files and SPLITS in root.folders else root.folder
    part_of = _lists(tables)
    missing = [number for number in part_of if number not in scans]
    if missing and not partial:
        raise ManifestError(
            f"{root.folder}: no scan of pid {missing[0]} of {part_of[missing[0]]}.txt ({len(missing)} such scans); "
            "leave them out with partial=true"
        )
    for number, path in scans.items():
        if number not in part_of:
            raise ManifestError(f"{path}: pid {number} is in none of the lists train.txt, val.txt and test.txt")
    objects = _objects(tables, part_of, classes)
    skipped = BLACKLIST if skip_blacklisted else frozenset()
    sources = [
        make_source(
            str(path),
            path.name.removesuffix(SCAN),
            (path,),
            objects=tuple(objects[number]) if number in objects else None,
            paint=paint,
            modality=MODALITY,
            spacing_zyx_mm=(1.0, 1.0, 1.0),
            part=part_of[number],
        )
        for number, path in scans.items()
        if part_of[number] == "test" or number not in skipped
    ]
    passed_over = [f"{scans[n].name}: blacklisted" for n in sorted(skipped) if n in scans and part_of[n] != "test"]
    passed_over += [f"pid {number} of {part_of[number]}.txt: no scan" for number in missing]
    passed_over += [f"{scans[n].name}: no row, taken as unlabelled" for n in scans if n not in objects]
    return make_dataset(root.folder, NAME, TYPES if classes == "types" else ("nodule",), sources, passed_over)


FORMAT = Format(
    name=NAME,
    title="D07 PN9",
    home="SANet, the authors' repository",
    licence="non-commercial research only",
    read=read,
    counts=Counts(
        images=8798,
        objects=40436,
        parts={"train": 6037, "val": 670, "test": 2091},
        official={"train": 6037, "val": 670, "test": 2091},
    ),
    unverified=(
        "boxes count voxels from 0, as SANet's reader takes them; nnDetection's script takes them as counted from 1, "
        "and z from 2",
        "which way the axes run in the patient: the arrays have no header",
        "how the folders of the archives are called, beside full",
        "40436 objects: the authors speak of 40439",
    ),
)


def _scans(root: Listing) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in [root.folder / name for name in SCAN_FOLDERS]:
        listing = list_folder(path) if path.is_dir() else Listing(path, (), ())
        for name in listing.files:
            if not name.endswith(SCAN):
                continue
            number = _pid(f"{path / name}", name.removesuffix(SCAN))
            other = found.setdefault(number, path / name)
            if other != path / name:
                raise ManifestError(f"{path / name}: pid {number} is there twice, also as {other}")
    if not found:
        jpg = "; the release as slices (.jpg) is not read, take the .npy files" if "img" in root.folders else ""
        raise ManifestError(f"{root.folder}: no file *{SCAN} in {', '.join(SCAN_FOLDERS)}{jpg}")
    return dict(sorted(found.items()))


def _lists(tables: Path) -> dict[int, str]:
    """Return the part of each pid."""
    parts: dict[int, str] = {}
    for part in PARTS:
        path = tables / f"{part}.txt"
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ManifestError(f"{path}: not a readable list of pids: {error}") from error
        for row, line in enumerate(lines, start=1):
            if line.strip():
                number = _pid(f"{path}: row {row}", line.strip())
                if number in parts:
                    raise ManifestError(f"{path}: row {row}: pid {number} is in {parts[number]}.txt too, wanted once")
                parts[number] = part
    return parts


def _objects(tables: Path, part_of: Mapping[int, str], classes: str) -> dict[int, list[ObjectLabel]]:
    found: dict[int, list[ObjectLabel]] = defaultdict(list)
    for name in dict.fromkeys(TABLES.values()):
        for row in read_csv(tables / name, COLUMNS):
            number = _pid(row.where, row.text("pid"))
            if number not in part_of or TABLES[part_of[number]] != name:
                where = f"{part_of[number]}.txt" if number in part_of else "none of the lists"
                raise ManifestError(f"{row.where}: pid {number} is in {where}, wanted one whose nodules are in {name}")
            label, labels = _label(row, classes), found[number]
            if label in labels:
                raise ManifestError(f"{row.where}: the nodule is there twice")
            labels += [] if label is None else [label]
    return found


def _label(row: Row, classes: str) -> ObjectLabel | None:
    low, high = ([row.whole(f"{axis}{end}", 0) for axis in AXES] for end in ("min", "max"))
    if not any(low + high):
        return None
    name = row["nodule_class"]
    if classes == "types" and name not in TYPES:
        raise ManifestError(f"{row.where}: nodule_class is {name!r}, wanted one of {', '.join(TYPES)}")
    try:
        return ObjectLabel(TYPES.index(name) if classes == "types" else 0, box_zyx=(*low, *(edge + 1 for edge in high)))
    except ValueError as error:
        raise ManifestError(f"{row.where}: {error}") from error


def _pid(where: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ManifestError(f"{where}: pid is {text!r}, wanted digits")
    return int(text)
