"""The scans that boxes are drawn on: cases of a prepared dataset, or files as they lie on disk."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64

import girih_data3d

Triplet = tuple[int, int, int]


@dataclass(frozen=True)
class Volume:
    """The first channel of a scan in the closest RAS+ orientation: slices go from feet to head."""

    case_id: str
    shape_zyx: Triplet
    spacing_zyx_mm: tuple[float, float, float]
    affine: Float64[np.ndarray, "4 4"]
    """Voxel-centre index (x, y, z) -> RAS mm."""
    source_shape_zyx: Triplet
    """Of the file, in whose voxels boxes are given."""
    source_affine: Float64[np.ndarray, "4 4"]
    channels: int
    """Of the scan; the others are not shown."""
    hounsfield: bool
    """Whether `read` returns Hounsfield units."""
    read: Callable[[Triplet, Triplet], Float32[np.ndarray, "z y x"]]
    """(first voxel, size) -> intensities of a part; it must lie inside."""


def open_volumes(data: Path, *, modality: str | None = None) -> Mapping[str, Callable[[], Volume]]:
    """Return case id -> a function that opens its scan.

    Args:
        data: a prepared dataset, a folder with a dataset.json, a folder of scans, or one scan.
        modality: of scans that do not say it themselves, in capitals or not.

    Raises:
        ValueError: nothing of that kind is there.
    """
    if girih_data3d.Store.is_at(data):
        store = girih_data3d.Store.open(data)
        return {case_id: partial(_prepared, store, case_id, modality) for case_id in store.case_ids}
    sources = girih_data3d.read_manifest(data).sources
    return {source.case_id: partial(_raw, source, modality) for source in sources}


def volume_of(case: girih_data3d.Case, modality: str | None = None) -> Volume:
    """Return a prepared case as a volume; `modality` is used if the case has none."""
    record = case.prepared["normalisation"]
    hounsfield = _is_ct(case.modality or modality) and record["scheme"] in ("ct", "none")
    scale, offset = 1.0, 0.0
    if hounsfield and record["mean"] is not None and record["std"] is not None:
        scale, offset = record["std"][0], record["mean"][0]

    def read(start: Triplet, size: Triplet) -> Float32[np.ndarray, "z y x"]:
        window = tuple(slice(first, first + n) for first, n in zip(start, size, strict=True))
        values: np.ndarray = case.lazy()[(slice(0, 1), *window)][0]
        return values * np.float32(scale) + np.float32(offset)

    z, y, x = case.prepared["source_shape_zyx"]
    return Volume(
        case_id=case.case_id,
        shape_zyx=case.shape[1:],
        spacing_zyx_mm=case.spacing_zyx_mm,
        affine=case.affine,
        source_shape_zyx=(z, y, x),
        source_affine=np.array(case.prepared["source_affine"], np.float64),
        channels=case.shape[0],
        hounsfield=hounsfield,
        read=read,
    )


def _is_ct(modality: str | None) -> bool:
    return modality is not None and modality.casefold() == "ct"


def _prepared(store: girih_data3d.Store, case_id: str, modality: str | None) -> Volume:
    return volume_of(store[case_id], modality)


def _raw(source: girih_data3d.CaseSource, modality: str | None) -> Volume:
    """The file's voxels, only turned; in memory as long as the volume is."""
    scan = girih_data3d.read_source(dataclasses.replace(source, images=source.images[:1]))
    values: np.ndarray = scan.values[0]

    def read(start: Triplet, size: Triplet) -> Float32[np.ndarray, "z y x"]:
        (z, y, x), (nz, ny, nx) = start, size
        return values[z : z + nz, y : y + ny, x : x + nx]

    z, y, x = values.shape
    return Volume(
        case_id=source.case_id,
        shape_zyx=(z, y, x),
        spacing_zyx_mm=scan.attrs["spacing_zyx_mm"],
        affine=scan.attrs["affine"],
        source_shape_zyx=scan.attrs["source_shape_zyx"],
        source_affine=scan.attrs["source_affine"],
        channels=len(source.images),
        hounsfield=_is_ct(source.modality or modality),
        read=read,
    )
