"""Objects as components of unions of label values."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from scipy import ndimage

from girih_data3d.errors import ScanError
from girih_data3d.instances import Mask
from girih_data3d.object_rules import FoundObjects
from girih_data3d.scan import read_labels

TOUCHING = np.ones((3, 3, 3), bool)
"""26-connected."""


@dataclass(frozen=True)
class Regions:
    """Class k is what has any of the values `regions[k]`; its 26-connected components are its objects.

    Regions may share values, as those of nested tumour regions do; then their objects overlap. Without regions and
    known values the file has to be empty.
    """

    file: Path
    """Label file on the scan's grid."""
    regions: tuple[tuple[int, ...], ...]
    known: tuple[int, ...]
    """All values that the file may hold."""
    min_voxels: int = 3
    """Smaller components are dropped and counted."""

    def __post_init__(self) -> None:
        if self.min_voxels < 1:
            raise ValueError(f"min_voxels is {self.min_voxels}, wanted 1 or more")

    def find(self, scan: xr.DataArray) -> FoundObjects:
        """Return the components, region by region.

        Raises:
            ScanError: as `read_labels`, or the file holds a value that is not `known`.
        """
        labels = read_labels(self.file, like=scan).values
        present = np.flatnonzero(np.bincount(labels.ravel())).tolist()
        strangers = sorted(set(present) - {0, *self.known})
        if strangers:
            raise ScanError(f"{self.file}: label {strangers[0]}, wanted one of {sorted({0, *self.known})}")
        masks: list[Mask] = []
        classes: list[int] = []
        found = 0
        for index, values in enumerate(self.regions):
            numbers, count = ndimage.label(np.isin(labels, values), structure=TOUCHING)
            found += count
            for number, window in enumerate(ndimage.find_objects(numbers), start=1):
                inside = numbers[window] == number
                if np.count_nonzero(inside) >= self.min_voxels:
                    masks.append((window, inside))
                    classes.append(index)
        counts = {"components": found, f"dropped below {self.min_voxels} voxels": found - len(masks)}
        return FoundObjects(masks, classes, counts)
