"""How objects are found in label files that do not number them: class masks, several readers' masks of one object."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import xarray as xr
from jaxtyping import Int32
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
    """Objects are the 26-connected components of some values of a class mask; components that touch are one object.

    Objects of groups that share values, as those of nested tumour regions do, overlap.

    Raises:
        ValueError: no group, a group without a value, a value below 1, a class below 0, or less than one voxel.
    """

    file: Path
    """Label file on the scan's grid."""
    groups: tuple[tuple[int, tuple[int, ...]], ...]
    """Of each group the index of its class and its values in the file, which count as one."""
    min_voxels: int = 3
    """Smaller components are dropped and counted; nnDetection keeps those of 3 voxels for the pancreas of the MSD."""
    known: tuple[int, ...] | None = None
    """Values that the file may hold besides 0 and those of the groups; None: any."""

    def __post_init__(self) -> None:
        for k, (index, values) in enumerate(self.groups):
            if index < 0 or min(values, default=0) < 1:
                raise ValueError(f"groups[{k}] has class {index} and values {values}, wanted 0 or more and 1 or more")
        if not self.groups or self.min_voxels < 1:
            raise ValueError(f"{len(self.groups)} groups, min_voxels {self.min_voxels}: wanted 1 or more of both")

    def find(self, scan: xr.DataArray) -> FoundObjects:
        """Return the components, group by group, in the order of their first voxels.

        Raises:
            ScanError: as `read_labels`, or the file holds a value that is not `known`.
        """
        labels = read_labels(self.file, like=scan).values
        windows = find_windows(labels)
        if self.known is not None:
            check_values(self.file, windows, {*self.known, *(value for _, values in self.groups for value in values)})
        masks: list[Mask] = []
        classes: list[int] = []
        found = 0
        for index, values in self.groups:
            there = [windows[value] for value in values if value in windows]
            components = list(_components(labels, values, _around(there))) if there else []
            kept = [mask for mask in components if np.count_nonzero(mask[1]) >= self.min_voxels]
            found += len(components)
            masks += kept
            classes += [index] * len(kept)
        counts = {"components": found, f"dropped below {self.min_voxels} voxels": found - len(masks)}
        return FoundObjects(masks, classes, counts)


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
            every = (slice(0, None),) * 3
            marked = [tight((every, read_labels(path, like=scan).values > 0)) for path in files]
            agreed = vote([mask for mask in marked if mask is not None], self.readers or len(files), self.share)
            if agreed is not None:
                masks.append(agreed)
                classes.append(index)
        counts = {"objects marked": len(self.objects), "dropped for want of votes": len(self.objects) - len(masks)}
        return FoundObjects(masks, classes, counts)


def check_values(path: Path, found: Collection[int], known: Collection[int]) -> None:
    """Refuse values of a label file that are neither 0 nor known.

    Raises:
        ScanError: names the lowest of them.
    """
    wanted = sorted({*known} - {0})
    strangers = sorted({*found} - {0, *wanted})
    if strangers:
        raise ScanError(f"{path}: label {strangers[0]} ({len(strangers)} such labels), wanted 0 or one of {wanted}")


def vote(masks: Sequence[Mask], voters: int, share: Number) -> Mask | None:
    """Return the voxels that at least a share of the voters hold; None if there is none.

    Args:
        masks: one per voter who marked the object; they may lie anywhere.
        voters: all who looked; those without a mask hold no voxel.
        share: above 0.
    """
    if not masks:
        return None
    window = _around([window for window, _ in masks])
    votes = np.zeros([side.stop - side.start for side in window], np.int32)
    for place, inside in masks:
        votes[tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(place, window, strict=True))] += inside
    return tight((window, votes / voters >= share))


def tight(mask: Mask) -> Mask | None:
    """Return a mask without the empty planes around it; None if it has no voxel."""
    window, inside = mask
    found = ndimage.find_objects(inside.astype(np.uint8))
    if not found:
        return None
    return _inside_of(window, found[0]), inside[found[0]].copy()  # not a view that keeps the volume


def _components(labels: Int32[np.ndarray, "z y x"], values: Sequence[int], window: Slices) -> Iterator[Mask]:
    """Yield the components that some values together have in a window."""
    numbers, _ = ndimage.label(np.isin(labels[window], values), structure=TOUCHING)
    for k, box in enumerate(ndimage.find_objects(numbers), start=1):
        yield _inside_of(window, box), numbers[box] == k


def _around(windows: Sequence[Slices]) -> Slices:
    """Return the smallest window around all."""
    z, y, x = (
        slice(min(side.start for side in sides), max(side.stop for side in sides))
        for sides in zip(*windows, strict=True)
    )
    return z, y, x


def _inside_of(outer: Slices, inner: Slices) -> Slices:
    """Return a window that is given inside another one as a window of the volume."""
    z, y, x = (slice(a.start + b.start, a.start + b.stop) for a, b in zip(outer, inner, strict=True))
    return z, y, x
