"""D01, Medical Segmentation Decathlon, task 7: portal venous CT of pancreas and pancreatic masses."""

from pathlib import Path, PurePosixPath
from typing import Any

from girih_data3d.checked_json import read_json
from girih_data3d.errors import ManifestError
from girih_data3d.formats.cases import make_dataset, make_source, refuse_missing
from girih_data3d.formats.format import Counts, Format
from girih_data3d.formats.listing import Listing, find_root, list_folder
from girih_data3d.manifest import CaseSource, Dataset
from girih_data3d.object_rules import Components
from girih_data3d.scan import is_scan, scan_name

NAME = "msd-pancreas"
LABELS = {"0": "background", "1": "pancreas", "2": "cancer"}


def read(folder: Path, *, min_voxels: int = 3, unlabelled: bool = False, partial: bool = False) -> Dataset:
    """Read `Task07_Pancreas/{dataset.json, imagesTr, labelsTr, imagesTs}`.

    Objects are the 26-connected components of label 2, class "cancer"; pancreas and cancer stay as semantic labels.
    Part "train" is imagesTr, "test" is imagesTs, whose labels are not public. Images that dataset.json does not list
    are passed over.

    Args:
        folder: that holds dataset.json, or the one above.
        min_voxels: smaller components are dropped; 3 as in nnDetection's preparation.
        unlabelled: also the images of imagesTs, as cases without labels.
        partial: leave out pairs whose image is not there, and take other numbers than numTraining.

    Raises:
        ManifestError: another layout, other labels than background, pancreas and cancer, a file of a pair is missing,
            or dataset.json counts other cases than it lists.
    """
    root = find_root(
        folder, _is_root, "dataset.json, imagesTr and labelsTr", inner=("imagesTr", "labelsTr", "imagesTs")
    )
    path = root.folder / "dataset.json"
    content = read_json(path)
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict) or {key: str(name).lower() for key, name in labels.items()} != LABELS:
        raise ManifestError(f"{path}: labels are {labels!r}, wanted {LABELS}")
    images = list_folder(root.folder / "imagesTr")
    sources = _labelled(images, content, path, min_voxels, partial)
    listed = {source.images[0].name for source in sources}
    unlisted = [f"imagesTr/{name}" for name in images.files if name not in listed]
    if unlabelled:
        images = list_folder(root.folder / "imagesTs")
        sources += [
            make_source(str(path), scan_name(Path(name)), (images.folder / name,), modality="CT", part="test")
            for name in images.files
            if is_scan(Path(name))
        ]
    return make_dataset(path, NAME, (LABELS["2"],), sources, passed_over=unlisted)


def _is_root(listing: Listing) -> bool:
    return listing.holds("dataset.json", "imagesTr", "labelsTr")


def _labelled(images: Listing, content: dict[str, Any], path: Path, min_voxels: int, partial: bool) -> list[CaseSource]:
    listed = content.get("training")
    if not isinstance(listed, list):
        raise ManifestError(f"{path}: training is {type(listed).__name__}, wanted a list of images with their labels")
    if content.get("numTraining") != len(listed) and not partial:
        raise ManifestError(
            f"{path}: numTraining is {content.get('numTraining')!r}, but {len(listed)} pairs are listed; "
            "partial=true takes them"
        )
    pairs = {}
    for number, entry in enumerate(listed):
        where = f"{path}: training[{number}]"
        image, label = (
            _listed(entry, key, inside, where) for key, inside in (("image", "imagesTr"), ("label", "labelsTr"))
        )
        case_id = scan_name(Path(image))
        if case_id in pairs:
            raise ManifestError(f"{where}: case {case_id!r} is listed twice")
        if image in images.names or not partial:
            pairs[case_id] = (image, label)
    labels = list_folder(images.folder.parent / "labelsTr")
    refuse_missing(images.folder, "image", {case_id: pair[0] for case_id, pair in pairs.items()}, images.names)
    refuse_missing(labels.folder, "label", {case_id: pair[1] for case_id, pair in pairs.items()}, labels.names)
    return [
        make_source(
            str(path),
            case_id,
            (images.folder / image,),
            rule=Components((labels.folder / label,), {2: 0}, min_voxels=min_voxels, known=(1,)),
            semantic=labels.folder / label,
            modality="CT",
            part="train",
        )
        for case_id, (image, label) in pairs.items()
    ]


def _listed(entry: Any, key: str, inside: str, where: str) -> str:
    """Return the name of a listed file; "./imagesTr/a.nii.gz" and "imagesTr/a.nii.gz" are the same."""
    name = entry.get(key) if isinstance(entry, dict) else None
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if len(parts) != 2 or parts[0] != inside:
        raise ManifestError(f"{where}: {key} is {name!r}, wanted ./{inside}/<file>")
    return parts[1]


FORMAT = Format(
    name=NAME,
    title="D01 MSD Task07 Pancreas",
    home="Medical Segmentation Decathlon",
    licence="CC BY-SA 4.0",
    read=read,
    counts=Counts(281, 283, {"train": 156, "val": 40, "test": 85}, official={"train": 281}),
    unverified=(
        "keys and spelling of dataset.json",
        "whether the 283 objects are those of the labels as published or of the corrected ones that nnDetection uses",
    ),
)
