"""What the semantic labels of prepared datasets mean: as a file says, else every value is a class of its own."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from girih_data3d import Store
from girih_ssl import DatasetInfo, check_dataset_info

SCHEMA = 1
FIELDS = {"classes", "regions", "activation"}


class LabelMeanings(Mapping[str, DatasetInfo]):
    """The datasets where a case has semantic labels, and what these mean, by the dataset's name.

    A dataset of which `told` says nothing has its label values as classes, exclusive of each other, as nnU-Net takes
    them. Its cases are opened for that when it is asked for, not before: most objectives never do.
    """

    def __init__(self, stores: Sequence[Store], told: Mapping[str, DatasetInfo]) -> None:
        self._stores = {store.name: store for store in stores if store.index.semantic.any()}
        self._known = {name: told[name] for name in self._stores if name in told}

    def __getitem__(self, name: str) -> DatasetInfo:
        """Return what the labels of a dataset mean.

        Raises:
            KeyError: no such dataset, or no case of it has semantic labels.
            ValueError: no voxel of it is labelled.
            CorruptCaseError: a case is damaged.
        """
        if name not in self._known:
            self._known[name] = info_of_values(self._stores[name])
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stores)

    def __len__(self) -> int:
        return len(self._stores)


def info_of_values(store: Store) -> DatasetInfo:
    """Return every label value above 0 that occurs in a dataset as a class called "label <value>".

    Raises:
        ValueError: no voxel is labelled.
        CorruptCaseError: a case is damaged.
    """
    values = sorted(_values(store))
    if not values:
        raise ValueError(f"dataset {store.name!r} ({store.root}): no voxel has a semantic label above 0")
    return {
        "channels": int(store.index.channels[0]),
        "classes": [f"label {value}" for value in values],
        "regions": [[value] for value in values],
        "activation": "softmax",
    }


def unnamed_labels(store: Store, info: DatasetInfo) -> list[str]:
    """Say which label values above 0 occur in a dataset but are in no region, so that they count as background.

    Raises:
        ValueError: a region has a value above 0 that does not occur; dataset, class and the values are named.
        CorruptCaseError: a case is damaged.
    """
    values = _values(store)
    for name, region in zip(info["classes"], info["regions"], strict=True):
        if absent := sorted(set(region) - values - {0}):
            raise ValueError(
                f"dataset {store.name!r} ({store.root}): class {name!r} is of labels {absent} that never occur in it; "
                f"those that do: {sorted(values)}"
            )
    unnamed = sorted(values.difference(*info["regions"]))
    return [f"dataset {store.name!r}: labels {unnamed} are in no class and count as background"] if unnamed else []


def _values(store: Store) -> set[int]:
    return {int(value) for case_id in store for value in store[case_id].foreground[:, 0]}


def read_meanings(path: Path, stores: Sequence[Store]) -> dict[str, DatasetInfo]:
    """Read a JSON file that says what semantic labels mean.

    {"schema": 1, "datasets": {"<name>": {"classes": ["liver", "tumour"], "regions": [[1, 2], [2]], "activation":
    "sigmoid"}}}: region r is the voxels whose label is in regions[r]; with "softmax" regions are disjoint.

    Raises:
        ValueError: it cannot be read, a field is missing, unknown or wrong, or names a dataset that is not among
            `stores`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict) or set(content) != {"schema", "datasets"} or content["schema"] != SCHEMA:
        raise ValueError(f'{path}: wanted {{"schema": {SCHEMA}, "datasets": {{...}}}} and nothing else')
    channels = {store.name: int(store.index.channels[0]) for store in stores}
    if not isinstance(content["datasets"], dict):
        raise ValueError(f"{path}: datasets is {content['datasets']!r}, wanted an object")
    if unknown := sorted(set(content["datasets"]) - set(channels)):
        raise ValueError(f"{path}: dataset {unknown[0]!r} is not among those of --data: {sorted(channels)}")
    return {name: _info(path, name, told, channels[name]) for name, told in content["datasets"].items()}


def _info(path: Path, name: str, told: Any, channels: int) -> DatasetInfo:
    if not isinstance(told, dict) or set(told) != FIELDS:
        found = sorted(told) if isinstance(told, dict) else told
        raise ValueError(f"{path}: {name}: found {found!r}, wanted the fields {sorted(FIELDS)}")
    info = cast(DatasetInfo, {"channels": channels, **told})
    try:
        check_dataset_info(name, info)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return info
