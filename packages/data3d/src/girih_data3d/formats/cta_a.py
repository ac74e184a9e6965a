"""D08, CTA-A (Bo et al. 2021): CT angiography of the head with masks of intracranial aneurysms."""

import re
from pathlib import Path, PurePosixPath

from girih_data3d.case_source import CaseSource, Dataset
from girih_data3d.errors import ManifestError
from girih_data3d.formats.cases import make_dataset, make_source, refuse_missing
from girih_data3d.formats.format import Counts, Format
from girih_data3d.formats.listing import Listing, find_root, list_folder
from girih_data3d.formats.table import read_csv
from girih_data3d.object_rules import Components
from girih_data3d.scan import is_scan, scan_name

NAME = "cta-a"
CLASS = "aneurysm"
TABLE_COLUMNS = {
    "subset": (),
    "id": (),
    "cta_img_file": ("image", "cta_image_file"),
    "aneurysm_seg_file": ("mask", "aneurysm_mask_file"),
}
SUBSETS = {"train": "train", "training": "train", "val": "val", "valid": "val", "eval": "test", "test": "test"}
"""Names in a table -> part; the authors' code evaluates on "eval"."""
PREFIXES = {"Tr": "train", "Ts": "test", "Ext": "external"}
"""Beginnings of file names -> part."""
MASKS = re.compile(r"mask|label|seg|annotation|(^|[^a-z])ane", re.IGNORECASE)
"""Names of folders of masks."""
DEPTH = 2
"""Folders below the dataset's in which scans are looked for."""


def read(folder: Path, *, external: bool = False, min_voxels: int = 3, other_values: bool = False) -> Dataset:
    """Read a table with the paths, or folders in which image and mask of a case have the same name.

    The table is a CSV file with the columns subset, id, cta_img_file, aneurysm_seg_file (paths from its folder), as
    the authors' code takes it. Without one: every scan file in a folder whose name speaks of masks (mask, label, seg,
    ane), and that has no such folder in it, belongs to the image of the same name in a folder whose name does not;
    Tr... is part "train", Ts... "test" (same hospitals), Ext... "external". Objects are the 26-connected components of
    the masks.

    Args:
        folder: that holds the table, or the folders of images and masks.
        external: also the part "external", of other hospitals, which the paper leaves out.
        min_voxels: smaller components are dropped.
        other_values: take mask values above 1 for aneurysms too, as the authors' code does, and those that touch for
            one; otherwise a case that has them fails.

    Raises:
        ManifestError: neither table nor folders, an unknown subset or file name, a case twice, a path that leaves the
            folder, one file as image and mask, or a file of a pair is missing.
    """
    root = find_root(folder, _is_root, "a .csv table of images and masks, or folders of images and of masks")
    tables = [name for name in root.files if name.lower().endswith(".csv")]
    if len(tables) > 1:
        raise ManifestError(f"{root.folder}: {len(tables)} tables ({', '.join(tables)}), wanted one")
    found = _from_table(root.folder / tables[0]) if tables else _from_folders(root)
    values = tuple(range(1, 256)) if other_values else (1,)
    sources = [_case(*case, values, min_voxels) for case in found if external or case[3] != "external"]
    passed_over = [f"{case_id}: external" for case_id, *_, part in found if part == "external" and not external]
    return make_dataset(root.folder, NAME, (CLASS,), sources, passed_over)


Case = tuple[str, Path, Path, str]
"""Its id, image, mask and part."""


def _case(case_id: str, image: Path, mask: Path, part: str, values: tuple[int, ...], min_voxels: int) -> CaseSource:
    rule = Components(mask, ((0, values),), min_voxels, known=())
    return make_source(str(image), case_id, (image,), rule=rule, modality="CT", part=part)


def _is_root(listing: Listing) -> bool:
    """Return whether a table lies here, or a folder of masks, here or one folder deeper."""
    if any(name.lower().endswith(".csv") for name in listing.files):
        return True
    inside = [list_folder(listing.folder / name) for name in listing.folders]
    return any(map(_is_of_masks, inside)) or any(any(map(MASKS.search, inner.folders)) for inner in inside)


def _is_of_masks(listing: Listing) -> bool:
    return MASKS.search(listing.folder.name) is not None and not any(map(MASKS.search, listing.folders))


def _from_table(path: Path) -> list[Case]:
    there: dict[Path, frozenset[str]] = {}
    cases: list[Case] = []
    for row in read_csv(path, TABLE_COLUMNS):
        subset = row.text("subset").lower()
        if subset not in SUBSETS and not subset.startswith("ext"):
            raise ManifestError(f"{row.where}: subset is {subset!r}, wanted one of {', '.join(SUBSETS)}, external")
        files = []
        for column in ("cta_img_file", "aneurysm_seg_file"):
            name = PurePosixPath(row.text(column).replace("\\", "/"))
            if name.is_absolute() or ".." in name.parts:
                raise ManifestError(f"{row.where}: {column} is {row[column]!r}, wanted a path inside {path.parent}")
            file = path.parent / name
            if file.parent not in there:
                there[file.parent] = list_folder(file.parent).names if file.parent.is_dir() else frozenset()
            if file.name not in there[file.parent]:
                raise ManifestError(f"{row.where}: {column} is {row[column]!r}: no such file")
            files.append(file)
        if files[0] == files[1]:
            raise ManifestError(f"{row.where}: {row['cta_img_file']!r} is both image and mask, wanted two files")
        cases.append((row.text("id"), files[0], files[1], SUBSETS.get(subset, "external")))
    return cases


def _from_folders(root: Listing) -> list[Case]:
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    _collect(root, DEPTH, False, images, masks)
    refuse_missing(root.folder, "mask", {c: path.name for c, path in images.items() if c not in masks})
    refuse_missing(root.folder, "image", {c: path.name for c, path in masks.items() if c not in images})
    return [(case_id, path, masks[case_id], _part(path)) for case_id, path in sorted(images.items())]


def _collect(here: Listing, depth: int, of_masks: bool, images: dict[str, Path], masks: dict[str, Path]) -> None:
    for name in here.files:
        path = here.folder / name
        if is_scan(path):
            other = (masks if of_masks else images).setdefault(scan_name(path), path)
            if other != path:
                raise ManifestError(
                    f"{path}: the {'mask' if of_masks else 'image'} is there twice, here and at {other}"
                )
    for name in here.folders if depth else ():
        inside = list_folder(here.folder / name)
        _collect(inside, depth - 1, of_masks or _is_of_masks(inside), images, masks)


def _part(path: Path) -> str:
    for beginning, part in PREFIXES.items():
        if path.name.startswith(beginning):
            return part
    raise ManifestError(f"{path}: the name begins with none of {', '.join(PREFIXES)}, which tell the part")


FORMAT = Format(
    name=NAME,
    title="D08 CTA-A (Large IA Segmentation)",
    home="Zenodo, record 6801398",
    licence="non-commercial, CC BY-NC-SA 4.0",
    read=read,
    counts=Counts(1338, 1590, {"train": 948, "val": 238, "test": 152}, official={"train": 1186, "test": 152}),
    unverified=(
        "names in the archives: Tr, Ts and Ext with a number, masks in folders of their own under the same names",
        "whether masks hold values above 1",
        "users report one image whose mask has another shape: that case fails when it is prepared",
    ),
)
