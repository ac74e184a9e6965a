"""How detectors look at a scan: tiles, mirrors, device, precision."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from girih.air import not_air
from girih.ensembles import Ensemble
from girih.recipes import require
from girih_detectors.inference import Candidates, collect

OVERLAP = 0.5
FAST_OVERLAP = 0.25
VOXELS_AT_ONCE = 128**3
"""Of a batch of tiles, unless one alone has more: activations of ResEncL then take 1.5 GiB in full precision."""
TILES_AT_ONCE = 8
NO_HOST_MEMORY = "can't allocate memory"
"""What torch says, in a plain RuntimeError, where the host's memory ends."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Inference:
    """How detectors look at a scan."""

    mirror: bool = True
    """Look at the 8 mirrored images and merge; 8 times the work."""
    overlap: float | None = None
    """Share of a tile that its neighbours see too, at least; by default 0.5, with --fast 0.25."""
    fast: bool = False
    """No mirrored images, and less overlap."""
    tile_batch: int | None = None
    """Tiles per forward pass; by default up to 8, as many as hold 128^3 voxels."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: an NVIDIA GPU where there is one."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision; auto: bf16 on a GPU that has it, else full precision."""

    def __post_init__(self) -> None:
        require("overlap", self.overlap, self.overlap is None or 0 <= self.overlap < 1, "0 to below 1")
        require("tile_batch", self.tile_batch, self.tile_batch is None or self.tile_batch >= 1, "1 or more")

    def resolve(self, local: int = 0) -> "Looking":
        """Return what these settings mean on this machine; process `local` of several here takes GPU `local`.

        Raises:
            ValueError: there is no GPU, but one is asked for.
        """
        available = torch.cuda.is_available()
        if self.device == "cuda" and not available:
            raise ValueError("device is 'cuda', but torch finds no NVIDIA GPU here")
        device = torch.device("cpu")
        if available and self.device != "cpu":
            device = torch.device("cuda", local % torch.cuda.device_count())
        precision = self.precision
        if precision == "auto":
            precision = "bf16" if device.type == "cuda" and _has_bf16(device) else "no"
        default = FAST_OVERLAP if self.fast else OVERLAP
        return Looking(
            mirror=self.mirror and not self.fast,
            overlap=default if self.overlap is None else self.overlap,
            tile_batch=self.tile_batch,
            device=device,
            precision=precision,
        )


@dataclass(frozen=True)
class Looking:
    """`Inference` on a machine."""

    mirror: bool
    overlap: float
    tile_batch: int | None
    device: torch.device
    precision: str

    @property
    def record(self) -> dict[str, Any]:
        """What of it decides the boxes, as JSON."""
        return {"mirror": self.mirror, "overlap": self.overlap, "precision": self.precision}

    def collect(
        self, ensemble: Ensemble, image: Any, *, pool: int, progress: Callable[[int, int], None] | None = None
    ) -> list[Candidates]:
        """Return the raw boxes of every model and mirroring in an image (c, z, y, x); tiles of plain air are left out.

        Raises:
            ValueError: the image is not as the models want it, cannot be read, the output is not finite, or there is
                too little memory.
        """
        try:
            with self._autocast():
                return collect(
                    ensemble.detectors,
                    image,
                    patch_zyx=ensemble.patch_zyx,
                    overlap=self.overlap,
                    mirror=self.mirror,
                    batch_size=self.tile_batch or tiles_at_once(ensemble.patch_zyx),
                    device=self.device,
                    valid=not_air(image),
                    pool=pool,
                    progress=progress,
                )
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and NO_HOST_MEMORY not in str(error):
                raise
            raise ValueError(
                f"{self.device} has too little memory; a smaller --tile-batch may help ({error})"
            ) from error

    def _autocast(self) -> AbstractContextManager[Any]:
        on = self.precision in DTYPES
        return torch.autocast(self.device.type, dtype=DTYPES.get(self.precision), enabled=on)


def tiles_at_once(patch_zyx: tuple[int, int, int]) -> int:
    """Return how many tiles make a batch, if nobody says."""
    return max(1, min(TILES_AT_ONCE, VOXELS_AT_ONCE // math.prod(patch_zyx)))


def _has_bf16(device: torch.device) -> bool:
    """Whether the GPU itself computes in bf16, which those before Ampere emulate."""
    return torch.cuda.get_device_capability(device) >= (8, 0)
