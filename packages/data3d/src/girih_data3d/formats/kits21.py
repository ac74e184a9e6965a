"""D03, KiTS21: CT with masks of every kidney, tumour and cyst by three annotators."""

import re
import reprlib
from pathlib import Path
from typing import Literal

from girih_data3d.case_source import CaseSource, Dataset
from girih_data3d.errors import ManifestError
from girih_data3d.formats.cases import make_dataset, make_source
from girih_data3d.formats.format import Counts, Format
from girih_data3d.formats.listing import Listing, find_root, list_folder
from girih_data3d.object_rules import Components, ObjectRule, Votes

NAME = "kits21"
CLASSES = ("tumor", "cyst")
KIDNEY, TUMOR, CYST = 1, 2, 3
"""Values in aggregated_MAJ_seg.nii.gz."""
IMAGE, MAJORITY = "imaging.nii.gz", "aggregated_MAJ_seg.nii.gz"
CASE = re.compile(r"case_\d{5}")
MASK = re.compile(r"(kidney|tumor|cyst)_instance-(\d+)_annotation-(\d+)\.nii\.gz")
ANNOTATORS = {1, 2, 3}


def read(
    folder: Path,
    *,
    objects: Literal["instances", "components"] = "instances",
    min_voxels: int = 3,
    partial: bool = False,
) -> Dataset:
    """Read `case_00000/{imaging.nii.gz, aggregated_MAJ_seg.nii.gz, segmentations}`, whatever the axes of the files.

    Semantic labels are the majority vote: 1 kidney, 2 tumour, 3 cyst. There is no official split. A case without masks
    of single tumours or cysts has none of them, which its majority vote has to confirm.

    Args:
        folder: `data` of the challenge's repository, or the repository itself.
        objects: "instances": each tumour and cyst by itself, voxels that two of its three annotators marked
            (`segmentations/{tumor, cyst}_instance-{i}_annotation-{j}.nii.gz`), so that those that touch stay apart;
            "components": 26-connected components of tumour and of cyst in the majority vote, of which those that
            touch are one.
        min_voxels: smaller components are dropped; instances never are.
        partial: leave out cases without imaging.nii.gz, which is downloaded apart from the masks.

    Raises:
        ManifestError: no cases, a case without image or majority vote, an object without all three annotations, or a
            file among them with a name that is none of theirs.
    """
    root = find_root(_data(folder), _is_root, "folders case_00000, ...")
    sources = []
    passed_over = []
    for name in root.folders:
        if CASE.fullmatch(name) is None:
            continue
        case = list_folder(root.folder / name)
        if partial and IMAGE not in case.files:
            passed_over.append(f"{name}: no {IMAGE}")
            continue
        for wanted, hint in ((IMAGE, "; the challenge's get_imaging downloads it"), (MAJORITY, "")):
            if wanted not in case.files:
                raise ManifestError(f"{case.folder / wanted}: no such file, of case {name!r}{hint}")
        sources.append(_case(case, objects, min_voxels))
    return make_dataset(root.folder, NAME, CLASSES, sources, passed_over)


def _is_root(listing: Listing) -> bool:
    return any(map(CASE.fullmatch, listing.folders))


def _data(folder: Path) -> Path:
    """Return where a clone of the repository keeps its data, two folders deep; else the folder itself."""
    inside = folder / "kits21" / "data"
    return inside if inside.is_dir() else folder


def _case(case: Listing, objects: str, min_voxels: int) -> CaseSource:
    majority = case.folder / MAJORITY
    rule: ObjectRule = Components(majority, ((0, (TUMOR,)), (1, (CYST,))), min_voxels)
    known: tuple[int, ...] = (KIDNEY, TUMOR, CYST)
    if objects == "instances":
        rule = votes = _votes(case)
        known = known if votes.objects else (KIDNEY,)
    image = case.folder / IMAGE
    return make_source(
        str(image), case.folder.name, (image,), rule=rule, semantic=majority, semantic_values=known, modality="CT"
    )


def _votes(case: Listing) -> Votes:
    """Return the objects of a case, tumours first, by their numbers."""
    if "segmentations" not in case.folders:
        raise ManifestError(
            f"{case.folder / 'segmentations'}: no such folder, of the masks of single objects; "
            "objects=components does without"
        )
    masks = list_folder(case.folder / "segmentations")
    found: dict[tuple[int, int], dict[int, Path]] = {}
    for name in masks.files:
        match = MASK.fullmatch(name)
        if match is None:
            raise ManifestError(
                f"{masks.folder / name}: wanted {{kidney, tumor, cyst}}_instance-i_annotation-j.nii.gz; "
                f"found {reprlib.repr(list(masks.files))}"
            )
        if match[1] in CLASSES:
            place = CLASSES.index(match[1]), int(match[2])
            found.setdefault(place, {})[int(match[3])] = masks.folder / name
    for (index, number), files in found.items():
        if set(files) != ANNOTATORS:
            raise ManifestError(
                f"{masks.folder}: {CLASSES[index]}_instance-{number} has the annotations {sorted(files)}, "
                f"wanted {sorted(ANNOTATORS)}"
            )
    objects = tuple(
        (place[0], tuple(path for _, path in sorted(files.items()))) for place, files in sorted(found.items())
    )
    return Votes(objects, readers=len(ANNOTATORS))


FORMAT = Format(
    name=NAME,
    title="D03 KiTS21",
    home="KiTS21 challenge",
    licence="CC BY-NC-SA 4.0",
    read=read,
    counts=Counts(300, 826, {"train": 204, "val": 51, "test": 45}),
    unverified=(
        "whether the 826 objects are those of objects=instances",
        "that every tumour and cyst has exactly three annotations",
        "values 1 kidney, 2 tumour, 3 cyst of the majority vote",
    ),
)
