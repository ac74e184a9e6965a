"""One prepared case: patches, labels, geometry, export."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from jaxtyping import Float32, Float64, Int32, Int64, Shaped, UInt16

from girih_data3d.affine import spacing_zyx
from girih_data3d.case_writer import layer_name
from girih_data3d.errors import CorruptCaseError
from girih_data3d.folder import DamageError, Folder, LocalFolder
from girih_data3d.lazy import LazyVolume, lazy_array
from girih_data3d.nifti import write_nifti
from girih_data3d.objects import Objects
from girih_data3d.prepare import Prepared
from girih_data3d.resampling import Number
from girih_data3d.sealed import check_files, read_case_seal
from girih_data3d.window import Reader, Triplet, read_padded

LabelKind = Literal["instances", "semantic", "valid"]


class Case:
    """A prepared case; opened through `Store`, read-only, picklable.

    Attributes:
        case_id, patient_id, modality: who it is.
        series_uid: DICOM SeriesInstanceUID; None: unknown. part: the dataset's official part; None: none.
        scan_sha256: of each channel that is not constant, see `channel_sha256`; None: prepared before there was one.
        shape: (C, Z, Y, X); dtype: type of the stored values; intensity = value * `scale` + `offset`.
        affine: float64 (4, 4), voxel-centre index (x, y, z) of the prepared grid -> RAS mm.
        spacing_zyx_mm: voxel size.
        prepared: how the grid lies in its source file.
        source: the files that it was made from, and what was said about them.
        notes: how many objects reached out of the scan, and what a rule found and dropped.
        objects: all objects, those to ignore last.
        boxes: float32 (n, 6), voxel edges of the prepared grid; objects flagged `ignore` are not among them.
        labels: int64 (n,), class of each box; row k has the value k + 1 in the instance labels.
        voxels: int64 (n,), size of each object; 0: it has no mask.
        label_kinds: which of "instances", "semantic" and "valid" (if something was defaced) there are.
        truth: ground truth in the source file's voxels (all objects, with their `ignore` flags); None if unlabelled.
        checksum: CRC-32C over everything that the case holds.

    Raises:
        CorruptCaseError: a file is missing, has another size, or the metadata fail their checksum.
    """

    def __init__(self, where: Folder, case_id: str) -> None:
        self.where, self.case_id = where, case_id
        try:
            seal = read_case_seal(where, case_id)
            metadata = {name: json.loads(text) for name, text in check_files(where, seal, whole=seal.small).items()}
        except DamageError as error:
            raise CorruptCaseError(case_id, error.path, error.reason) from error
        record = seal.attributes["girih"]
        self.files = seal.files
        self.checksum = seal.checksum
        self.patient_id: str = record["patient_id"]
        self.modality: str | None = record["modality"]
        self.series_uid: str | None = record.get("series_uid")
        self.part: str | None = record.get("part")
        self.scan_sha256: list[str] | None = record.get("scan_sha256")
        self.spec_hash: str = record["spec_hash"]
        self.prepared: Prepared = record["prepared"]
        self.source: dict[str, Any] = record["source"]
        self.notes: dict[str, Any] = record.get("notes", {})
        self.truth: dict[str, Any] | None = record["truth"]
        self.affine: Float64[np.ndarray, "4 4"] = np.array(self.prepared["affine"], np.float64)
        self.spacing_zyx_mm = spacing_zyx(self.affine)
        self.objects = Objects.from_record(record["objects"])
        kept = int(np.count_nonzero(~self.objects.ignore))
        self.boxes: Float32[np.ndarray, "n 6"] = self.objects.boxes[:kept]
        self.labels: Int64[np.ndarray, " n"] = self.objects.labels[:kept]
        self.voxels: Int64[np.ndarray, " n"] = self.objects.voxels[:kept]
        self.scale = float(metadata["0/zarr.json"]["attributes"]["scale_factor"])
        self.offset = float(metadata["0/zarr.json"]["attributes"]["add_offset"])
        arrays = {
            name.removesuffix("/zarr.json"): where.array(name.removesuffix("/zarr.json"), content, case_id)
            for name, content in metadata.items()
            if content["node_type"] == "array"
        }
        self._image = arrays["0"]
        self._foreground = arrays.get("foreground")
        self._semantic = arrays.get("labels/semantic/0")
        self._layers: list[Reader] = []
        while (layer := arrays.get(f"labels/{layer_name(len(self._layers))}/0")) is not None:
            self._layers.append(layer)
        self._valid = arrays.get("labels/valid/0")
        has: dict[LabelKind, bool] = {
            "instances": bool(self._layers),
            "semantic": self._semantic is not None,
            "valid": self._valid is not None,
        }
        self.label_kinds: tuple[LabelKind, ...] = tuple(kind for kind, there in has.items() if there)
        c, z, y, x = self._image.shape
        self.shape = (c, z, y, x)
        self.dtype = self._image.dtype

    @property
    def folder(self) -> Path:
        """The case's folder.

        Raises:
            ValueError: the case is not on local disk.
        """
        if not isinstance(self.where, LocalFolder):
            raise ValueError(f"case {self.case_id!r} is not on local disk: {self.where.locate('')}")
        return self.where.path

    @property
    def foreground(self) -> UInt16[np.ndarray, "n 4"]:
        """Rows (class, z, y, x) of up to 10,000 labelled voxels, equally many of each class where there are enough.

        Classes are the values of the semantic labels if there are any, else those of the objects; none without masks.
        """
        if self._foreground is None:
            return np.zeros((0, 4), np.uint16)
        out = np.empty(self._foreground.shape, np.uint16)
        self._foreground.read_into(out, (0, 0))
        return out

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
            ValueError: an empty size, or a padding that the stored type cannot hold.
        """
        if raw:
            return read_padded(self._image, start, size, padding=self._stored(pad_value))
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
            "instances": int32, row k of `objects` has the value k + 1, 0 outside; where objects overlap, the one of the
            later layer, which is the smaller one. "semantic": int16, -1 outside. "valid": bool, False where something
            was defaced, and outside.

        Raises:
            CorruptCaseError: the data fail a check.
            ValueError: the case has no such labels, or an empty size.
        """
        if kind not in self.label_kinds:
            raise ValueError(f"case {self.case_id!r} has no {kind!r} labels, it has {list(self.label_kinds)}")
        if kind == "semantic" and self._semantic is not None:
            return read_padded(self._semantic, start, size, padding=-1, dtype=np.int16)
        if kind == "valid" and self._valid is not None:
            return read_padded(self._valid, start, size, padding=0, dtype=np.uint8) > 0
        out, *others = self.read_instance_layers(start, size)
        for layer in others:
            np.copyto(out, layer, where=layer != 0)
        return out

    def read_instance_layers(self, start: Triplet, size: Triplet) -> list[Int32[np.ndarray, "z y x"]]:
        """Read the instance labels layer by layer; objects that overlap lie in different ones, see `objects.layer`.

        Raises:
            CorruptCaseError: the data fail a check.
            ValueError: an empty size.
        """
        return [read_padded(layer, start, size, padding=0, dtype=np.int32) for layer in self._layers]

    def lazy(self) -> LazyVolume:
        """Return the volume as an object that reads what is sliced from it."""
        return LazyVolume(self._image, self.scale, self.offset)

    def to_xarray(self, *, lazy: bool = False) -> xr.DataArray:
        """Return the prepared scan, of the form that `read_scan` gives.

        Args:
            lazy: read only what is indexed later, and only then.
        """
        dims = ("channel", "z", "y", "x")
        coords = {
            axis: np.arange(n) * mm for axis, n, mm in zip("zyx", self.shape[1:], self.spacing_zyx_mm, strict=True)
        }
        attrs = {
            "affine": self.affine,
            "spacing_zyx_mm": self.spacing_zyx_mm,
            "modality": self.modality,
            "case_id": self.case_id,
            "source_affine": np.array(self.prepared["source_affine"]),
            "source_shape_zyx": tuple(self.prepared["source_shape_zyx"]),
        }
        volume = lazy_array(self.lazy()) if lazy else self.read_patch((0, 0, 0), self.shape[1:])
        return xr.DataArray(volume, dims=dims, coords=coords, name="scan", attrs=attrs)

    def export_nifti(self, path: Path | str, *, channel: int = 0) -> None:
        """Write one channel of the prepared volume as NIfTI, in its place in the patient."""
        write_nifti(self.lazy()[channel : channel + 1, :, :, :][0], path, affine=self.affine)

    def _stored(self, intensity: Number | None) -> Number:
        """Return the stored value next to an intensity."""
        if intensity is None:
            return 0
        value = (intensity - self.offset) / self.scale
        if self.dtype.kind != "i":
            return value
        limits = np.iinfo(self.dtype)
        if not limits.min <= round(value) <= limits.max:
            low, high = (limit * self.scale + self.offset for limit in (limits.min, limits.max))
            raise ValueError(f"pad_value is {intensity}, wanted {low:g} to {high:g}, which {self.dtype} can hold here")
        return round(value)
