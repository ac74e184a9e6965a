"""What a dataset looks like before it is prepared: sizes, voxel sizes, objects, intensities. A plan is made from it."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from girih_data3d.annotations import Annotations, read_annotations
from girih_data3d.case_source import CaseSource, Dataset
from girih_data3d.errors import ScanError
from girih_data3d.painting import paint_mask
from girih_data3d.planning.quantiles import Intensities, Sample, pool_samples, sample, values_per_case
from girih_data3d.pool import run_jobs
from girih_data3d.prepare import choose_grid
from girih_data3d.provenance import origin_of
from girih_data3d.readable_json import plain
from girih_data3d.resampling import Number
from girih_data3d.source import read_source
from girih_data3d.spec import PrepareSpec

SCHEMA = 1
EVERY = 10
"""Of the voxels inside objects, every tenth is looked at, as nnDetection does."""
DECIMALS = 3
"""Of box edges, in voxels."""
Where = Literal["objects", "nonzero"]
Size = tuple[int, int, int]
CROP = PrepareSpec(target_zyx_mm=None, normalisation="none")


@dataclass(frozen=True)
class CaseFingerprint:
    """One case, turned to RAS and cropped as preparing does it."""

    case_id: str
    modality: str | None
    channels: int
    shape_zyx: Size
    """Voxels of the scan."""
    cropped_zyx: Size
    """Voxels that are left without the border of zeros."""
    spacing_zyx_mm: tuple[Number, Number, Number]
    boxes: tuple[tuple[Number, ...], ...] | None
    """Objects that are not to be ignored, voxel edges of the cropped scan; None: nobody looked."""
    labels: tuple[int, ...] = ()
    """Index of each object's class."""


@dataclass(frozen=True)
class Fingerprint:
    """What `fingerprint` found; `cases` are in the dataset's order."""

    dataset: str
    classes: tuple[str, ...]
    cases: tuple[CaseFingerprint, ...]
    intensities: tuple[Intensities | None, ...]
    """Of each channel; None: no voxel was looked at."""
    intensities_of: Where
    """Inside objects, or, without any object in the dataset, all voxels that are not zero."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Case id -> why it could not be measured; it is not in `cases`."""
    sources_sha256: str = field(default="", compare=False)
    """What was measured, as `sources_sha256` says; no part of `sha256`, for copies have other times."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, always in the same order; "summary" is for people and is not read back."""
        content = self._content()
        hashes = {"sha256": content_sha256(content), "sources_sha256": self.sources_sha256}
        return {"schema": SCHEMA, **hashes, "summary": self.summary(), **content}

    def _content(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "dataset": self.dataset,
            "classes": list(self.classes),
            "intensities_of": self.intensities_of,
            "intensities": [None if i is None else asdict(i) for i in self.intensities],
            "failed": dict(self.failed),
            "cases": [plain(asdict(case)) for case in self.cases],
        }

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that was measured."""
        return content_sha256(self._content())

    @cached_property
    def sizes(self) -> Int64[np.ndarray, "n 3"]:
        """Voxels of the cropped scans."""
        return np.array([case.cropped_zyx for case in self.cases], np.int64).reshape(-1, 3)

    @cached_property
    def spacings_mm(self) -> Float64[np.ndarray, "n 3"]:
        """Voxel sizes of the scans."""
        return np.array([case.spacing_zyx_mm for case in self.cases], np.float64).reshape(-1, 3)

    @cached_property
    def boxes(self) -> Float64[np.ndarray, "m 6"]:
        """All objects, voxel edges of their cropped scans."""
        return np.array([box for case in self.cases for box in case.boxes or ()], np.float64).reshape(-1, 6)

    @cached_property
    def box_case(self) -> Int64[np.ndarray, " m"]:
        """Row of the case of each object."""
        return np.repeat(np.arange(len(self.cases)), [len(case.boxes or ()) for case in self.cases])

    def boxes_at(self, spacing_zyx_mm: tuple[Number, Number, Number]) -> Float64[np.ndarray, "m 6"]:
        """Return all objects in voxels of another size; (1, 1, 1) gives millimetres."""
        scale = self.spacings_mm[self.box_case] / np.asarray(spacing_zyx_mm, np.float64)
        moved: np.ndarray = self.boxes * np.tile(scale, 2)
        return moved

    def summary(self) -> dict[str, Any]:
        """Return numbers for people: counts, medians, sizes of objects."""
        labels = Counter(label for case in self.cases for label in case.labels)
        boxes = self.boxes_at((1, 1, 1))
        sides = boxes[:, 3:] - boxes[:, :3]
        voxels = self.boxes[:, 3:] - self.boxes[:, :3]
        percentiles = (5, 50, 95)
        kept = [float(np.prod(case.cropped_zyx) / np.prod(case.shape_zyx)) for case in self.cases]
        return {
            "cases": len(self.cases),
            "unlabelled": sum(case.boxes is None for case in self.cases),
            "objects": {name: labels[k] for k, name in enumerate(self.classes)},
            "modalities": sorted({case.modality or "unknown" for case in self.cases}),
            "median_size_zyx": np.median(self.sizes, axis=0).tolist(),
            "median_spacing_zyx_mm": np.round(np.median(self.spacings_mm, axis=0), 6).tolist(),
            "median_kept_by_crop": round(float(np.median(kept)), 4),
            "object_mm_zyx": {f"p{p}": np.round(np.percentile(sides, p, axis=0), 2).tolist() for p in percentiles}
            if len(sides)
            else {},
            "object_voxels_zyx": {f"p{p}": np.round(np.percentile(voxels, p, axis=0), 2).tolist() for p in percentiles}
            if len(sides)
            else {},
        }


def fingerprint(
    dataset: Dataset, *, workers: int | None = None, on_progress: Callable[[str, str], None] | None = None
) -> Fingerprint:
    """Measure every case of a dataset of raw scans.

    Intensities are those of every tenth voxel inside objects. Where objects have no masks, their boxes stand for them,
    and the ellipsoid inside for those labelled by a point and a diameter. A dataset without any object is measured at
    every tenth voxel that is not zero. The result does not depend on the number of workers.

    Args:
        dataset: from `read_manifest`, or a format.
        workers: processes, as `prepare_many` takes them.
        on_progress: called with (case id, "done" or "failed") after each case.

    Raises:
        ValueError: an empty dataset, or no case that can be measured; the message names each with its reason.
    """
    if not dataset.sources:
        raise ValueError(f"dataset {dataset.name!r} has no case, wanted at least one")
    keep = values_per_case(len(dataset.sources))
    origins = sources_sha256(dataset)
    labelled = any(source.instances or source.objects or source.rule is not None for source in dataset.sources)
    where: Where = "objects" if labelled else "nonzero"
    found, failed = _measure_all(dataset, keep, where, workers, on_progress)
    if labelled and found and not any(measured.case.boxes for measured in found.values()):
        where = "nonzero"  # labels without any object, which was not to be known before
        found, failed = _measure_all(dataset, keep, where, workers, None)
    measured = [found[number] for number in sorted(found)]
    for number in sorted(found):
        first, case = measured[0].case, found[number].case
        if case.channels != first.channels:
            failed[number] = f"has {case.channels} channels, {first.case_id!r} has {first.channels}"
    measured = [found[number] for number in sorted(found) if number not in failed]
    reasons = {dataset.sources[number].case_id: failed[number] for number in sorted(failed)}
    if not measured:
        lines = "\n  ".join(f"{case_id}: {reason}" for case_id, reason in reasons.items())
        raise ValueError(f"no case of dataset {dataset.name!r} could be measured:\n  {lines}")
    channels = range(measured[0].case.channels)
    return Fingerprint(
        dataset=dataset.name,
        classes=dataset.classes,
        cases=tuple(case.case for case in measured),
        intensities=tuple(pool_samples([case.samples[channel] for case in measured]) for channel in channels),
        intensities_of=where,
        failed=reasons,
        sources_sha256=origins,
    )


def sources_sha256(dataset: Dataset) -> str:
    """Return a hash of what a fingerprint depends on: classes, each case's settings, names, sizes and times of files.

    No file is read. A case that is moved with its folder stays the same; one that cannot be found counts as such.
    """
    origins: dict[str, Any] = {}
    for source in dataset.sources:
        try:
            origins[source.case_id] = origin_of(source, hashed=False)
        except ScanError:
            origins[source.case_id] = None
    return content_sha256({"schema": SCHEMA, "classes": dataset.classes, "cases": origins})


@dataclass(frozen=True)
class _Measured:
    case: CaseFingerprint
    samples: tuple[Sample, ...]
    """Of each channel."""


def _measure_all(
    dataset: Dataset, keep: int, where: Where, workers: int | None, on_progress: Callable[[str, str], None] | None
) -> tuple[dict[int, _Measured], dict[int, str]]:
    """Return by their numbers the cases that could be measured, and why others could not."""
    found: dict[int, _Measured] = {}
    failed: dict[int, str] = {}
    jobs = [(source, dataset.classes, keep, where) for source in dataset.sources]
    with closing(run_jobs(_try_measure, jobs, workers)) as results:
        for number, outcome in results:
            if isinstance(outcome, _Measured):
                found[number] = outcome
            else:
                failed[number] = outcome if isinstance(outcome, str) else f"{type(outcome).__name__}: {outcome}"
            if on_progress is not None:
                on_progress(dataset.sources[number].case_id, "failed" if number in failed else "done")
    return found, failed


def _try_measure(source: CaseSource, classes: tuple[str, ...], keep: int, where: Where) -> _Measured | str:
    try:
        return _measure(source, classes, keep, where)
    except (ValueError, OSError, MemoryError) as error:
        return f"{type(error).__name__}: {error}"
    except BaseException as error:
        error.add_note(f"while measuring case {source.case_id!r}")
        raise


def _measure(source: CaseSource, classes: tuple[str, ...], keep: int, where: Where) -> _Measured:
    scan = read_source(source)
    annotations = read_annotations(source, scan, classes)
    grid = choose_grid(scan, CROP, None if annotations is None else annotations.boxes)
    boxes: tuple[tuple[float, ...], ...] | None = None
    labels: tuple[int, ...] = ()
    if annotations is not None:
        counted = [k for k, record in enumerate(annotations.records) if not record["ignore"]]
        edges = annotations.boxes[counted] - np.tile(np.array(grid.start), 2)
        boxes = tuple(tuple(box) for box in np.round(edges, DECIMALS).tolist())
        labels = tuple(int(annotations.records[k]["class"]) for k in counted)
    z, y, x = (b - a for a, b in zip(grid.start, grid.stop, strict=True))
    case = CaseFingerprint(
        case_id=source.case_id,
        modality=source.modality,
        channels=scan.sizes["channel"],
        shape_zyx=(scan.sizes["z"], scan.sizes["y"], scan.sizes["x"]),
        cropped_zyx=(z, y, x),
        spacing_zyx_mm=_rounded(grid.spacing),
        boxes=boxes,
        labels=labels,
    )
    if where == "nonzero":
        samples = tuple(sample(channel[channel != 0][::EVERY], keep) for channel in scan.values)
    elif annotations is not None and boxes:
        inside = _inside_objects(annotations, len(boxes), case.shape_zyx)
        samples = tuple(sample(channel[inside][::EVERY], keep) for channel in scan.values)
    else:
        samples = (sample(np.zeros(0, np.float32), keep),) * case.channels
    return _Measured(case, samples)


def _inside_objects(annotations: Annotations, counted: int, shape: Size) -> Bool[np.ndarray, "z y x"]:
    """Return the voxels of the scan inside the objects that count; those to ignore come after them."""
    inside = np.zeros(shape, bool)
    for layer in annotations.layers:
        inside |= (layer > 0) & (layer <= counted)
    if not annotations.layers:
        boxes = annotations.boxes if annotations.whole is None else annotations.whole
        for box, sphere in zip(boxes[:counted], annotations.spheres[:counted], strict=True):
            window, mask = paint_mask(box, shape, annotations.paint or ("box" if sphere is None else "ellipsoid"))
            inside[window] |= mask
    return inside


def content_sha256(content: Any) -> str:
    """Return the hash of JSON values, however they are written."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _rounded(spacing: tuple[Number, Number, Number]) -> tuple[Number, Number, Number]:
    z, y, x = (round(float(mm), 6) for mm in spacing)
    return z, y, x
