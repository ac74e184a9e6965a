"""AbdomenAtlas: abdominal CT of many public datasets with masks of 9 to 25 structures, one folder a scan."""

import re
from pathlib import Path
from typing import Literal

from girih_data3d.case_source import CaseSource, Dataset
from girih_data3d.errors import ManifestError
from girih_data3d.formats.cases import make_dataset, make_source
from girih_data3d.formats.format import Format
from girih_data3d.formats.listing import Listing, find_root, list_folder

NAME = "abdomenatlas"
SCAN = re.compile(r"BDMAP_[A-Za-z0-9]+")
IMAGE, LABELS, MASKS = "ct.nii.gz", "combined_labels.nii.gz", "segmentations"


def read(folder: Path, *, missing: Literal["refuse", "unlabelled"] = "refuse", partial: bool = False) -> Dataset:
    """Read `BDMAP_00000001/{ct.nii.gz, combined_labels.nii.gz, segmentations/liver.nii.gz}`.

    Semantic labels are those of combined_labels.nii.gz, by the numbers of the release: 1 aorta, 2 gall bladder, 3 left
    kidney, 4 right kidney, 5 liver, 6 pancreas, 7 postcava, 8 spleen, 9 stomach, and in release 1.1 further ones. There
    are no objects. Scans come from datasets such as the Medical Segmentation Decathlon: look for them with
    `girih_data3d.find_leaks` before pre-training.

    Args:
        folder: that holds the folders BDMAP_<number>, or the one above.
        missing: what a scan without combined_labels.nii.gz is: refused, or "unlabelled"; masks of single structures
            are not put together.
        partial: leave out folders without ct.nii.gz.

    Raises:
        ManifestError: no BDMAP folder, one without ct.nii.gz, or one without combined_labels.nii.gz.
    """
    root = find_root(folder, _is_root, "folders BDMAP_<number>")
    passed_over = [f"{name}: not a folder BDMAP_<number>" for name in root.folders if not SCAN.fullmatch(name)]
    sources = []
    for name in root.folders:
        if SCAN.fullmatch(name):
            here = list_folder(root.folder / name)
            if partial and IMAGE not in here.names:
                passed_over.append(f"{name}: no {IMAGE}")
            else:
                sources.append(_case(here, missing == "unlabelled"))
    return make_dataset(root.folder, NAME, (), sources, passed_over)


def _is_root(listing: Listing) -> bool:
    return any(SCAN.fullmatch(name) for name in listing.folders)


def _case(here: Listing, unlabelled: bool) -> CaseSource:
    if IMAGE not in here.names:
        raise ManifestError(f"{here.folder / IMAGE}: no such file; found {sorted(here.names)}; partial=true goes on")
    labelled = LABELS in here.names
    if not labelled and not unlabelled:
        masks = f" (the masks in {MASKS} are not put together)" if MASKS in here.folders else ""
        raise ManifestError(
            f"{here.folder / LABELS}: no such file{masks}; missing=unlabelled takes the scan without labels"
        )
    return make_source(
        str(here.folder),
        here.folder.name,
        (here.folder / IMAGE,),
        semantic=here.folder / LABELS if labelled else None,
        modality="CT",
    )


FORMAT = Format(
    name=NAME,
    title="AbdomenAtlas",
    home="AbdomenAtlas on Hugging Face",
    licence="CC BY-NC-SA 4.0",
    read=read,
    unverified=(
        "the numbers of the structures in combined_labels.nii.gz",
        "whether scans of one patient are known as such: every scan is taken for a patient of its own",
        "the licence of each release",
    ),
)
