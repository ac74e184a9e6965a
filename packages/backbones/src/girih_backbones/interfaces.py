"""What this package asks of a neck, and the plain dicts that cross its borders."""

from __future__ import annotations

from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

from torch import Tensor

Description = TypedDict("Description", {"class": str, "kwargs": dict[str, Any]})
"""A network as JSON: its class by name and its keyword arguments, without those that its surroundings decide."""


class WeightsHeader(TypedDict):
    """What a weights file says about itself. What is unknown is None, never guessed."""

    schema: int
    encoder: Description
    neck: Description | None
    in_channels: int
    stems: dict[str, int]
    """Dataset -> channels of its images, for the tensors `stems.<dataset>.*`."""
    patch_zyx: list[int] | None
    """Voxels of a training patch."""
    spacing_zyx_mm: list[float] | None
    normalisation: dict[str, Any] | None
    """{"scheme": "zscore" | "zscore_mask" | "ct" | "none", "clip": [lo, hi] | None, "mean": [C] | None, "std": ...}"""
    modality: str | None
    objective: str | None
    objective_config: dict[str, Any] | None
    steps: int | None
    """Optimiser steps behind the weights."""
    source: str | None
    """Where the weights come from, when another program trained them."""
    versions: dict[str, str]
    """Package -> version that wrote the file."""
    notes: NotRequired[list[str]]
    """What was inferred, decided or left out when another program's file was read; absent if nothing was."""


@runtime_checkable
class Neck(Protocol):
    """A module from the encoder's maps to maps, finest first; `strides[i]` is voxels per cell along (z, y, x)."""

    channels: tuple[int, ...]
    strides: tuple[tuple[int, int, int], ...]

    def __call__(self, maps: list[Tensor], /) -> list[Tensor]:
        """Return maps of `channels`."""
        ...
