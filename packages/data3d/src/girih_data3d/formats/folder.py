"""A plain folder: scans and label files that belong together by their names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from girih_data3d.case_source import CaseSource, Dataset
from girih_data3d.errors import ManifestError
from girih_data3d.formats.cases import make_dataset, make_source
from girih_data3d.formats.format import Format
from girih_data3d.formats.listing import Listing, find_root, list_folder
from girih_data3d.object_rules import Components
from girih_data3d.scan import is_scan, scan_name

NAME = "folder"
Kind = Literal["instances", "classes", "semantic"]


def read(
    folder: Path,
    *,
    images: str = "images",
    labels: str = "labels",
    image_suffix: str = "",
    label_suffix: str = "",
    kind: Kind = "instances",
    classes: str = "object",
    min_voxels: int = 3,
    missing: Literal["refuse", "unlabelled", "empty"] = "refuse",
    modality: str = "",
) -> Dataset:
    """Read `images/a.nii.gz` with `labels/a.nii.gz`, or `a_ct.nii.gz` beside `a_seg.nii.gz`.

    A case is a scan file, in any readable format, or a folder of a DICOM series, in the folder of images; its id is the
    file's name without ending and `image_suffix`. Its label file has the same name, then `label_suffix`. Files that are
    no scans are passed over. Other datasets than these can be given by a dataset.json.

    Args:
        folder: that holds the folders of images and labels.
        images: name of the folder of scans; "." is the folder itself.
        labels: name of the folder of label files; "." is the folder itself.
        image_suffix: what the names of scans end in, such as _ct.
        label_suffix: what the names of label files end in instead, such as _seg.
        kind: "instances": every value is one object, all of one class; "classes": value k is class k, counted from 1,
            and objects are 26-connected components; "semantic": tissues, no objects.
        classes: names, separated by commas, of the classes of objects.
        min_voxels: smaller components are dropped, for kind classes.
        missing: what a scan without label file is: refused, "unlabelled", or "empty", known to hold no object; not if
            there is one in a format that cannot be read.
        modality: of all scans, such as CT.

    Raises:
        ManifestError: another layout, a label file without scan, a scan without label file or with one in another
            format, two scans of one name, or several classes of instances.
    """
    names = tuple(name.strip() for name in classes.split(",") if name.strip())
    if kind == "instances" and len(names) != 1:
        raise ManifestError(
            f"{folder}: classes is {classes!r}, wanted one with kind=instances; the format nndetection, or a "
            "dataset.json, says which object is of which class"
        )
    if kind == "classes" and not names:
        raise ManifestError(f"{folder}: classes is {classes!r}, wanted at least one with kind=classes")
    if (images, image_suffix) == (labels, label_suffix):
        raise ManifestError(f"{folder}: scans and label files would be the same files: give label_suffix")

    def is_root(listing: Listing) -> bool:
        return all(name == "." or name in listing.folders for name in (images, labels))

    root = find_root(folder, is_root, f"{_shown(images)} and {_shown(labels)}", inner=(images, labels)).folder
    mixed = images == labels
    here = list_folder(root / images)
    there = here if mixed else list_folder(root / labels)
    series = () if mixed else [name for name in here.folders if images != "." or name != labels]
    scans = _named(here, image_suffix, other=label_suffix if mixed else None, series=series)
    masks = _named(there, label_suffix, other=image_suffix if mixed else None)
    for name, path in masks.items():
        if name not in scans:
            raise ManifestError(f"{path}: a label file without a scan named {name + image_suffix}")
    lost = sorted(set(scans) - set(masks))
    unread = [file for file in there.files if not is_scan(Path(file))]
    beginnings = {file[:end]: file for file in unread for end, character in enumerate(file) if character == "."}
    for name in lost:
        if name + label_suffix in beginnings:
            file = there.folder / beginnings[name + label_suffix]
            raise ManifestError(f"{file}: the label file of {scans[name].name}, in a format that cannot be read")
    if lost and missing == "refuse":
        raise ManifestError(
            f"{scans[lost[0]]}: no label file named {lost[0] + label_suffix} in {root / labels} ({len(lost)} such "
            "scans); missing=unlabelled or missing=empty takes them"
        )
    sources = [
        _case(name, path, masks.get(name), kind, len(names), min_voxels, missing, modality)
        for name, path in sorted(scans.items())
    ]
    passed_over = [f"{labels}/{file}: no scan" for file in unread]
    if not mixed:
        passed_over += [f"{images}/{file}: no scan" for file in here.files if not is_scan(Path(file))]
    return make_dataset(root, root.resolve().name, names if kind != "semantic" else (), sources, passed_over)


def _shown(name: str) -> str:
    return "scan files" if name == "." else f"a folder {name}"


def _named(listing: Listing, suffix: str, *, other: str | None, series: Sequence[str] = ()) -> dict[str, Path]:
    """Return scan files, and folders of series, by their names without ending and suffix.

    `other` is the suffix of what lies among them and is none of them; None: nothing does.
    """
    folder = listing.folder
    named = [(scan_name(Path(file)), file) for file in listing.files if is_scan(Path(file))]
    named += [(name, name) for name in series]
    found: dict[str, Path] = {}
    for name, file in named:
        ours = name.endswith(suffix)
        if other is not None and name.endswith(other) and (not ours or len(other) > len(suffix)):
            continue
        if not ours:
            raise ManifestError(f"{folder / file}: wanted a name that ends in {suffix}")
        stem = name.removesuffix(suffix)
        if stem in found:
            raise ManifestError(f"{folder}: {stem!r} is there twice, {found[stem].name} and {file}")
        found[stem] = folder / file
    return found


def _case(
    name: str, image: Path, mask: Path | None, kind: Kind, classes: int, min_voxels: int, missing: str, modality: str
) -> CaseSource:
    values = tuple(range(1, classes + 1)) if kind == "classes" else None
    rule = None
    if values and mask is not None:
        rule = Components(mask, tuple((value - 1, (value,)) for value in values), min_voxels)
    return make_source(
        str(image),
        name,
        (image,),
        instances=(mask,) if kind == "instances" and mask is not None else (),
        rule=rule,
        objects=() if mask is None and missing == "empty" and kind != "semantic" else None,
        semantic=mask if kind in ("semantic", "classes") else None,
        semantic_values=values,
        modality=modality or None,
    )


FORMAT = Format(
    name=NAME,
    title="plain folder of scans and label files",
    home="your own scans",
    licence="your own",
    read=read,
)
