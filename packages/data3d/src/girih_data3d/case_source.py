"""The files of one case and what is known about it, and a dataset as a list of such cases."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from girih_data3d.affine import MAX_SPACING_MM
from girih_data3d.grid_checks import Frame
from girih_data3d.nifti import Rescale
from girih_data3d.object_label import ObjectLabel
from girih_data3d.object_rules import ObjectRule
from girih_data3d.painting import Paint
from girih_data3d.resampling import Number, Triple

CASE_ID = re.compile(r"(?!\.)[^\x00-\x1f\x7f/\\:*?\"<>|\ud800-\udfff]+(?<![. ])")
"""A case id names a folder: no separators, no control characters, no leading or trailing dot, and UTF-8 can hold it."""
MAX_CASE_ID_BYTES = 200
"""File systems hold names of 255 bytes; those of exported files are longer than the id."""
PADDING = " \0\t\r\n"
"""What stands around a UID in DICOM files and in tables."""


@dataclass(frozen=True)
class CaseSource:
    """The files of one case and what is known about its objects: masks, or boxes and points, or nothing.

    Raises:
        ValueError: an id that cannot name a folder, no image, objects given in two ways, classes of masks without a
            mask file, an unknown paint or one for masks, a spacing that is not positive, or a slope of 0.
    """

    case_id: str
    images: tuple[Path, ...]
    """One file (or DICOM folder) per channel, all on one grid."""
    instances: tuple[Path, ...] = ()
    """Label files with one number per object, 0 = background; objects of different files may overlap."""
    instance_classes: Mapping[int, int] | None = None
    """Object number -> index of its class: of every object in the files and no other, so that {} says that there is
    none. None, where the dataset has one class only: all are of it."""
    ignore: tuple[int, ...] = ()
    """Numbers of objects that are real, but neither trained on nor scored."""
    objects: tuple[ObjectLabel, ...] | None = None
    """Objects labelled without masks; () says that there is none, None that nobody looked."""
    semantic: Path | None = None
    """Label file with one number per tissue."""
    semantic_values: tuple[int, ...] | None = None
    """Numbers that it may hold besides 0; None: any."""
    patient_id: str | None = None
    """None: every case is its own patient."""
    modality: str | None = None
    frame: Frame | None = None
    """Of a scan with a time axis: its mean, or one frame by number; None: such a scan is an error."""
    rule: ObjectRule | None = None
    """Finds the objects in files that do not number them; instead of `instances` and `objects`."""
    paint: Paint | None = None
    """Masks for objects labelled without: what fills their boxes (an ellipsoid in a sphere's box is the sphere). Boxes
    stay as labelled, see `PatchDataset` for those of samples."""
    defaced: Path | None = None
    """Label file whose voxels above 0 show no patient: removed faces; they are not `valid` in patches."""
    rescale: Rescale | None = None
    """(slope, intercept) in place of the image files' own: intensity = value as stored * slope + intercept."""
    spacing_zyx_mm: Triple | None = None
    """Voxel size in place of the image files' own, along the (z, y, x) of their arrays; the directions of the axes and
    the place of the first voxel stay. An array without a header (.npy) needs it."""
    series_uid: str | None = None
    """DICOM SeriesInstanceUID, of the first channel: the same scan in another dataset has the same."""
    part: str | None = None
    """The dataset's official part: "train", "val", "test", or the name of a fold."""

    def __post_init__(self) -> None:
        if not CASE_ID.fullmatch(self.case_id) or len(self.case_id.encode()) > MAX_CASE_ID_BYTES:
            limit = f"at most {MAX_CASE_ID_BYTES} bytes of UTF-8"
            raise ValueError(f"case_id {self.case_id!r} cannot name a folder ({limit}, no separators)")
        where = f"case {self.case_id!r}"
        if not self.images:
            raise ValueError(f"{where}: images is empty, wanted at least one file")
        labels = {"instances": bool(self.instances), "objects": self.objects is not None, "rule": self.rule is not None}
        given = [name for name, found in labels.items() if found]
        if len(given) > 1:
            raise ValueError(f"{where}: both {given[0]} and {given[1]} are given, wanted one of them")
        if not self.instances and (self.instance_classes is not None or self.ignore):
            raise ValueError(f"{where}: instance_classes or ignore is given, but no instances file")
        if self.paint not in (None, *get_args(Paint)):
            raise ValueError(f"{where}: paint is {self.paint!r}, wanted one of {', '.join(get_args(Paint))}")
        if self.paint is not None and given not in ([], ["objects"]):
            raise ValueError(f"{where}: paint is for objects without masks, but {given[0]} is given")
        spacing, rescale = _floats(self.spacing_zyx_mm), _floats(self.rescale)
        if self.spacing_zyx_mm is not None and not (spacing and all(0 < mm < MAX_SPACING_MM for mm in spacing)):
            found = f"spacing_zyx_mm is {self.spacing_zyx_mm}"
            raise ValueError(f"{where}: {found}, wanted three lengths above 0 and below {MAX_SPACING_MM:g} mm")
        if self.rescale is not None and not (rescale and rescale[0] != 0):
            found = f"rescale is {self.rescale}"
            raise ValueError(f"{where}: {found}, wanted a finite slope that is not 0 and an intercept")
        object.__setattr__(self, "spacing_zyx_mm", spacing)
        object.__setattr__(self, "rescale", rescale)
        object.__setattr__(self, "series_uid", (self.series_uid or "").strip(PADDING) or None)


@dataclass(frozen=True)
class Dataset:
    """A named list of cases; `classes[i]` is the name of class i.

    Raises:
        ValueError: a case id twice; letters' case does not count, for some file systems ignore it.
    """

    name: str
    classes: tuple[str, ...]
    sources: tuple[CaseSource, ...]
    passed_over: tuple[str, ...] = ()
    """Names in a folder of scans that are none."""

    def __post_init__(self) -> None:
        seen: dict[str, CaseSource] = {}
        for source in self.sources:
            other = seen.setdefault(source.case_id.casefold(), source)
            if other is not source:
                raise ValueError(f"case {source.case_id!r} is there twice: {other.images[0]} and {source.images[0]}")


def _floats(values: Sequence[Number] | None) -> tuple[float, ...] | None:
    """Return numbers as floats; None if one is not finite, also of whole numbers too large for a float."""
    try:
        numbers = tuple(float(value) for value in values or ())
    except OverflowError:
        return None
    return numbers if values and all(map(math.isfinite, numbers)) else None
