"""D06, LUNA16: CT of LIDC-IDRI with lung nodules as points with a diameter, in ten official subsets."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from girih_data3d.case_source import Dataset
from girih_data3d.errors import ManifestError
from girih_data3d.formats.cases import make_dataset, make_source
from girih_data3d.formats.format import Counts, Format
from girih_data3d.formats.listing import Listing, find_file, find_root, list_folder
from girih_data3d.formats.table import Row, read_csv
from girih_data3d.object_label import ObjectLabel

NAME = "luna16"
SUBSETS = tuple(f"subset{number}" for number in range(10))
ANNOTATIONS, EXCLUDED, UIDS = "annotations.csv", "annotations_excluded.csv", "seriesuids.csv"
TABLE_FOLDERS = (".", "evaluationScript/annotations", "evaluationScript/evaluationScript/annotations")
"""Where the challenge's archives put tables."""
COLUMNS: Mapping[str, Sequence[str]] = {
    "seriesuid": (),
    "coordX": (),
    "coordY": (),
    "coordZ": (),
    "diameter_mm": ("diameter",),
}
UNKNOWN_DIAMETER_MM = 10.0
"""The diameter that the challenge's evaluation script gives to excluded findings that have none (-1 in the table)."""
VOXELS = (".raw", ".zraw")


def read(
    folder: Path,
    *,
    excluded: Literal["ignore", "background"] = "ignore",
    paint: Literal["ellipsoid", "box", "none"] = "ellipsoid",
) -> Dataset:
    """Read `subset{0..9}/<seriesuid>.mhd` with `.raw`, annotations.csv and annotations_excluded.csv.

    Centres are world positions in LPS millimetres; where a scan is stored flipped (a TransformMatrix with -1), the
    position decides, not the voxel. The part of a case is its subset, its id the SeriesInstanceUID, dots and all. Fewer
    than the ten subsets are fine: rows of scans that are in none of those there are counted (`passed_over`). With all
    ten, or a seriesuids.csv that does not know the scan, such a row is an error. The scans are scans of LIDC-IDRI.

    Args:
        folder: the one with the subsets.
        excluded: findings that are no nodules of the reference (below 3 mm, or marked by fewer than three readers):
            "ignore" them as the challenge does, where they are neither hits nor false positives, or take them as
            "background", as nnDetection does; then annotations_excluded.csv is not needed.
        paint: masks made of the boxes; "none" for a detector that needs none.

    Raises:
        ManifestError: no subset or table, a scan without voxels, a scan or a nodule twice, or a row that cannot be.
    """
    root = find_root(folder, lambda at: any(name in SUBSETS for name in at.folders), f"{SUBSETS[0]} to {SUBSETS[-1]}")
    present = [name for name in SUBSETS if name in root.folders]
    scans: dict[str, tuple[str, Path]] = {}
    for subset, uid, path in ((name, *scan) for name in present for scan in _scans(root.folder / name)):
        other = scans.setdefault(uid, (subset, path))[1]
        if other != path:
            raise ManifestError(f"{path}: scan {uid} is there twice, also as {other}")
    known = _known_uids(root)
    tables = {ANNOTATIONS: False, EXCLUDED: True} if excluded == "ignore" else {ANNOTATIONS: False}
    objects: dict[str, list[ObjectLabel]] = defaultdict(list)
    passed_over: list[str] = []
    for table, ignore in tables.items():
        absent = 0
        for row in read_csv(_find_table(root, table), COLUMNS):
            uid = row.text("seriesuid")
            if uid not in scans and (len(present) == len(SUBSETS) or (known is not None and uid not in known)):
                raise ManifestError(f"{row.where}: seriesuid {uid!r} is no scan in {', '.join(present)}, wanted one")
            label = _label(row, ignore=ignore)
            if not ignore and label in objects[uid]:
                raise ManifestError(f"{row.where}: the nodule at {list(label.center_ras_mm or ())} is there twice")
            if uid in scans:
                objects[uid].append(label)
            absent += uid not in scans
        if absent:
            passed_over.append(f"{table}: {absent} rows of scans in the {len(SUBSETS) - len(present)} absent subsets")
    sources = [
        make_source(
            str(path),
            uid,
            (path,),
            objects=tuple(objects.get(uid, ())),
            paint=paint,
            modality="CT",
            series_uid=uid,
            part=subset,
        )
        for uid, (subset, path) in scans.items()
    ]
    return make_dataset(root.folder, NAME, ("nodule",), sources, passed_over)


FORMAT = Format(
    name=NAME,
    title="D06 LUNA16",
    home="LUNA16 challenge",
    licence="CC BY 4.0 (scans: CC BY 3.0, LIDC-IDRI)",
    read=read,
    counts=Counts(
        images=888,
        objects=1186,
        parts={"train": 711, "val": 88, "test": 89},
        official={name: 89 if number < 8 else 88 for number, name in enumerate(SUBSETS)},
    ),
    unverified=(
        "subsets 0 to 7 have 89 scans, 8 and 9 have 88",
        "no row has a centre outside of its scan",
        "the licence of the annotations",
        "patients: the files do not tell them, and LIDC-IDRI-0332, of two scans in LIDC-IDRI, may be there twice; the "
        "SeriesInstanceUIDs of LIDC-IDRI tell whose scan is whose",
    ),
)


def _scans(subset: Path) -> list[tuple[str, Path]]:
    """Return (SeriesInstanceUID, header) of each scan."""
    listing = list_folder(subset)
    if not listing.files and subset.name in listing.folders:  # an archive unpacked into a folder of its name
        return _scans(subset / subset.name)
    found = []
    for name in listing.files:
        uid, dot, suffix = name.rpartition(".")
        if dot and suffix == "mhd":
            if not any(uid + voxels in listing.names for voxels in VOXELS):
                raise ManifestError(f"{subset / (uid + VOXELS[0])}: no such file, the voxels of {name}")
            found.append((uid, subset / name))
    if not found:
        raise ManifestError(f"{subset}: no .mhd file in it ({len(listing.names)} entries)")
    return found


def _known_uids(root: Listing) -> frozenset[str] | None:
    """Return the scans that seriesuids.csv lists, a table without a header; None without it."""
    path = find_file(root.folder, UIDS, TABLE_FOLDERS)
    if path is None:
        return None
    try:
        words = path.read_text(encoding="utf-8-sig").replace(",", " ").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: not a readable CSV file in UTF-8: {error}") from error
    return frozenset(words)


def _find_table(root: Listing, name: str) -> Path:
    found = find_file(root.folder, name, TABLE_FOLDERS)
    if found is None:
        hint = "; without it: option excluded=background" if name == EXCLUDED else ""
        raise ManifestError(f"{root.folder / name}: no such file, also not in {TABLE_FOLDERS[1]}{hint}")
    return found


def _label(row: Row, *, ignore: bool) -> ObjectLabel:
    x, y, z, diameter = (row.number(name) for name in ("coordX", "coordY", "coordZ", "diameter_mm"))
    if ignore and diameter < 0:
        diameter = UNKNOWN_DIAMETER_MM
    try:
        return ObjectLabel(0, ignore=ignore, center_ras_mm=(-x, -y, z), diameter_mm=diameter)
    except ValueError as error:
        raise ManifestError(f"{row.where}: {error}") from error
