"""What every reader returns and every writer takes."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from girih_metrics.interfaces import Case

Unit = Literal["voxel", "mm"]


class Loaded(NamedTuple):
    """Cases with the names of their classes and the unit of their boxes; millimetres are (z, y, x) of RAS."""

    cases: list[Case]
    classes: tuple[str, ...]
    unit: Unit


def numbers(values: Any, width: int | None, where: str) -> np.ndarray:
    """Return a list of JSON or CSV numbers as float64, (n,) or (n, width).

    Raises:
        ValueError: not numbers, or of another shape; names `where`.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        rows = values if isinstance(values, list) else []
        bad = [k for k, value in enumerate(rows) if not _is_numbers(value, width)]
        raise ValueError(f"{where}{f' row {bad[0]}' if bad else ''}: {error}; wanted numbers") from error
    if array.size == 0:
        return np.zeros((0,) if width is None else (0, width))
    if array.ndim != (1 if width is None else 2) or (width is not None and array.shape[1] != width):
        raise ValueError(f"{where}: shape is {array.shape}; wanted {'(n,)' if width is None else (f'(n, {width})')}")
    if not np.isfinite(array).all():
        raise ValueError(f"{where}: holds NaN or an infinity; wanted finite numbers")
    return array


def _is_numbers(value: Any, width: int | None) -> bool:
    cells = value if isinstance(value, list) else [value]
    return len(cells) == (width or 1) and all(isinstance(cell, int | float) for cell in cells)


def field(document: Any, key: str, where: str) -> Any:
    """Return document[key].

    Raises:
        ValueError: it is not there; names `where`.
    """
    if not isinstance(document, dict) or key not in document:
        found = sorted(document) if isinstance(document, dict) else type(document).__name__
        raise ValueError(f"{where}: {key} is missing; found {found}")
    return document[key]


def entries(value: Any, where: str) -> list[Any]:
    """Return a JSON list.

    Raises:
        ValueError: something else; names `where`.
    """
    if not isinstance(value, list):
        raise ValueError(f"{where}: is {type(value).__name__}; wanted a list")
    return value


def case_id_of(file_name: str) -> str:
    """Return the name of an image file without folders, .nii and .gz; dots inside stay, as in DICOM UIDs."""
    return file_name.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".gz").removesuffix(".nii")


def numbered_classes(cases: Sequence[Case], classes: Sequence[str] | None) -> tuple[str, ...]:
    """Return `classes`, or class0, class1 ... up to the highest label in truth or predictions.

    Raises:
        ValueError: a label beyond `classes`; names the case.
    """
    highest = {str(case["case_id"]): _highest(case) for case in cases}
    if classes is None:
        return tuple(f"class{k}" for k in range(max(highest.values(), default=0) + 1))
    for case_id, label in highest.items():
        if label >= len(classes):
            raise ValueError(f"case {case_id!r}: label is {label}; wanted one below {len(classes)}, {tuple(classes)}")
    return tuple(classes)


def _highest(case: Case) -> int:
    return int(np.concatenate([case["gt_labels"], case["pred_labels"]]).max(initial=0))


def known_cases(predicted: set[str], cases: set[str], where: str) -> None:
    """Check that every predicted case exists.

    Raises:
        ValueError: a prediction for an unknown case; names `where` and the case.
    """
    unknown = sorted(predicted - cases)
    if unknown:
        raise ValueError(f"{where}: predictions for unknown case {unknown[0]!r}; wanted one of the {len(cases)} cases")


def labels_of(values: Any, where: str) -> np.ndarray:
    """Return class numbers as int64.

    Raises:
        ValueError: not whole numbers; names `where`.
    """
    array = numbers(values, None, where)
    if (array != np.floor(array)).any():
        raise ValueError(f"{where}: labels are {values}; wanted whole numbers")
    return array.astype(np.int64)
