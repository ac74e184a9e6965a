"""One prepared case on disk: patches, labels, geometry, export."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from jaxtyping import Float32, Float64, Int64, Shaped

from girih_data3d.affine import spacing_zyx
from girih_data3d.errors import CorruptCaseError
from girih_data3d.layout import file_crc32c, json_crc32c
from girih_data3d.nifti import write_nifti
from girih_data3d.open_files import OpenFiles
from girih_data3d.prepare import Prepared
from girih_data3d.resampling import Number
from girih_data3d.shard_reader import ShardReader
from girih_data3d.window import read_padded

Triplet = tuple[int, int, int]
LabelKind = Literal["instances", "semantic"]
LABEL_PADDING = {"instances": 0, "semantic": -1}


class Case:
    """A prepared case; opened through `Store`, read-only, picklable.

    Attributes:
        case_id, patient_id, modality: who it is.
        shape: (C, Z, Y, X).
        affine: float64 (4, 4), voxel-centre index (x, y, z) of the prepared grid -> RAS mm.
        spacing_zyx_mm: voxel size.
        prepared: how the grid lies in its source file.
        boxes: float32 (n, 6), voxel edges of the prepared grid; objects flagged `ignore` are not among them.
        labels: int64 (n,), class of each box; row k has the value k + 1 in the instance labels.
        voxels: int64 (n,), size of each object.
        label_kinds: which of "instances" and "semantic" there are.
        truth: ground truth in the source file's voxels (all objects, with their `ignore` flags); None if unlabelled.

    Raises:
        CorruptCaseError: a file is missing, has another size, or the metadata fail their checksum.
    """

    def __init__(self, folder: Path, files: OpenFiles | None = None) -> None:
        files = OpenFiles() if files is None else files
        record = _checked_record(folder)
        self.folder = folder
        self.case_id: str = record["case_id"]
        self.patient_id: str = record["patient_id"]
        self.modality: str | None = record["modality"]
        self.spec_hash: str = record["spec_hash"]
        self.prepared: Prepared = record["prepared"]
        self.truth: dict[str, Any] | None = record["truth"]
        self.affine: Float64[np.ndarray, "4 4"] = np.array(self.prepared["affine"], np.float64)
        self.spacing_zyx_mm = spacing_zyx(self.affine)
        kept = [o for o in record["objects"] if not o["ignore"]]
        self.boxes: Float32[np.ndarray, "n 6"] = np.array([o["box"] for o in kept], np.float32).reshape(-1, 6)
        self.labels: Int64[np.ndarray, " n"] = np.array([o["class"] for o in kept], np.int64)
        self.voxels: Int64[np.ndarray, " n"] = np.array([o["voxels"] for o in kept], np.int64)
        self.label_kinds: tuple[LabelKind, ...] = tuple(
            kind for kind in ("instances", "semantic") if f"labels/{kind}/0/zarr.json" in record["files"]
        )
        self._image = ShardReader(folder / "0", self.case_id, files)
        self._labels = {k: ShardReader(folder / "labels" / k / "0", self.case_id, files) for k in self.label_kinds}
        self.scale = float(self._image.attributes["scale_factor"])
        self.offset = float(self._image.attributes["add_offset"])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, Z, Y, X)."""
        c, z, y, x = self._image.shape
        return c, z, y, x

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored values."""
        return self._image.dtype

    def read_patch(
        self, start: Triplet, size: Triplet, *, pad_value: Number | None = None, raw: bool = False
    ) -> Shaped[np.ndarray, "c z y x"]:
        """Read a patch of all channels; it may lie partly or wholly outside the volume.

        Args:
            start: first voxel (z, y, x); may be negative.
            size: voxels along (z, y, x).
            pad_value: intensity outside the volume; default: stored zero, which is intensity 0, the mean after "zscore"
                and "ct".
            raw: return the stored values; intensity = value * `scale` + `offset`.

        Returns:
            `(C, *size)`, float32, or the stored type if `raw`.

        Raises:
            CorruptCaseError: the data fail a check.
            ValueError: an empty size.
        """
        if raw:
            padding = 0 if pad_value is None else (pad_value - self.offset) / self.scale
            return read_padded(self._image, start, size, padding=round(padding) if self.dtype.kind == "i" else padding)
        return read_padded(
            self._image,
            start,
            size,
            padding=self.offset if pad_value is None else pad_value,
            dtype=np.float32,
            scale=self.scale,
            offset=self.offset,
        )

    def read_label_patch(self, kind: LabelKind, start: Triplet, size: Triplet) -> Shaped[np.ndarray, "z y x"]:
        """Read labels of a patch that may lie outside the volume.

        Returns:
            "instances": int32, row k of `boxes` has the value k + 1, objects to ignore have values above
            `len(boxes)`, 0 outside. "semantic": int16, -1 outside.

        Raises:
            CorruptCaseError: the data fail a check.
            ValueError: the case has no such labels, or an empty size.
        """
        if kind not in self._labels:
            raise ValueError(f"case {self.case_id!r} has no {kind!r} labels, it has {list(self.label_kinds)}")
        dtype = np.int32 if kind == "instances" else np.int16
        return read_padded(self._labels[kind], start, size, padding=LABEL_PADDING[kind], dtype=dtype)

    def lazy(self) -> "LazyVolume":
        """Return the volume as an object that reads what is sliced from it."""
        return LazyVolume(self)

    def to_xarray(self) -> xr.DataArray:
        """Return the whole prepared scan, of the form that `read_scan` gives."""
        coords = {
            axis: np.arange(n) * mm for axis, n, mm in zip("zyx", self.shape[1:], self.spacing_zyx_mm, strict=True)
        }
        return xr.DataArray(
            self.read_patch((0, 0, 0), self.shape[1:]),
            dims=("channel", "z", "y", "x"),
            coords=coords,
            name="scan",
            attrs={
                "affine": self.affine,
                "spacing_zyx_mm": self.spacing_zyx_mm,
                "modality": self.modality,
                "case_id": self.case_id,
                "source_affine": np.array(self.prepared["source_affine"]),
                "source_shape_zyx": tuple(self.prepared["source_shape_zyx"]),
            },
        )

    def export_nifti(self, path: Path | str, *, channel: int = 0) -> None:
        """Write one channel of the prepared volume as NIfTI, in its place in the patient."""
        write_nifti(self.to_xarray().values[channel], path, affine=self.affine)


class LazyVolume:
    """A case as an array (C, Z, Y, X) of float32 from which four slices can be read; nothing is kept in memory."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self.shape = case.shape
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, window: Any) -> Float32[np.ndarray, "c z y x"]:
        """Return the intensities of a window inside the volume; slices have no step.

        Raises:
            IndexError: not four slices, a step, or an empty window.
        """
        if not isinstance(window, tuple) or len(window) != 4 or not all(isinstance(s, slice) for s in window):
            raise IndexError(f"wanted four slices (c, z, y, x), found {window!r}")
        spans = [range(*s.indices(n)) for s, n in zip(window, self.shape, strict=True)]
        if any(s.step != 1 or len(s) == 0 for s in spans):
            raise IndexError(f"wanted four slices without a step that are not empty in {self.shape}, found {window!r}")
        channels, z, y, x = spans
        patch = self._case.read_patch((z.start, y.start, x.start), (len(z), len(y), len(x)))
        return patch[channels.start : channels.stop]


def _checked_record(folder: Path) -> dict[str, Any]:
    """Return the case's record after checking it, the small files' content and the shards' sizes."""
    case_id, path = folder.name.removesuffix(".zarr"), folder / "zarr.json"
    try:
        attributes = json.loads(path.read_text(encoding="utf-8"))["attributes"]
        record: dict[str, Any] = attributes["girih"]
        checksum = record.pop("checksum")
        if checksum != json_crc32c({"ome": attributes["ome"], "girih": record}):
            raise CorruptCaseError(case_id, str(path), "fails its checksum")
        for name, wanted in record["files"].items():
            path = folder / name
            size = path.stat().st_size
            if size != wanted["bytes"]:
                raise CorruptCaseError(case_id, str(path), f"{size} bytes, wanted {wanted['bytes']}")
            if path.name == "zarr.json" and file_crc32c(path) != wanted["crc32c"]:
                raise CorruptCaseError(case_id, str(path), "fails its checksum")
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, CorruptCaseError):
            raise
        raise CorruptCaseError(case_id, str(path), f"not readable: {type(error).__name__}: {error}") from error
    return record
