"""The cases of one or several prepared datasets that are trained on, as arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from girih_data3d.store import Store

CaseIds = Sequence[str] | Mapping[str, Sequence[str]]
"""Of one dataset, or by the dataset's name."""


@dataclass(frozen=True)
class CaseTable:
    """What a sampler needs to know of the cases; a worker process copies it cheaply."""

    case_ids: tuple[str, ...]
    datasets: tuple[str, ...]
    """Names, each once."""
    dataset: Int64[np.ndarray, " n"]
    """Row in `datasets` of each case."""
    shapes: Int64[np.ndarray, "n 3"]
    spacings_mm: Float64[np.ndarray, "n 3"]
    annotated: Bool[np.ndarray, " n"]
    """Whether it is known which objects a case holds, even if none."""
    semantic: Bool[np.ndarray, " n"]
    """Whether a case has tissue labels."""
    boxes: Float32[np.ndarray, "m 6"]
    """Of all objects of all cases that are not to be ignored."""
    labels: Int64[np.ndarray, " m"]
    box_case: Int64[np.ndarray, " m"]
    """Row of the case of each box."""


def tabulate(stores: Sequence[Store], case_ids: CaseIds | None = None) -> CaseTable:
    """Return the table of the cases of some datasets, from their indices; no case is opened.

    Args:
        stores: the datasets; their cases follow each other in this order.
        case_ids: which cases, in the order given; with several datasets, by name. Default: all.

    Raises:
        ValueError: no dataset, two of one name, or a plain list of case ids for several.
        KeyError: no such dataset or case.
    """
    names = tuple(store.name for store in stores)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"datasets are {list(names)}, wanted at least one and every name once")
    if case_ids is not None and not isinstance(case_ids, Mapping):
        if len(names) > 1:
            raise ValueError(f"case_ids is a list, but there are {len(names)} datasets: wanted {{name: case ids}}")
        case_ids = {names[0]: case_ids}
    chosen = case_ids or {}
    if unknown := sorted(set(chosen) - set(names)):
        raise KeyError(f"case_ids names dataset {unknown[0]!r}, wanted some of {list(names)}")
    parts = [_part(store, number, chosen.get(store.name)) for number, store in enumerate(stores)]
    if len(parts) == 1:
        return parts[0]
    first = np.cumsum([0, *(len(part.case_ids) for part in parts)])
    return CaseTable(
        case_ids=tuple(case_id for part in parts for case_id in part.case_ids),
        datasets=names,
        box_case=np.concatenate([part.box_case + shift for part, shift in zip(parts, first, strict=False)]),
        **{
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("dataset", "shapes", "spacings_mm", "annotated", "semantic", "boxes", "labels")
        },
    )


def _part(store: Store, number: int, case_ids: Sequence[str] | None) -> CaseTable:
    """Return the table of one dataset, which is number `number`."""
    index = store.index
    if case_ids is not None:
        rows = [index.row(case_id) for case_id in case_ids]
        if None in rows:
            raise KeyError(f"no case {case_ids[rows.index(None)]!r} in dataset {store.name!r} ({len(index)} cases)")
        index = index.take([row for row in rows if row is not None])
    return CaseTable(
        case_ids=index.case_ids,
        datasets=(store.name,),
        dataset=np.full(len(index), number, np.int64),
        shapes=index.shapes,
        spacings_mm=index.spacings_mm,
        annotated=index.annotated,
        semantic=index.semantic,
        boxes=index.boxes,
        labels=index.labels,
        box_case=index.box_case,
    )
