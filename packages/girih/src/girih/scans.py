"""The scans that a detector is to look at: cases of a prepared dataset, or files that are prepared on the way."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import girih_data3d
from girih.ensembles import Ensemble, preparation_differences

Opened = tuple[Any, girih_data3d.Prepared]
"""An image (c, z, y, x), prepared as the models' training data were, and how it lies in its source."""


@dataclass(frozen=True)
class Scan:
    """One case, not read yet."""

    case_id: str
    read: Callable[[], Opened]
    source: Callable[[], str]
    """Gives a checksum of what `read` reads, to tell whether it has changed. Raises ValueError as `open` does."""
    problem: str | None = None
    """Why the models cannot take it, as far as can be said without reading it."""

    def open(self) -> Opened:
        """Return the image and how it lies in its source.

        Raises:
            ValueError: it cannot be read, or the models cannot take it.
        """
        if self.problem is not None:
            raise ValueError(self.problem)
        try:
            return self.read()
        except OSError as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error


def find_scans(data: Path, ensemble: Ensemble) -> tuple[list[Scan], tuple[str, ...]]:
    """Return the cases in `data`: a prepared dataset, a scan, a folder of scans, or one with a dataset.json.

    Beside them stand the names of what lies in a folder of scans and is none.

    Raises:
        ValueError: nothing to be read there, or a dataset that was prepared otherwise than the models' training data.
    """
    if girih_data3d.Store.is_at(data):
        store = open_store(data, ensemble)
        if not len(store):
            raise ValueError(f"{data} holds no prepared case")
        return cases_of(store, ensemble), ()
    dataset = girih_data3d.read_manifest(data)
    scans = [
        Scan(
            source.case_id,
            partial(_from_files, source, ensemble.spec),
            partial(_hash, source),
            _problem(ensemble, len(source.images), source.modality),
        )
        for source in dataset.sources
    ]
    return scans, dataset.passed_over


def open_store(data: Path, ensemble: Ensemble) -> girih_data3d.Store:
    """Open a dataset that was prepared as the models' training data were.

    Raises:
        ValueError: it was not, and the first field that differs is named; it is no such dataset, or cannot be opened.
    """
    if not girih_data3d.Store.is_at(data):
        raise ValueError(f"{data} is no prepared dataset: `girih prepare` makes one of labelled scans")
    store = girih_data3d.Store.open(data)
    for field, found, wanted in preparation_differences(store.spec, ensemble.spec):
        raise ValueError(f"{data} was prepared with {field} {found!r}, the training data of the model with {wanted!r}")
    return store


def cases_of(store: girih_data3d.Store, ensemble: Ensemble) -> list[Scan]:
    """Return the cases of a prepared dataset."""
    index = store.index
    rows = zip(index.case_ids, index.contents.tolist(), index.channels.tolist(), index.modalities, strict=True)
    return [
        Scan(name, partial(_from_store, store, name), partial(str, f"crc32c:{crc:08x}"), _problem(ensemble, *known))
        for name, crc, *known in rows
    ]


def _problem(ensemble: Ensemble, channels: int, modality: str | None) -> str | None:
    if channels != ensemble.in_channels:
        return f"has {channels} channels, the model takes {ensemble.in_channels}"
    if modality is None or ensemble.modality is None or modality.casefold() == ensemble.modality.casefold():
        return None
    return f"is of the modality {modality!r}, the model was trained on {ensemble.modality!r}"


def _from_store(store: girih_data3d.Store, case_id: str) -> Opened:
    case = store[case_id]
    return case.lazy(), case.prepared


def _from_files(source: girih_data3d.CaseSource, spec: girih_data3d.PrepareSpec) -> Opened:
    image, prepared = girih_data3d.prepare_scan(girih_data3d.read_source(source), spec)
    return image.values, prepared


def _hash(source: girih_data3d.CaseSource) -> str:
    """Hash of a case's image files and of how they are read: the frame, and what stands in for their headers."""
    read = {name: getattr(source, name) for name in ("frame", "rescale", "spacing_zyx_mm")}
    origin = girih_data3d.origin_of(girih_data3d.CaseSource(source.case_id, source.images, **read))
    given = [origin[name] for name in ("rescale", "spacing_zyx_mm") if origin[name] is not None]
    content = json.dumps([[image["sha256"] for image in origin["images"]], origin["frame"], *given])
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"
