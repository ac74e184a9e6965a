"""Raw datasets of nnU-Net, version 2 and 1."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from girih_data3d.case_source import CaseSource, Dataset
from girih_data3d.checked_json import is_whole, read_json
from girih_data3d.errors import ManifestError
from girih_data3d.formats.cases import make_dataset, make_source, refuse_missing
from girih_data3d.formats.format import Format
from girih_data3d.formats.listing import Listing, find_root, list_folder
from girih_data3d.object_rules import Components

NAME = "nnunet"
INNER = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")


def read(
    folder: Path, *, objects: str = "", min_voxels: int = 3, unlabelled: bool = False, partial: bool = False
) -> Dataset:
    """Read `Dataset001_Name/{dataset.json, imagesTr, labelsTr, imagesTs, labelsTs}`.

    Images are {case}_{0000}{file_ending}, one per channel; labels {case}{file_ending}. dataset.json has channel_names
    (version 1: modality), labels (version 2: {"name": value, or [values] of a region}; version 1: {"value": "name"}),
    numTraining, file_ending (version 1: .nii.gz). Every label file stays as semantic labels and holds no other values
    than these; that of "ignore" is a value like any other in it. Parts are "train" and "test" (imagesTs with labelsTs).

    Args:
        folder: that holds dataset.json, or the one above.
        objects: names of labels, separated by commas, that are classes of objects: their 26-connected components (of a
            region: those of all its values together); neither the background nor "ignore" is one. Default: none, the
            cases have semantic labels only.
        min_voxels: smaller components are dropped.
        unlabelled: also the images of imagesTs that have no labels.
        partial: take the cases that are there, though numTraining says otherwise.

    Raises:
        ManifestError: another layout, a label or channel that cannot be, a name in `objects` that is no label, a file
            of a pair or a channel is missing, or another number of cases than numTraining.
    """
    root = find_root(folder, _is_root, "dataset.json and imagesTr", inner=INNER)
    path = root.folder / "dataset.json"
    content = read_json(path)
    if not isinstance(content, dict):
        raise ManifestError(f"{path}: found {type(content).__name__}, wanted an object")
    layout = _Layout(root.folder, content, objects, min_voxels)
    sources = layout.cases("imagesTr", "labelsTr", "train", unlabelled=False)
    found, stated = len(sources), content.get("numTraining")
    if stated != found and not partial:
        raise ManifestError(
            f"{path}: numTraining is {stated!r}, but imagesTr has {found} cases; partial=true takes them"
        )
    passed_over = []
    if unlabelled or root.holds("imagesTs", "labelsTs"):
        sources += layout.cases("imagesTs", "labelsTs", "test", unlabelled=unlabelled)
    elif "imagesTs" in root.folders:
        passed_over = [f"imagesTs/{name}: no labelsTs" for name in list_folder(root.folder / "imagesTs").files]
    return make_dataset(path, root.folder.resolve().name, layout.classes, sources, passed_over)


def read_labels(path: Path, content: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the values of each label's name, from either version's dataset.json; several values are a region.

    Raises:
        ManifestError: neither form, a name twice, or a value that is no whole number from 0.
    """
    labels = content.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise ManifestError(f"{path}: labels is {labels!r}, wanted an object")
    if all(isinstance(name, str) for name in labels.values()):  # version 1
        pairs = [(name, int(value) if value.isdecimal() else value) for value, name in labels.items()]
    else:
        pairs = list(labels.items())
    found: dict[str, tuple[int, ...]] = {}
    for name, value in pairs:
        if name in found:
            raise ManifestError(f"{path}: label {name!r} has the values {found[name][0]} and {value}, wanted one")
        values = value if isinstance(value, list) else [value]
        if not values or not all(is_whole(v, 0, 2**15 - 1) for v in values):
            raise ManifestError(f"{path}: label {name!r} has the value {value!r}, wanted whole numbers from 0")
        found[name] = tuple(values)
    return found


def read_channels(path: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the channels, whose numbers have to be 0, 1, ...

    Raises:
        ManifestError: no channels, or other numbers.
    """
    key = next((key for key in ("channel_names", "modality", "modalities") if key in content), "channel_names")
    channels = content.get(key)
    if not isinstance(channels, dict) or not channels:
        raise ManifestError(f"{path}: {key} is {channels!r}, wanted an object such as {{'0': 'CT'}}")
    if set(channels) != {str(number) for number in range(len(channels))}:
        raise ManifestError(f"{path}: {key} has the numbers {sorted(channels)}, wanted 0 to {len(channels) - 1}")
    return tuple(str(channels[str(number)]) for number in range(len(channels)))


def modality_of(channels: tuple[str, ...]) -> str | None:
    """Return the modality that all channels share; None if they differ."""
    names = {"MR" if name.upper() == "MRI" else name for name in channels}
    return names.pop() if len(names) == 1 else None


def group_channels(images: Listing, ending: str, channels: int) -> dict[str, list[Path]]:
    """Return the files of each case in the order of the channels, for names {case}_{0000}{ending}.

    Raises:
        ManifestError: a file of that ending with another name, a channel too many, or one that is missing.
    """
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}", re.DOTALL)
    found: dict[str, dict[int, Path]] = {}
    for name in images.files:
        match = pattern.fullmatch(name)
        path = images.folder / name
        if match is None:
            if name.endswith(ending):
                raise ManifestError(f"{path}: wanted a name such as case_0000{ending}")
        elif int(match[2]) >= channels:
            raise ManifestError(f"{path}: channel {int(match[2])}, but dataset.json has {channels} channels, from 0")
        else:
            found.setdefault(match[1], {})[int(match[2])] = path
    for case_id, files in found.items():
        for channel in range(channels):
            if channel not in files:
                path = images.folder / f"{case_id}_{channel:04}{ending}"
                raise ManifestError(f"{path}: no such file, channel {channel} of case {case_id!r}")
    return {case_id: [files[channel] for channel in range(channels)] for case_id, files in found.items()}


class _Layout:
    """What dataset.json says of the files."""

    def __init__(self, folder: Path, content: Mapping[str, Any], objects: str, min_voxels: int) -> None:
        path = folder / "dataset.json"
        self.folder, self.min_voxels = folder, min_voxels
        self.ending = content.get("file_ending", ".nii.gz")
        if not isinstance(self.ending, str) or not self.ending.startswith("."):
            raise ManifestError(f"{path}: file_ending is {self.ending!r}, wanted one such as '.nii.gz'")
        self.channels = read_channels(path, content)
        labels = read_labels(path, content)
        self.classes = tuple(name.strip() for name in objects.split(",")) if objects.strip() else ()
        for name in self.classes:
            if 0 in labels.get(name, (0,)) or name == "ignore":
                possible = ", ".join(known for known, values in labels.items() if 0 not in values and known != "ignore")
                raise ManifestError(f"{path}: objects names {name!r}, wanted labels from {possible}")
        self.groups = tuple((index, labels[name]) for index, name in enumerate(self.classes))
        self.known = tuple(sorted({value for values in labels.values() for value in values}))

    def cases(self, images: str, labels: str, part: str, *, unlabelled: bool) -> list[CaseSource]:
        listing = list_folder(self.folder / images)
        grouped = group_channels(listing, self.ending, len(self.channels))
        wanted = {case_id: f"{case_id}{self.ending}" for case_id in grouped}
        there: frozenset[str] = frozenset()
        if not unlabelled or (self.folder / labels).is_dir():
            there = list_folder(self.folder / labels).names
        if not unlabelled:
            refuse_missing(self.folder / labels, "label", {c: name for c, name in wanted.items() if name not in there})
        spare = [n for n in there if n.endswith(self.ending) and n.removesuffix(self.ending) not in grouped]
        if spare:
            raise ManifestError(
                f"{self.folder / labels / min(spare)}: a label without images ({len(spare)} such files)"
            )
        return [
            self._case(
                case_id, files, self.folder / labels / wanted[case_id] if wanted[case_id] in there else None, part
            )
            for case_id, files in grouped.items()
        ]

    def _case(self, case_id: str, files: list[Path], label: Path | None, part: str) -> CaseSource:
        rule = Components(label, self.groups, self.min_voxels) if label is not None and self.groups else None
        return make_source(
            str(files[0]),
            case_id,
            tuple(files),
            rule=rule,
            semantic=label,
            semantic_values=self.known if label is not None else None,
            modality=modality_of(self.channels),
            part=part,
        )


def _is_root(listing: Listing) -> bool:
    return listing.holds("dataset.json", "imagesTr")


FORMAT = Format(
    name=NAME,
    title="nnU-Net raw dataset (version 2 or 1)",
    home="any dataset of that layout",
    licence="that of the dataset",
    read=read,
)
