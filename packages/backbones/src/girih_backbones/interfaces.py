"""What this package asks of a neck, and the plain dicts that cross its borders."""

from __future__ import annotations

from typing import Any, Protocol, TypedDict, runtime_checkable

from torch import Tensor

Description = TypedDict("Description", {"class": str, "kwargs": dict[str, Any]})
"""A network as JSON: its class by name and its keyword arguments, without those that its surroundings decide."""


@runtime_checkable
class Neck(Protocol):
    """A module from the encoder's maps to maps, finest first; `strides[i]` is voxels per cell along (z, y, x)."""

    channels: tuple[int, ...]
    strides: tuple[tuple[int, int, int], ...]

    def __call__(self, maps: list[Tensor], /) -> list[Tensor]:
        """Return maps of `channels`."""
        ...
