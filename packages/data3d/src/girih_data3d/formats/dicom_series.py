"""Folders of DICOM series as The Cancer Imaging Archive hands them out: patient/study/series/*.dcm."""

from collections.abc import Iterator
from pathlib import Path

from girih_data3d.formats.listing import Listing, list_folder


def list_series(patient: Path) -> Iterator[Listing]:
    """Yield what lies in each folder two below a patient's."""
    for study in list_folder(patient).folders:
        for name in list_folder(patient / study).folders:
            yield list_folder(patient / study / name)


def dicom_files(series: Listing) -> list[Path]:
    """Return the files that end in .dcm, in capitals or not, in the order of their names."""
    return [series.folder / name for name in series.files if name.lower().endswith(".dcm")]
