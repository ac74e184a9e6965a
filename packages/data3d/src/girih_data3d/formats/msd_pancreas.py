"""D01, Medical Segmentation Decathlon, task 7: portal venous CT of pancreas and pancreatic masses."""

from pathlib import Path, PurePosixPath
from typing import Any

from girih_data3d.case_source import CaseSource, Dataset
from girih_data3d.checked_json import read_json
from girih_data3d.errors import ManifestError
from girih_data3d.formats.cases import make_dataset, make_source, refuse_missing
from girih_data3d.formats.format import Counts, Format
from girih_data3d.formats.listing import Listing, find_root, list_folder
from girih_data3d.object_rules import Components
from girih_data3d.scan import is_scan, scan_name

NAME = "msd-pancreas"
LABELS = {"0": "background", "1": "pancreas", "2": "cancer"}


def read(folder: Path, *, min_voxels: int = 3, unlabelled: bool = False, partial: bool = False) -> Dataset:
    """Read `Task07_Pancreas/{dataset.json, imagesTr, labelsTr, imagesTs}`.

    Objects are the 26-connected components of label 2, class "cancer"; pancreas and cancer stay as semantic labels.
    Part "train" is imagesTr, "test" is imagesTs, whose labels are not public. Images that dataset.json does not list
    are passed over. Image and label of a pair have the same name.

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
    listed = _listed_pairs(content, path, partial)
    absent = [name for name in listed if name not in images.names] if partial else []
    sources = _labelled(images, [name for name in listed if name not in absent], min_voxels)
    passed_over = [f"imagesTr/{name}: no such file" for name in absent]
    passed_over += [f"imagesTr/{name}: not in dataset.json" for name in images.files if name not in listed]
    if unlabelled or "imagesTs" in root.folders:
        images = list_folder(root.folder / "imagesTs")
        hidden = [name for name in images.files if is_scan(Path(name))]
        if unlabelled:
            sources += [
                make_source(str(path), scan_name(Path(name)), (images.folder / name,), modality="CT", part="test")
                for name in hidden
            ]
        else:
            passed_over += [f"imagesTs/{name}: its labels are not public" for name in hidden]
    return make_dataset(path, NAME, (LABELS["2"],), sources, passed_over)


def _is_root(listing: Listing) -> bool:
    return listing.holds("dataset.json", "imagesTr", "labelsTr")


def _listed_pairs(content: dict[str, Any], path: Path, partial: bool) -> list[str]:
    """Return the names of the images and of their labels, which are the same."""
    listed = content.get("training")
    if not isinstance(listed, list):
        raise ManifestError(f"{path}: training is {type(listed).__name__}, wanted a list of images with their labels")
    if content.get("numTraining") != len(listed) and not partial:
        raise ManifestError(
            f"{path}: numTraining is {content.get('numTraining')!r}, but {len(listed)} pairs are listed; "
            "partial=true takes them"
        )
    names: dict[str, None] = {}
    for number, entry in enumerate(listed):
        where = f"{path}: training[{number}]"
        image, label = (
            _listed(entry, key, inside, where) for key, inside in (("image", "imagesTr"), ("label", "labelsTr"))
        )
        if image != label:
            raise ManifestError(f"{where}: image is {image!r}, label {label!r}: wanted the same name")
        if image in names:
            raise ManifestError(f"{where}: case {scan_name(Path(image))!r} is listed twice")
        names[image] = None
    return list(names)


def _labelled(images: Listing, names: list[str], min_voxels: int) -> list[CaseSource]:
    labels = list_folder(images.folder.parent / "labelsTr")
    case_ids = {name: scan_name(Path(name)) for name in names}
    for what, folder in (("image", images), ("label", labels)):
        refuse_missing(folder.folder, what, {case_ids[name]: name for name in names if name not in folder.names})
    return [
        make_source(
            str(images.folder / name),
            case_ids[name],
            (images.folder / name,),
            rule=Components(labels.folder / name, ((0, (2,)),), min_voxels),
            semantic=labels.folder / name,
            semantic_values=(1, 2),
            modality="CT",
            part="train",
        )
        for name in names
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
