"""What the semantic labels of prepared datasets mean: as a file says, else every value is a class of its own."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from girih_data3d import Store
from girih_ssl import DatasetInfo

SCHEMA = 1
FIELDS = {"classes", "regions", "activation"}


class LabelMeanings(Mapping[str, DatasetInfo]):
    """The datasets with semantic labels, and what these mean, by the dataset's name.

    A dataset of which `told` says nothing has its label values as classes, exclusive of each other, as nnU-Net takes
    them. Its cases are opened for that when it is asked for, not before: most objectives never do.
    """

    def __init__(self, stores: Sequence[Store], told: Mapping[str, DatasetInfo]) -> None:
        self._stores = {store.name: store for store in stores if store.index.semantic.all()}
        self._known = {name: told[name] for name in self._stores if name in told}

    def __getitem__(self, name: str) -> DatasetInfo:
        """Return what the labels of a dataset mean.

        Raises:
            KeyError: no such dataset, or not all of its cases have semantic labels.
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
    values = sorted({int(value) for case_id in store for value in store[case_id].foreground[:, 0]})
    if not values:
        raise ValueError(f"dataset {store.name!r} ({store.root}): no voxel has a semantic label above 0")
    return {
        "channels": int(store.index.channels[0]),
        "classes": [f"label {value}" for value in values],
        "regions": [[value] for value in values],
        "activation": "softmax",
    }


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
    return {name: _info(told, channels[name], f"{path}: {name}") for name, told in content["datasets"].items()}


def _info(told: Any, channels: int, where: str) -> DatasetInfo:
    """Check the form; whether it is sound is for the objective to say."""
    if not isinstance(told, dict) or set(told) != FIELDS:
        found = sorted(told) if isinstance(told, dict) else told
        raise ValueError(f"{where}: found {found!r}, wanted the fields {sorted(FIELDS)}")
    classes, regions, activation = told["classes"], told["regions"], told["activation"]
    if activation not in ("sigmoid", "softmax"):
        raise ValueError(f"{where}: activation is {activation!r}, wanted 'sigmoid' or 'softmax'")
    if not (_is_list(classes, str) and len(set(classes)) == len(classes)):
        raise ValueError(f"{where}: classes is {classes!r}, wanted a list of names, each once")
    if not (_is_list(regions, list) and all(_is_list(region, int) for region in regions)):
        raise ValueError(f"{where}: regions is {regions!r}, wanted a list of lists of label values")
    return {"channels": channels, "classes": classes, "regions": regions, "activation": activation}


def _is_list(value: Any, kind: type) -> bool:
    """Whether a value is a list of at least one item of a kind; True and False are no numbers."""
    return isinstance(value, list) and len(value) > 0 and all(type(item) is kind for item in value)
