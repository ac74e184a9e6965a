"""Any dataset in the Brain Imaging Data Structure: sub-<label>/[ses-<label>/]<datatype>/<entities>_<suffix>.nii.gz."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from girih_data3d.case_source import CaseSource, Dataset
from girih_data3d.errors import ManifestError
from girih_data3d.formats.cases import make_dataset, make_source
from girih_data3d.formats.format import Format
from girih_data3d.formats.listing import Listing, find_root, list_folder
from girih_data3d.formats.table import read_csv
from girih_data3d.grid_checks import Frame

NAME = "bids"
IMAGE = re.compile(r"(?P<id>(?P<entities>.+_)(?P<suffix>[A-Za-z0-9]+))\.nii(\.gz)?")
MODALITIES = {"pet": "PT", "ct": "CT"}
"""Of a datatype; of all others MR."""
TABLE = "participants.tsv"
FRAMES: dict[str | None, Frame | None] = {None: None, "mean": "mean", "first": 0}


def read(
    folder: Path,
    *,
    suffixes: str = "T1w",
    datatypes: str = "anat",
    sessions: Literal["all", "first"] = "all",
    frame: Literal["mean", "first"] | None = None,
    part_column: str = "",
) -> Dataset:
    """Read every `sub-*/[ses-*/]anat/*_T1w.nii.gz`, as it is named in OpenNeuro studies and in ABCD.

    A patient is a subject, with all sessions. Nothing is labelled. Passed over are derivatives, sourcedata and whatever
    else is no sub-<label> folder, subjects without such images, images of other suffixes and of later sessions.

    Args:
        folder: that holds the folders sub-<label>, or the one above.
        suffixes: of the images to take, separated by commas, such as T1w,T2w,FLAIR or bold.
        datatypes: folders to look for them in, separated by commas, such as anat,func.
        sessions: of each subject, "all", or the "first" by name that has such images.
        frame: of images with a time axis: the mean, or the first frame; none: such an image is an error.
        part_column: column of participants.tsv that holds each subject's official part; default: none.

    Raises:
        ManifestError: no sub-<label> folder, a file of another subject or session than its folder's, no image of these
            suffixes (the message says which there are), or a subject that participants.tsv lacks.
    """
    root = find_root(folder, _is_root, "folders sub-<label>")
    wanted = tuple(name.strip() for name in suffixes.split(",") if name.strip())
    types = tuple(name.strip() for name in datatypes.split(",") if name.strip())
    parts = _parts(root, part_column) if part_column else {}
    others: Counter[str] = Counter()
    passed_over = [f"{name}: not a subject" for name in root.folders if not name.startswith("sub-")]
    sources = []
    for subject in root.folders:
        if not subject.startswith("sub-"):
            continue
        taken = None
        for session, datatype, path in _images(root.folder / subject, types):
            match = IMAGE.fullmatch(path.name)
            if match is None or match["suffix"] not in wanted:
                suffix = match["suffix"] if match else path.name
                others[suffix] += 1
                passed_over.append(f"{path.relative_to(root.folder)}: the suffix is {suffix}")
                continue
            begin = subject if session is None else f"{subject}_{session}"
            if not match["entities"].startswith(f"{begin}_"):
                raise ManifestError(f"{path}: wanted a name that begins with {begin}_")
            if sessions == "first" and taken not in (None, session or ""):
                passed_over.append(f"{path.relative_to(root.folder)}: not of the first session")
                continue
            taken = session or ""
            sources.append(_case(path, match["id"], subject, datatype, FRAMES[frame], parts if part_column else None))
        if taken is None:
            passed_over.append(f"{subject}: no image with the suffix {' or '.join(wanted)} in {', '.join(types)}")
    if not sources:
        there = ", ".join(f"{name} ({count})" for name, count in others.most_common(8)) or "none"
        raise ManifestError(
            f"{root.folder}: no images with the suffix {' or '.join(wanted)} in {', '.join(types)}; there are {there}"
        )
    return make_dataset(root.folder, root.folder.resolve().name, (), sources, passed_over)


def _is_root(listing: Listing) -> bool:
    return any(name.startswith("sub-") for name in listing.folders)


def _images(subject: Path, types: tuple[str, ...]) -> Iterator[tuple[str | None, str, Path]]:
    """Yield session, datatype and path of a subject's NIfTI files, sessions by name."""
    here = list_folder(subject)
    levels: list[tuple[str | None, Listing]] = [(None, here)]
    levels += [(name, list_folder(subject / name)) for name in here.folders if name.startswith("ses-")]
    for session, listing in levels:
        for datatype in types:
            if datatype in listing.folders:
                inside = list_folder(listing.folder / datatype)
                for name in inside.files:
                    if name.endswith((".nii", ".nii.gz")):
                        yield session, datatype, inside.folder / name


def _case(
    path: Path, case_id: str, subject: str, datatype: str, frame: Frame | None, parts: dict[str, str] | None
) -> CaseSource:
    if parts is not None and subject not in parts:
        raise ManifestError(f"{path}: subject {subject} is not in {TABLE}")
    return make_source(
        str(path),
        case_id,
        (path,),
        patient_id=subject,
        modality=MODALITIES.get(datatype, "MR"),
        frame=frame,
        part=(parts[subject] or None) if parts is not None else None,
    )


def _parts(root: Listing, column: str) -> dict[str, str]:
    """Return each subject's value of a column of participants.tsv; "n/a" is BIDS' word for none."""
    path = root.folder / TABLE
    found: dict[str, str] = {}
    for row in read_csv(path, {"participant_id": (), column: ()}):
        subject = row.text("participant_id")
        subject = subject if subject.startswith("sub-") else f"sub-{subject}"
        if subject in found:
            raise ManifestError(f"{row.where}: participant {subject} is there twice")
        found[subject] = "" if row[column].lower() == "n/a" else row[column]
    return found


FORMAT = Format(
    name=NAME,
    title="BIDS dataset (OpenNeuro, ABCD, your own)",
    home="wherever the dataset is",
    licence="the dataset's",
    read=read,
    unverified=("that the files of ABCD are named like those of other BIDS datasets",),
)
