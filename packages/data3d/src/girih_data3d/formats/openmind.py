"""OpenMind: 114,000 head and neck MR (and some PET) volumes of 800 OpenNeuro studies, with masks of removed faces."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from girih_data3d.case_source import CaseSource, Dataset
from girih_data3d.errors import ManifestError
from girih_data3d.formats.cases import make_dataset, make_source
from girih_data3d.formats.format import Format
from girih_data3d.formats.listing import Listing, find_root, list_folder
from girih_data3d.formats.table import Row, read_csv
from girih_data3d.scan import scan_name

NAME = "openmind"
TABLE = "openneuro_metadata.csv"
FOLDER = "OpenMind"
OPTIONAL = {"anon_mask_path": (), "anat_mask_path": (), "image_quality_score": (), "derived_from": ()}
EMPTY = ("", "nan", "none")
"""What a cell without a value holds, in lower case."""


def read(
    folder: Path,
    *,
    modalities: str = "",
    max_quality_score: float | None = None,
    derived: bool = True,
    anatomy: bool = False,
    partial: bool = False,
) -> Dataset:
    """Read `openneuro_metadata.csv` and `OpenMind/ds000001/sub-01/[ses-1/]anat/sub-01_T1w.nii.gz`.

    Paths in the columns image_path, anon_mask_path and anat_mask_path are relative to the folder OpenMind, or to that
    of the table if there is none; a path that is there in other upper and lower case letters is taken, and its own
    letters name case and patient. Voxels of the anonymisation mask are not `valid` in patches. A patient is a subject
    of a study. Nothing is labelled.

    Args:
        folder: that holds the table, or the one above.
        modalities: to take, separated by commas, such as T1w,T2w,FLAIR as in the column modality; default: all.
        max_quality_score: leave out volumes with a higher image_quality_score (1 is best, 5 is worst) and those
            without one.
        derived: also volumes computed from others, such as FA and ADC: those with a value in derived_from.
        anatomy: take the anatomy mask as semantic labels; as published 1 is what lies outside of the head.
        partial: leave out rows whose image is not there.

    Raises:
        ManifestError: no table, an unknown column, a row without modality or with a path that leaves the folder, a file
            that is not there, an image twice, or no volume of a modality.
    """
    root = find_root(folder, lambda found: TABLE in found.files, TABLE, inner=(FOLDER,))
    tree = _Tree(root)
    rows = read_csv(root.folder / TABLE, {"image_path": (), "modality": ()}, OPTIONAL)
    wanted = {name.strip().casefold() for name in modalities.split(",") if name.strip()}
    there = {row.text("modality").casefold() for row in rows}
    if wanted - there:
        raise ManifestError(
            f"{root.folder / TABLE}: no modality {sorted(wanted - there)[0]!r}, it has {', '.join(sorted(there))}"
        )
    sources = []
    for row in rows:
        if wanted and row.text("modality").casefold() not in wanted:
            continue
        if not derived and row["derived_from"].lower() not in EMPTY:
            continue
        if max_quality_score is not None and not _is_good(row, max_quality_score):
            continue
        case = _case(row, tree, anatomy, partial)
        if case is not None:
            sources.append(case)
    return make_dataset(root.folder / TABLE, NAME, (), sources)


def _is_good(row: Row, highest: float) -> bool:
    return row["image_quality_score"].lower() not in EMPTY and row.number("image_quality_score") <= highest


def _case(row: Row, tree: "_Tree", anatomy: bool, partial: bool) -> CaseSource | None:
    parts = _parts(row, "image_path")
    image = tree.find(parts)
    if image is None:
        if partial:
            return None
        raise _missing(row, "image_path", tree, parts)
    parts = image.relative_to(tree.base).parts
    subject = next((part for part in parts if part.casefold().startswith("sub-")), None)
    if subject is None or len(parts) < 3:
        raise ManifestError(f"{row.where}: image_path is {row['image_path']!r}, wanted <study>/sub-<id>/.../<file>")
    return make_source(
        row.where,
        "__".join((*parts[:-1], scan_name(Path(parts[-1])))),
        (image,),
        patient_id=f"{parts[0]}__{subject}",
        modality="PT" if row["modality"].casefold() == "pet" else "MR",
        defaced=_mask(row, "anon_mask_path", tree),
        semantic=_mask(row, "anat_mask_path", tree) if anatomy else None,
    )


def _mask(row: Row, column: str, tree: "_Tree") -> Path | None:
    if row[column].lower() in EMPTY:
        return None
    parts = _parts(row, column)
    path = tree.find(parts)
    if path is None:
        raise _missing(row, column, tree, parts)
    return path


def _parts(row: Row, column: str) -> tuple[str, ...]:
    """Return the folders and the name of a path below the folder OpenMind."""
    path = PurePosixPath(row.text(column).replace("\\", "/"))
    parts = path.parts[1:] if path.parts[:1] and path.parts[0].casefold() == FOLDER.casefold() else path.parts
    if path.is_absolute() or ".." in parts or not parts:
        raise ManifestError(f"{row.where}: {column} is {row[column]!r}, wanted a path inside the folder {FOLDER}")
    return parts


def _missing(row: Row, column: str, tree: "_Tree", parts: Sequence[str]) -> ManifestError:
    hint = "; partial=true leaves such rows out" if column == "image_path" else ""
    return ManifestError(f"{row.where}: {column}: {tree.base.joinpath(*parts)}: no such file{hint}")


class _Tree:
    """Finds files whatever the case of their letters; every folder is looked at once."""

    def __init__(self, root: Listing) -> None:
        inside = [name for name in root.folders if name.casefold() == FOLDER.casefold()]
        self.base = root.folder / inside[0] if inside else root.folder
        self._names: dict[Path, dict[str, str]] = {}
        self._folders: dict[tuple[str, ...], Path | None] = {(): self.base}

    def find(self, parts: Sequence[str]) -> Path | None:
        """Return the path of a file; None if it is not there."""
        folder = self._folder(tuple(parts[:-1]))
        return None if folder is None else self._entry(folder, parts[-1])

    def _folder(self, parts: tuple[str, ...]) -> Path | None:
        if parts not in self._folders:
            above = self._folder(parts[:-1])
            found = None if above is None else self._entry(above, parts[-1])
            self._folders[parts] = found if found is not None and found.is_dir() else None
        return self._folders[parts]

    def _entry(self, folder: Path, name: str) -> Path | None:
        if folder not in self._names:
            listing = list_folder(folder)
            self._names[folder] = {n.casefold(): n for n in listing.names} | {n: n for n in listing.names}
        names = self._names[folder]
        found = names.get(name) or names.get(name.casefold())
        return None if found is None else folder / found


FORMAT = Format(
    name=NAME,
    title="OpenMind",
    home="OpenMind on Hugging Face",
    licence="CC BY 4.0; studies of OpenNeuro, most of them CC0",
    read=read,
    unverified=(
        "that masks lie on the grids of their images, though images of a session may share one",
        "that the anonymisation mask is above 0 where the face was removed, and the anatomy mask 1 outside of the head",
        "the licence of the collection",
    ),
)
