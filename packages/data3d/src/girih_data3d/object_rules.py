"""How objects are found in label files that do not number them: class masks, several readers' masks, contours."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import xarray as xr

from girih_data3d.instances import Mask


@dataclass(frozen=True)
class FoundObjects:
    """The objects of one case, on the grid of its canonical scan."""

    masks: list[Mask]
    """They may overlap."""
    classes: list[int]
    """Index of each object's class."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What was found and what was dropped, such as {"components": 5, "smaller than 3 voxels": 1}; kept in the record
    of the case."""


@runtime_checkable
class ObjectRule(Protocol):
    """A frozen dataclass of plain values and paths, so that it can be pickled, compared and written to the record."""

    def find(self, scan: xr.DataArray) -> FoundObjects:
        """Return the objects of the case whose canonical scan (channel, z, y, x) this is.

        Raises:
            ScanError: a file cannot be read, or does not lie on the scan's grid.
        """
        ...
