"""How objects are found in label files that do not number them: class masks, several readers' masks of one object."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import xarray as xr
from jaxtyping import Bool
from scipy import ndimage

from girih_data3d.errors import ScanError
from girih_data3d.instances import Mask, Slices, find_windows
from girih_data3d.resampling import Number
from girih_data3d.scan import read_labels

TOUCHING = np.ones((3, 3, 3), bool)
"""Voxels that share a face, an edge or a corner are connected (26-connected)."""


@dataclass(frozen=True)
class FoundObjects:
    """The objects of one case, on the grid of its canonical scan."""

    masks: list[Mask]
    """They may overlap."""
    classes: list[int]
    """Index of each object's class."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What was found and what was dropped, such as {"components": 5, "dropped below 3 voxels": 1}; kept in the record
    of the case."""


@runtime_checkable
class ObjectRule(Protocol):
    """A frozen dataclass of plain values and paths, so that it can be pickled, compared and written to the record.

    Its name, its values and the fingerprints of all files among them are part of what a prepared case was made from:
    files stand as `Path` in fields, tuples and values of mappings.
    """

    def find(self, scan: xr.DataArray) -> FoundObjects:
        """Return the objects of the case whose canonical scan (channel, z, y, x) this is.

        Raises:
            ScanError: a file cannot be read, or does not lie on the scan's grid.
        """
        ...


@dataclass(frozen=True)
class Components:
    """Objects are the 26-connected components of some values of class masks; components that touch are one object.

    Values that are not listed are tissues and no objects. Objects of different files may overlap.

    Raises:
        ValueError: no file, no value, a value below 1, a class below 0, or less than one voxel.
    """

    files: tuple[Path, ...]
    """Label files on the scan's grid."""
    classes: Mapping[int, int]
    """Value in the files -> index of the class of its components."""
    min_voxels: int = 3
    """Smaller components are dropped and counted; nnDetection keeps those of 3 voxels for the pancreas of the MSD."""
    known: tuple[int, ...] | None = None
    """Values that a file may hold besides 0 and those of `classes`; None: any."""

    def __post_init__(self) -> None:
        if not self.files or not self.classes:
            raise ValueError(f"files are {self.files}, classes {dict(self.classes)}: wanted at least one of each")
        if min(self.classes) < 1 or min(self.classes.values()) < 0:
            raise ValueError(f"classes are {dict(self.classes)}, wanted values of 1 or more and class indices from 0")
        if self.min_voxels < 1:
            raise ValueError(f"min_voxels is {self.min_voxels}, wanted 1 or more")

    def find(self, scan: xr.DataArray) -> FoundObjects:
        """Return the components: file by file, by rising value, in the order of their first voxels.

        Raises:
            ScanError: as `read_labels`, or a file holds a value that is not `known`.
        """
        masks: list[Mask] = []
        classes: list[int] = []
        found = 0
        for path in self.files:
            labels = read_labels(path, like=scan).values
            windows = find_windows(labels)
            self._check_values(path, windows)
            for value in sorted(windows.keys() & self.classes.keys()):
                components = list(_components(labels[windows[value]] == value, windows[value]))
                kept = [mask for mask in components if np.count_nonzero(mask[1]) >= self.min_voxels]
                found += len(components)
                masks += kept
                classes += [self.classes[value]] * len(kept)
        counts = {"components": found, f"dropped below {self.min_voxels} voxels": found - len(masks)}
        return FoundObjects(masks, classes, counts)

    def _check_values(self, path: Path, windows: Mapping[int, Slices]) -> None:
        if self.known is None:
            return
        wanted = sorted({*self.known, *self.classes} - {0})
        strangers = sorted(set(windows) - set(wanted))
        if strangers:
            raise ScanError(f"{path}: label {strangers[0]} ({len(strangers)} such labels), wanted 0 or one of {wanted}")


@dataclass(frozen=True)
class Votes:
    """Each object is what enough readers marked: a voxel counts if at least a share of all masks of the object hold it.

    Objects that touch stay apart, and may overlap.

    Raises:
        ValueError: an object without a file, a class below 0, more masks of an object than readers, or a share outside
            (0, 1].
    """

    objects: tuple[tuple[int, tuple[Path, ...]], ...]
    """Of each object the index of its class and its masks, one file per reader; voxels above 0 are the object."""
    readers: int | None = None
    """Readers who looked at the case: those who made no mask of an object count as empty masks. None: as many as there
    are masks of it."""
    share: Number = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}, wanted above 0 and at most 1")
        for k, (index, files) in enumerate(self.objects):
            if index < 0 or not files:
                raise ValueError(f"objects[{k}] has class {index} and {len(files)} masks, wanted 0 or more and a mask")
            if self.readers is not None and len(files) > self.readers:
                raise ValueError(f"objects[{k}] has {len(files)} masks, wanted at most one per reader ({self.readers})")

    def find(self, scan: xr.DataArray) -> FoundObjects:
        """Return the objects of which any voxel is left, in the order given.

        Raises:
            ScanError: as `read_labels`.
        """
        masks: list[Mask] = []
        classes: list[int] = []
        for index, files in self.objects:
            marked = [mask for path in files for mask in _marked(path, scan)]
            agreed = _agreed(marked, self.readers or len(files), self.share)
            if agreed is not None:
                masks.append(agreed)
                classes.append(index)
        counts = {"objects marked": len(self.objects), "dropped for want of votes": len(self.objects) - len(masks)}
        return FoundObjects(masks, classes, counts)


def tight(mask: Mask) -> Mask | None:
    """Return a mask without the empty planes around it; None if it has no voxel."""
    window, inside = mask
    found = ndimage.find_objects(inside.astype(np.uint8))
    if not found:
        return None
    return _inside_of(window, found[0]), inside[found[0]]


def _components(inside: Bool[np.ndarray, "z y x"], window: Slices) -> Iterator[Mask]:
    """Yield the components of a mask that lies in a window."""
    numbers, _ = ndimage.label(inside, structure=TOUCHING)
    for k, box in enumerate(ndimage.find_objects(numbers), start=1):
        yield _inside_of(window, box), numbers[box] == k


def _marked(path: Path, scan: xr.DataArray) -> Iterator[Mask]:
    """Yield one reader's mask of one object; nothing if the file is empty."""
    mask = tight(((slice(0, None),) * 3, read_labels(path, like=scan).values > 0))
    if mask is not None:
        yield mask[0], mask[1].copy()  # not a view that keeps the volume


def _agreed(masks: list[Mask], readers: int, share: Number) -> Mask | None:
    """Return the voxels that lie in at least a share of the masks, which are filled up to `readers` with empty ones."""
    if not masks:
        return None
    low = np.min([[side.start for side in window] for window, _ in masks], axis=0)
    high = np.max([[side.stop for side in window] for window, _ in masks], axis=0)
    votes = np.zeros(high - low, np.int32)
    for window, inside in masks:
        votes[tuple(slice(side.start - a, side.stop - a) for side, a in zip(window, low, strict=True))] += inside
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return tight(((z, y, x), votes / readers >= share))


def _inside_of(outer: Slices, inner: Slices) -> Slices:
    """Return a window that is given inside another one as a window of the volume."""
    z, y, x = (slice(a.start + b.start, a.start + b.stop) for a, b in zip(outer, inner, strict=True))
    return z, y, x
