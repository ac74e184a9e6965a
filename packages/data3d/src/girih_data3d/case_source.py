"""The files of one case and what is known about it, and a dataset as a list of such cases."""

import sys
from collections.abc import Mapping
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


@dataclass(frozen=True)
class CaseSource:
    """The files of one case and what is known about its objects: masks, or boxes and points, or nothing.

    Raises:
        ValueError: objects given in two ways, classes of masks without a mask file, an unknown paint or one for masks,
            a spacing that is not positive, or a slope of 0.
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
        where = f"case {self.case_id!r}"
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
        spacing, rescale = self.spacing_zyx_mm, self.rescale
        if spacing is not None and not (len(spacing) == 3 and all(0 < mm < MAX_SPACING_MM for mm in spacing)):
            raise ValueError(
                f"{where}: spacing_zyx_mm is {spacing}, wanted three lengths above 0 and below {MAX_SPACING_MM:g} mm"
            )
        if rescale is not None and not (len(rescale) == 2 and rescale[0] != 0 and all(map(_is_finite, rescale))):
            raise ValueError(f"{where}: rescale is {rescale}, wanted a finite slope that is not 0 and an intercept")


@dataclass(frozen=True)
class Dataset:
    """A named list of cases; `classes[i]` is the name of class i."""

    name: str
    classes: tuple[str, ...]
    sources: tuple[CaseSource, ...]
    passed_over: tuple[str, ...] = ()
    """Names in a folder of scans that are none."""


def _is_finite(value: Number) -> bool:
    return abs(value) <= sys.float_info.max  # also of whole numbers too large for a float
