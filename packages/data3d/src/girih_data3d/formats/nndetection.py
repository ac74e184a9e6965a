"""Tasks of nnDetection, as they lie in its raw_splitted folder."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from girih_data3d.case_source import CaseSource, Dataset
from girih_data3d.checked_json import is_whole, read_json
from girih_data3d.errors import ManifestError
from girih_data3d.formats.cases import make_dataset, make_source, refuse_missing
from girih_data3d.formats.format import Format
from girih_data3d.formats.listing import Listing, find_root, list_folder
from girih_data3d.formats.nnunet import group_channels, modality_of, read_channels

NAME = "nndetection"
RAW, ENDING = "raw_splitted", ".nii.gz"
RECORDS = ("dataset.json", "dataset.yaml", "dataset.yml")


def read(folder: Path, *, unlabelled: bool = False) -> Dataset:
    """Read `TaskXXX_Name/{dataset.json | dataset.yaml, raw_splitted/{imagesTr, labelsTr, imagesTs, labelsTs}}`.

    Images are {case}_{0000}.nii.gz, one per modality; labels {case}.nii.gz with objects 1..n and {case}.json with
    {"instances": {"1": class, ...}}. The checks are those of nnDetection; labels without images are passed over. Parts
    are "train" and "test"; the folds in preprocessed/ are not read. A dataset.yaml needs PyYAML.

    Args:
        folder: the task's, or the one above.
        unlabelled: also the images of imagesTs if they have no labels.

    Raises:
        ManifestError: another layout, a key of dataset.json that is not as nnDetection wants it, a missing file,
            objects that are not numbered 1..n, or a class that is not among the labels.
    """
    root = find_root(folder, _is_root, f"dataset.json or dataset.yaml, and {RAW}", inner=(RAW,))
    path = root.folder / next(name for name in RECORDS if name in root.files)
    content = _content(path)
    task, classes = root.folder.resolve().name, _classes(path, content)
    if content.get("task") != task:
        raise ManifestError(f"{path}: task is {content.get('task')!r}, wanted the folder's name, {task!r}")
    if content.get("dim", 3) != 3:
        raise ManifestError(f"{path}: dim is {content['dim']!r}, wanted 3")
    channels, raw = read_channels(path, content), root.folder / RAW
    passed_over: list[str] = []
    sources = _cases(raw, "Tr", "train", channels, classes, passed_over, labelled=True)
    if (raw / "imagesTs").is_dir():
        labelled = bool(content.get("test_labels", (raw / "labelsTs").is_dir()))
        if labelled or unlabelled:
            sources += _cases(raw, "Ts", "test", channels, classes, passed_over, labelled=labelled)
        else:
            passed_over += [f"imagesTs/{name}: no labels" for name in list_folder(raw / "imagesTs").files]
    return make_dataset(path, task, classes, sources, passed_over)


def _is_root(listing: Listing) -> bool:
    return RAW in listing.folders and any(name in listing.files for name in RECORDS)


def _content(path: Path) -> Mapping[str, Any]:
    content = read_json(path) if path.suffix == ".json" else _yaml(path)
    if not isinstance(content, dict):
        raise ManifestError(f"{path}: found {type(content).__name__}, wanted an object")
    if path.suffix != ".json":  # where keys of mappings may be numbers
        content = {key: _with_text_keys(value) for key, value in content.items()}
    return content


def _yaml(path: Path) -> Any:
    yaml: Any = importlib.import_module("yaml")  # few need it
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ManifestError(f"{path}: not a readable {path.name}: {error}") from error


def _with_text_keys(value: Any) -> Any:
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else value


def _classes(path: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    labels = content.get("labels")
    if not isinstance(labels, dict) or set(labels) != {str(number) for number in range(len(labels))} or not labels:
        raise ManifestError(f"{path}: labels is {labels!r}, wanted an object with the keys 0, 1, ...")
    return tuple(str(labels[str(number)]) for number in range(len(labels)))


def _cases(
    raw: Path,
    suffix: str,
    part: str,
    channels: tuple[str, ...],
    classes: tuple[str, ...],
    passed_over: list[str],
    *,
    labelled: bool,
) -> list[CaseSource]:
    grouped = group_channels(list_folder(raw / f"images{suffix}"), ENDING, len(channels))
    labels = raw / f"labels{suffix}"
    if labelled:
        there = list_folder(labels).names
        for what, ending in (("label", ENDING), ("classes", ".json")):
            refuse_missing(labels, what, {c: f"{c}{ending}" for c in grouped if f"{c}{ending}" not in there})
        strangers = sorted(there - {f"{case_id}{ending}" for case_id in grouped for ending in (ENDING, ".json")})
        passed_over += [f"{labels.name}/{name}: no images of it" for name in strangers]
    sources = []
    for case_id, files in grouped.items():
        label = labels / f"{case_id}{ENDING}"
        sources.append(
            make_source(
                str(files[0]),
                case_id,
                tuple(files),
                instances=(label,) if labelled else (),
                instance_classes=_instances(labels / f"{case_id}.json", len(classes)) if labelled else None,
                modality=modality_of(channels),
                part=part,
            )
        )
    return sources


def _instances(path: Path, classes: int) -> dict[int, int]:
    content = read_json(path)
    found = content.get("instances") if isinstance(content, dict) else None
    if not isinstance(found, dict):
        raise ManifestError(f"{path}: instances is {found!r}, wanted an object such as {{'1': 0}}")
    if set(found) != {str(number) for number in range(1, len(found) + 1)}:
        raise ManifestError(f"{path}: the instances are {sorted(found)}, wanted '1' to '{len(found)}'")
    for number, index in found.items():
        if not is_whole(index, 0, classes - 1):
            raise ManifestError(f"{path}: instance {number} has class {index!r}, wanted 0 to {classes - 1}")
    return {int(number): index for number, index in found.items()}


FORMAT = Format(
    name=NAME,
    title="nnDetection task",
    home="any dataset of that layout",
    licence="that of the dataset",
    read=read,
)
