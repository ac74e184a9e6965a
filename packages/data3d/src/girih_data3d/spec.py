"""How scans are prepared: one frozen record, whose hash is written into everything made with it."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from girih_data3d.layout import SCHEMA
from girih_data3d.normalisation import Normalisation, PerChannel, Range, Scheme, check_normalisation
from girih_data3d.resampling import Method, Number, Triple

Dtype = Literal["int16", "float16", "float32"]
Compression = Literal["lz4hc", "zstd"]


@dataclass(frozen=True)
class PrepareSpec:
    """Crop, voxel size, normalisation and storage type of prepared cases.

    Raises:
        ValueError: a value out of range, or normalisation parameters that do not belong together.
    """

    target_zyx_mm: Triple | None = (1.0, 1.0, 1.0)
    """Voxel size in mm along (z, y, x); None keeps the scan's own."""
    method: Method = "spline3"
    """How intensities are resampled; see `resample`."""
    antialias: bool = True
    """Smooth axes that get coarser before they are sampled; see `resample`."""
    normalisation: Scheme = "zscore"
    """See `normalize`; applied after resampling (nnU-Net v2 normalises first)."""
    clip: Range | None = None
    """Lowest and highest intensity before normalisation."""
    mean: PerChannel | None = None
    """Per channel, for "ct" only."""
    std: PerChannel | None = None
    """Per channel, for "ct" only."""
    dtype: Dtype = "int16"
    """Type on disk; int16 stores multiples of a step."""
    quant_step: Number = 1 / 512
    """Smallest step of int16; doubled as often as a case's range needs, so that nothing is clipped."""
    compression: Compression = "lz4hc"
    """Of blosc: "zstd" makes files about 15 % smaller and reads two to three times slower."""
    crop: Literal["nonzero"] | None = "nonzero"
    """Cut away the border in which every channel is exactly zero; objects are never cut."""

    def __post_init__(self) -> None:
        for name in ("target_zyx_mm", "clip", "mean", "std"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(float(v) for v in value))
        object.__setattr__(self, "quant_step", float(self.quant_step))
        target = self.target_zyx_mm
        if target is not None and not (len(target) == 3 and all(math.isfinite(v) and v > 0 for v in target)):
            raise ValueError(f"target_zyx_mm is {target}, wanted three positive lengths in mm, or None")
        check_normalisation(self.normalisation, clip=self.clip, mean=self.mean, std=self.std)
        if self.dtype not in get_args(Dtype):
            raise ValueError(f"dtype is {self.dtype!r}, wanted one of {', '.join(get_args(Dtype))}")
        if not (math.isfinite(self.quant_step) and self.quant_step > 0):
            raise ValueError(f"quant_step is {self.quant_step}, wanted a positive number")
        if self.compression not in get_args(Compression):
            raise ValueError(f"compression is {self.compression!r}, wanted one of {', '.join(get_args(Compression))}")
        if self.method not in get_args(Method):
            raise ValueError(f"method is {self.method!r}, wanted one of {', '.join(get_args(Method))}")
        if self.crop not in ("nonzero", None):
            raise ValueError(f"crop is {self.crop!r}, wanted 'nonzero' or None")

    @property
    def record(self) -> Normalisation:
        """The normalisation as it travels with data, weights and plans."""
        return check_normalisation(self.normalisation, clip=self.clip, mean=self.mean, std=self.std)

    @property
    def sha256(self) -> str:
        """Hash of all fields and of the layout's version."""
        text = json.dumps({"schema": SCHEMA, **self.to_json()}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "PrepareSpec":
        """Return the spec that `to_json` wrote.

        Raises:
            ValueError: an unknown field, or a value that `PrepareSpec` refuses.
        """
        unknown = sorted(set(record) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown field {unknown[0]!r} of PrepareSpec")
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**fields)
