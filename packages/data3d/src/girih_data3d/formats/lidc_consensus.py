"""What the readers of LIDC-IDRI agree on: marks of one nodule, and the voxels that enough of them hold."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import xarray as xr
from jaxtyping import Float64, Int64

from girih_data3d.affine import world_to_voxel
from girih_data3d.errors import ManifestError, ScanError
from girih_data3d.formats.dicom_series import dicom_files
from girih_data3d.formats.dicom_tags import IMAGE_POSITION, SOP_UID, read_tags
from girih_data3d.formats.lidc_xml import Mark, Outline, read_readings
from girih_data3d.formats.listing import list_folder
from girih_data3d.formats.outlines import fill_outline
from girih_data3d.instances import Mask as VoxelMask
from girih_data3d.object_rules import FoundObjects, tight, vote
from girih_data3d.resampling import Number
from girih_data3d.scan import read_labels

READERS = 4
"""Who read every scan of LIDC-IDRI (Armato et al. 2011, section II.C)."""
MALIGNANT = 3
"""Mean malignancy from which a nodule is malignant, as nnDetection does it."""
Pad = Literal["zeros", "present_only"]
Classes = Literal["malignancy", "nodule"]
CLASS_NAMES: dict[Classes, tuple[str, ...]] = {"malignancy": ("benign", "malignant"), "nodule": ("nodule",)}


@dataclass(frozen=True, eq=False)
class Drawing:
    """The outlines of one mark on the slices of its scan."""

    reader: int
    slices: Int64[np.ndarray, " n"]
    """Of each outline, from 0."""
    outlines: tuple[Outline, ...]

    @property
    def box(self) -> Int64[np.ndarray, "6"]:
        """Return (z0, y0, x0, z1, y1, x1): the slices, and the outermost pixels of the lines around the nodule."""
        drawn = [k for k, outline in enumerate(self.outlines) if outline.inclusion]
        points = np.concatenate([self.outlines[k].points_xy for k in drawn])[:, ::-1]
        low, high = points.min(axis=0), points.max(axis=0)
        box: np.ndarray = np.array([self.slices[drawn].min(), *low, self.slices[drawn].max() + 1, *high])
        return box

    def mask(self) -> VoxelMask:
        """Return the voxels of the mark: all that is outlined, then all holes cut out, whatever their order."""
        filled = [fill_outline(outline.points_xy) for outline in self.outlines]
        low = np.array([[z, y, x] for z, ((x, y), _) in zip(self.slices.tolist(), filled, strict=True)])
        high = low + [[1, *inside.shape] for _, inside in filled]
        start, stop = low.min(axis=0), high.max(axis=0)
        held = np.zeros(stop - start, bool)
        for k in sorted(range(len(filled)), key=lambda k: not self.outlines[k].inclusion):
            (z, y, x), (_, y1, x1) = low[k] - start, high[k] - start
            held[z, y:y1, x:x1][filled[k][1]] = self.outlines[k].inclusion
        return _window(start, stop), held


def group_drawings(drawings: Sequence[Drawing]) -> list[list[int]]:
    """Return which drawings are of one nodule, in order of their first drawing.

    The readers' files have no number of the nodule, only of each reader's mark. Drawings whose boxes share a volume
    belong together, directly or through one another, but never two of one reader: pairs join in order of their boxes'
    overlap (intersection over union), unless both sides have a drawing of the same reader.
    """
    boxes = np.array([drawing.box for drawing in drawings], np.float64).reshape(-1, 6)
    sides = np.minimum(boxes[:, None, 3:], boxes[None, :, 3:]) - np.maximum(boxes[:, None, :3], boxes[None, :, :3])
    shared = sides.clip(min=0).prod(axis=-1)
    volume = (boxes[:, 3:] - boxes[:, :3]).prod(axis=1)
    first, second = np.nonzero(np.triu(shared, k=1))
    overlap = shared[first, second] / (volume[first] + volume[second] - shared[first, second])
    groups = [[k] for k in range(len(drawings))]
    for pair in np.argsort(-overlap, kind="stable").tolist():
        one, other = groups[first[pair]], groups[second[pair]]
        if one is other or {drawings[k].reader for k in one} & {drawings[k].reader for k in other}:
            continue
        one += other
        for k in other:
            groups[k] = one
    return [sorted(group) for k, group in enumerate(groups) if k == min(group)]


def malignancy_class(ratings: Sequence[int | None], pad: Pad) -> int:
    """Return 1 (malignant) if the readers' mean is 3 or more, else 0.

    Args:
        ratings: 1 to 5, None of a mark without a rating.
        pad: "zeros" fills up to four readers with 0, as nnDetection does: two who say 5 give 2.5, benign;
            "present_only" takes the mean of those who rated.

    Raises:
        ValueError: "present_only", and nobody rated.
    """
    given = [rating for rating in ratings if rating is not None]
    if pad == "present_only" and not given:
        raise ValueError("no reader rated its malignancy; malignancy_pad='zeros' takes it as benign")
    return int(sum(given) / (max(READERS, len(given)) if pad == "zeros" else len(given)) >= MALIGNANT)


@dataclass(frozen=True)
class LidcConsensus:
    """Nodules of 3 mm or more as the readers of one LIDC-IDRI scan outlined them.

    Marks are grouped by `group_drawings`; a voxel counts if at least `min_share` of the readers hold it. The line
    itself lies just outside of the nodule (Armato et al. 2011: an outer border). A nodule below 3 mm is a point that
    nobody outlined: it is counted, and dropped. An outline lies on the slice of its SOP Instance UID where `series` has
    it, else on the one at its z, no more than half a slice away.

    Raises:
        ValueError: a share outside (0, 1], or numbers of readers that cannot be.
    """

    xml: Path
    series: Path | None = None
    """Folder of the DICOM series; None (the scan is another file): slices are found by z alone."""
    min_share: Number = 0.5
    """Of four readers, or of as many as there are sessions: those who made no mark count as empty masks."""
    min_readers: int = 1
    """Nodules that fewer readers marked are dropped."""
    malignancy_pad: Pad = "zeros"
    """See `malignancy_class`."""
    classes: Classes = "malignancy"
    """By "malignancy" 0 is benign and 1 malignant; by "nodule" all are 0."""

    def __post_init__(self) -> None:
        _check_votes(self.min_share, self.min_readers)

    def find(self, scan: xr.DataArray) -> FoundObjects:
        """Return the nodules in order of their first mark.

        Raises:
            ScanError: the XML file cannot be read, or an outline lies on no slice or reaches out of the scan.
        """
        readings = read_readings(self.xml)
        outlined = [mark for mark in readings.marks if not mark.is_point and any(o.inclusion for o in mark.outlines)]
        slice_of = _slice_finder(scan, self.series)
        drawings = [_draw(self.xml, mark, scan, slice_of) for mark in outlined]
        groups = group_drawings(drawings)
        kept = [group for group in groups if len(group) >= self.min_readers]
        masks: list[VoxelMask] = []
        classes: list[int] = []
        for group in kept:
            agreed = vote([drawings[k].mask() for k in group], max(READERS, readings.readers), self.min_share)
            if agreed is not None:
                masks.append(_canonical(agreed, scan))
                classes.append(self._class_of([outlined[k] for k in group]))
        counts = {
            "readers": readings.readers,
            "marks outlined": len(outlined),
            "marks dropped: nothing outlined (nodules below 3 mm)": len(readings.marks) - len(outlined),
            "marks dropped: not nodules": readings.non_nodules,
            "nodules": len(groups),
            f"nodules dropped: fewer than {self.min_readers} readers": len(groups) - len(kept),
            f"nodules dropped: no voxel of {self.min_share:g} of the readers": len(kept) - len(masks),
        }
        return FoundObjects(masks, classes, counts)

    def _class_of(self, marks: Sequence[Mark]) -> int:
        if self.classes == "nodule":
            return 0
        try:
            return malignancy_class([mark.malignancy for mark in marks], self.malignancy_pad)
        except ValueError as error:
            raise ScanError(f"{self.xml}: nodule {marks[0].nodule_id!r}: {error}") from error


@dataclass(frozen=True)
class LidcMasks:
    """Nodules whose marks are mask files already, as the converter of MIC-DKFZ writes them; see `LidcConsensus`.

    Raises:
        ValueError: a share outside (0, 1], or numbers of readers that cannot be.
    """

    nodules: tuple[tuple[int, tuple[tuple[Path, ...], ...]], ...]
    """Of each nodule the index of its class and, of each reader who marked it, the mask files, which are united."""
    min_share: Number = 0.5
    min_readers: int = 1

    def __post_init__(self) -> None:
        _check_votes(self.min_share, self.min_readers)

    def find(self, scan: xr.DataArray) -> FoundObjects:
        """Return the nodules in the order given.

        Raises:
            ScanError: a mask cannot be read or does not lie on the scan's grid.
        """
        kept = [(index, readers) for index, readers in self.nodules if len(readers) >= self.min_readers]
        masks: list[VoxelMask] = []
        classes: list[int] = []
        for index, readers in kept:
            marked = [mask for files in readers if (mask := _united(files, scan)) is not None]
            agreed = vote(marked, max(READERS, len(readers)), self.min_share)
            if agreed is not None:
                masks.append(agreed)
                classes.append(index)
        counts = {
            "nodules": len(self.nodules),
            f"nodules dropped: fewer than {self.min_readers} readers": len(self.nodules) - len(kept),
            f"nodules dropped: no voxel of {self.min_share:g} of the readers": len(kept) - len(masks),
        }
        return FoundObjects(masks, classes, counts)


def _check_votes(min_share: Number, min_readers: int) -> None:
    if not 0 < min_share <= 1:
        raise ValueError(f"min_share is {min_share}, wanted above 0 and at most 1")
    if not 1 <= min_readers <= READERS:
        raise ValueError(f"min_readers is {min_readers}, wanted 1 to {READERS}")


def _slice_finder(scan: xr.DataArray, series: Path | None) -> Callable[[Outline], int | None]:
    affine = np.asarray(scan.attrs["source_affine"])
    count = int(scan.attrs["source_shape_zyx"][0])
    z_mm = affine[2, 2] * np.arange(count) + affine[2, 3]
    reach = abs(float(affine[2, 2])) / 2 + 1e-3
    slices = {} if series is None else _slices_by_uid(series, affine)

    def find(outline: Outline) -> int | None:
        known = slices.get(outline.sop_uid)
        nearest = int(np.abs(z_mm - outline.z_mm).argmin()) if known is None else known
        found = known is not None or abs(z_mm[nearest] - outline.z_mm) <= reach
        return nearest if found and 0 <= nearest < count else None

    return find


def _slices_by_uid(series: Path, source_affine: Float64[np.ndarray, "4 4"]) -> dict[str, int]:
    """Return SOP Instance UID -> number of the slice in the scan as it was read, by the slice's position."""
    try:
        found = [read_tags(path, SOP_UID, IMAGE_POSITION) for path in dicom_files(list_folder(series))]
    except ManifestError as error:
        raise ScanError(str(error)) from error
    slices = {}
    for tags in found:
        if all(tags.values()):
            x, y, z = (float(value) for value in tags[IMAGE_POSITION].split("\\"))
            slices[tags[SOP_UID]] = round(float(world_to_voxel(source_affine, np.array([[-x, -y, z]]))[0, 0]))
    return slices


def _draw(xml: Path, mark: Mark, scan: xr.DataArray, slice_of: Callable[[Outline], int | None]) -> Drawing:
    depth, height, width = (int(n) for n in scan.attrs["source_shape_zyx"])
    where = f"{xml}: reading session {mark.reader}, nodule {mark.nodule_id!r}"
    slices = []
    for outline in mark.outlines:
        number = slice_of(outline)
        if number is None:
            raise ScanError(
                f"{where}: an outline at z {outline.z_mm:g} mm (SOP Instance UID {outline.sop_uid!r}) lies on none of "
                f"the {depth} slices of the scan"
            )
        low, high = outline.points_xy.min(axis=0), outline.points_xy.max(axis=0)
        if low.min() < 0 or high[0] >= width or high[1] >= height:
            raise ScanError(
                f"{where}: an outline from (x, y) {low.tolist()} to {high.tolist()} reaches out of the slice, which is "
                f"{width} x {height}"
            )
        slices.append(number)
    return Drawing(mark.reader, np.array(slices, np.int64), mark.outlines)


def _canonical(mask: VoxelMask, scan: xr.DataArray) -> VoxelMask:
    """Carry a mask from the voxels of the scan's file to those of the canonical scan."""
    window, inside = mask
    index = np.argwhere(inside) + [s.start for s in window]
    turn = np.linalg.solve(np.asarray(scan.attrs["affine"]), np.asarray(scan.attrs["source_affine"]))
    index = np.rint(index[:, ::-1] @ turn[:3, :3].T + turn[:3, 3]).astype(np.int64)[:, ::-1]
    start, stop = index.min(axis=0), index.max(axis=0) + 1
    turned = np.zeros(stop - start, bool)
    turned[tuple((index - start).T)] = True
    return _window(start, stop), turned


def _united(files: Sequence[Path], scan: xr.DataArray) -> VoxelMask | None:
    held = np.zeros(scan.shape[-3:], bool)
    for path in files:
        held |= read_labels(path, like=scan).values > 0
    return tight(((slice(0, None),) * 3, held))


def _window(start: Int64[np.ndarray, "3"], stop: Int64[np.ndarray, "3"]) -> tuple[slice, slice, slice]:
    z, y, x = (slice(low, high) for low, high in zip(start.tolist(), stop.tolist(), strict=True))
    return z, y, x
