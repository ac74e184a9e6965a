"""What every reader returns and every writer takes."""

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
        raise ValueError(f"{where}: {error}; wanted numbers") from error
    if array.size == 0:
        return np.zeros((0,) if width is None else (0, width))
    if array.ndim != (1 if width is None else 2) or (width is not None and array.shape[1] != width):
        raise ValueError(f"{where}: shape is {array.shape}; wanted {'(n,)' if width is None else (f'(n, {width})')}")
    if not np.isfinite(array).all():
        raise ValueError(f"{where}: holds NaN or an infinity; wanted finite numbers")
    return array


def field(document: Any, key: str, where: str) -> Any:
    """Return document[key].

    Raises:
        ValueError: it is not there; names `where`.
    """
    if not isinstance(document, dict) or key not in document:
        found = sorted(document) if isinstance(document, dict) else type(document).__name__
        raise ValueError(f"{where}: {key} is missing; found {found}")
    return document[key]


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
