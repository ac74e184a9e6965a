"""D05, Duke-Breast-Cancer-MRI: dynamic contrast-enhanced MRI with a box around each primary tumour."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from girih_data3d.case_source import Dataset
from girih_data3d.errors import ManifestError
from girih_data3d.formats.cases import make_dataset, make_source
from girih_data3d.formats.dicom_series import dicom_files, list_series
from girih_data3d.formats.dicom_tags import (
    IMAGE_ORIENTATION,
    IMAGE_POSITION,
    INSTANCE_NUMBER,
    SERIES_DESCRIPTION,
    SERIES_UID,
    read_tags,
)
from girih_data3d.formats.format import Counts, Format
from girih_data3d.formats.listing import Listing, find_file, find_root
from girih_data3d.formats.spreadsheet import read_xlsx
from girih_data3d.formats.table import Row
from girih_data3d.object_label import ObjectLabel

NAME = "duke-breast"
PATIENT = re.compile(r"Breast_MRI_\d{3}")
BOXES, MAPPING = "Annotation_Boxes.xlsx", "Breast-Cancer-MRI-filepath_filename-mapping.xlsx"
TABLE_FOLDERS = (".", "..", "metadata", "../metadata")
IN_SLICE = ("row", "column")
BOX_COLUMNS: Mapping[str, Sequence[str]] = {
    "patient": ("Patient ID", "PatientID"),
    **{
        f"{end} {axis}": (f"{axis} {end}", f"{end} {axis} index")
        for axis in ("slice", *IN_SLICE)
        for end in ("start", "end")
    },
}
MAPPING_COLUMNS: Mapping[str, Sequence[str]] = {"original": ("original_path_and_filename",)}
MAPPING_PATHS: Mapping[str, Sequence[str]] = {"classic": ("classic_path",), "descriptive": ("descriptive_path",)}
MAX_BOXES_BYTES, MAX_MAPPING_BYTES = 64 << 20, 4 << 30
"""Unpacked; the mapping has a row per DICOM file, some 770,000."""
SEQUENCES = ("pre", "post1", "post2", "post3", "post4", "t1")
DYNAMIC, NO_SEQUENCE = re.compile(r"\bdyn"), re.compile(r"\b(sub|t2|seg|mask|mip|loc)")
PRE, PASS, PHASE = re.compile(r"\bpre\b"), re.compile(r"\b([1-4])(?:st|nd|rd|th) pass"), re.compile(r"^ph([1-4])")
"""How series are described; subtractions and others are none of the sequences."""


def read(
    folder: Path,
    *,
    sequences: str = "pre,post_1,post_2,post_3",
    paint: Literal["ellipsoid", "box", "none"] = "ellipsoid",
) -> Dataset:
    """Read `Breast_MRI_001/<study>/<series>/*.dcm` and Annotation_Boxes.xlsx, one channel per sequence.

    Which series is which sequence stands in Breast-Cancer-MRI-filepath_filename-mapping.xlsx (reading its 770,000 rows
    takes a minute or more); without it, series are chosen by their descriptions, and patients for whom that is not
    clear are passed over. Rows, columns and slices of a box count from 1, both ends inside; a slice is the one of the
    first sequence with that InstanceNumber. The numbers may run against the patient's z axis, and begin above 1 where
    slices are missing at an end.
    Patients without a row or without one of the sequences are passed over. The paper leaves out 11 of the 922 patients
    and does not say which.

    Args:
        folder: the one with the patients, or above it; the tables lie there, above, or in a folder metadata.
        sequences: some of pre, post_1 to post_4, T1, with commas between them, in the order of the channels.
        paint: masks made of the boxes; "none" for a detector that needs none.

    Raises:
        ManifestError: no patients, no table, a row that cannot be, a box on slices that its series does not have, two
            series of one sequence, or slices without position, or whose numbers leave gaps.
    """
    wanted = _sequences(sequences)
    root = find_root(folder, lambda at: bool(_patients(at)), "folders Breast_MRI_001, ...")
    table = find_file(root.folder, BOXES, TABLE_FOLDERS)
    if table is None:
        raise ManifestError(f"{root.folder / BOXES}: no such file, also not in the folder above or in metadata")
    boxes = _boxes(table)
    names = _names(root)
    passed_over: list[str] = []
    sources = []
    for patient in _patients(root):
        if patient not in boxes:
            passed_over.append(f"{patient}: no row in {BOXES}")
            continue
        all_series = list(list_series(root.folder / patient))
        found = _by_description(all_series) if names is None else _by_name(all_series, names[patient])
        chosen = [_only(patient, sequence, found.get(sequence, [])) for sequence in wanted]
        images = [series for series in chosen if series is not None]
        if len(images) < len(wanted):
            lost = wanted[chosen.index(None)]
            passed_over.append(f"{patient}: no series of sequence {lost} among {len(all_series)}")
            continue
        numbers, uid = _slices(images[0])
        sources.append(
            make_source(
                str(images[0].folder),
                patient,
                tuple(series.folder for series in images),
                objects=tuple(_label(row, numbers) for row in boxes[patient]),
                paint=paint,
                patient_id=patient,
                modality="MR",
                series_uid=uid or None,
            )
        )
    if not sources:
        reason = f": {passed_over[0]}" if passed_over else ""
        raise ManifestError(f"{root.folder}: {len(passed_over)} patients, none of them complete{reason}")
    absent = len(set(boxes) - set(_patients(root)))
    passed_over += [f"{BOXES}: rows of {absent} patients whose folder is not there"] if absent else []
    return make_dataset(root.folder, NAME, ("tumor",), sources, passed_over)


FORMAT = Format(
    name=NAME,
    title="D05 Duke-Breast-Cancer-MRI",
    home="The Cancer Imaging Archive (TCIA)",
    licence="CC BY-NC 4.0",
    read=read,
    counts=Counts(images=911, objects=911, parts={"train": 509, "val": 128, "test": 274}),
    unverified=(
        "rows, columns and slices of the boxes count from 1 and both ends are inside; nnDetection's script takes them "
        "as from 0, the end outside",
        "slices are numbered by InstanceNumber, as nnDetection and MAEMI take them",
        "the four sequences of the paper are pre and post 1 to 3, as nnDetection's script has them",
        "how series are described, where the mapping is not there",
        "which 11 of the 922 patients the paper leaves out",
    ),
)


def _sequences(text: str) -> list[str]:
    wanted = [_key(name) for name in text.split(",")]
    if not all(name in SEQUENCES for name in wanted) or len(set(wanted)) < len(wanted):
        known = "pre, post_1, post_2, post_3, post_4, T1"
        raise ValueError(f"format {NAME}: sequences is {text!r}, wanted some of {known}, each once, with commas")
    return wanted


def _key(sequence: str) -> str:
    return sequence.strip().lower().replace("_", "")


def _patients(at: Listing) -> list[str]:
    return [name for name in at.folders if PATIENT.fullmatch(name)]


def _boxes(path: Path) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in read_xlsx(path, BOX_COLUMNS, max_bytes=MAX_BOXES_BYTES):
        patient = row.text("patient")
        if not PATIENT.fullmatch(patient):
            raise ManifestError(f"{row.where}: patient is {patient!r}, wanted Breast_MRI_ and three digits")
        rows[patient].append(row)
    return rows


def _names(root: Listing) -> dict[str, dict[str, set[str]]] | None:
    """Return patient -> sequence -> names that the folder of the series may have; None without the mapping."""
    path = find_file(root.folder, MAPPING, TABLE_FOLDERS)
    if path is None:
        return None
    names: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in read_xlsx(path, MAPPING_COLUMNS, MAPPING_PATHS, max_bytes=MAX_MAPPING_BYTES):
        original = [part for part in row.text("original").split("/") if part]
        if len(original) < 4:  # DICOM_Images/Breast_MRI_001/pre/Breast_MRI_001_pre_001.dcm
            raise ManifestError(f"{row.where}: original is {row['original']!r}, wanted folder/patient/sequence/file")
        series = [[part for part in row[column].split("/") if part] for column in MAPPING_PATHS]
        if not any(series):
            raise ManifestError(f"{row.where}: neither classic_path nor descriptive_path, wanted one")
        names[original[1]][_key(original[2])].update(parts[-2] for parts in series if len(parts) > 1)
    return names


def _by_name(all_series: Sequence[Listing], names: Mapping[str, set[str]]) -> dict[str, list[Listing]]:
    """Return the series of each sequence whose folder has one of its names, or else one after a dash or the like.

    A dot is none: 9.1.2 is another UID than 1.2.
    """
    found = {}
    for sequence, wanted in names.items():
        equal = [series for series in all_series if series.folder.name in wanted]
        ends = tuple(f"{dash}{name}" for name in wanted for dash in "-_ ")
        found[sequence] = equal or [series for series in all_series if series.folder.name.endswith(ends)]
    return found


def _by_description(all_series: Sequence[Listing]) -> dict[str, list[Listing]]:
    found: dict[str, list[Listing]] = defaultdict(list)
    for series in all_series:
        slices = dicom_files(series)
        if slices:
            text = read_tags(slices[0], SERIES_DESCRIPTION)[SERIES_DESCRIPTION].lower()
            if DYNAMIC.search(text) and not NO_SEQUENCE.search(text):
                numbered = PASS.search(text) or PHASE.search(text)
                sequence = f"post{numbered[1]}" if numbered else "pre" if PRE.search(text) else ""
                found[sequence].append(series)
    return found


def _only(patient: str, sequence: str, series: Sequence[Listing]) -> Listing | None:
    if len(series) > 1:
        folders = ", ".join(found.folder.name for found in series)
        raise ManifestError(f"{patient}: {len(series)} series of sequence {sequence} ({folders}), wanted one")
    return series[0] if series else None


def _slices(series: Listing) -> tuple[range, str]:
    """Return the InstanceNumbers of a series' slices in the order they are read in, and its UID.

    Slices are read in order of their positions along the normal, the product of the directions of row and column.
    """
    files = dicom_files(series)
    if len(files) < 2:
        raise ManifestError(f"{series.folder}: {len(files)} .dcm files, wanted a series of slices")
    tags = (INSTANCE_NUMBER, IMAGE_POSITION, IMAGE_ORIENTATION, SERIES_UID)
    ends = [read_tags(path, *tags) for path in (files[0], files[-1])]
    try:
        numbers = [int(end[INSTANCE_NUMBER]) for end in ends]
        if abs(numbers[1] - numbers[0]) + 1 != len(files):  # names are no help
            ends = sorted((read_tags(path, *tags) for path in files), key=lambda end: int(end[INSTANCE_NUMBER]))
            numbers = [int(end[INSTANCE_NUMBER]) for end in ends]
        axes = np.array(ends[0][IMAGE_ORIENTATION].split("\\"), np.float64).reshape(2, 3)
        places = np.array([end[IMAGE_POSITION].split("\\") for end in (ends[0], ends[-1])], np.float64).reshape(2, 3)
    except ValueError as error:
        raise ManifestError(
            f"{series.folder}: slices without InstanceNumber, Image Position or Image Orientation (Patient) in numbers"
        ) from error
    lowest, highest = min(numbers), max(numbers)
    if highest - lowest + 1 != len(files):
        raise ManifestError(
            f"{series.folder}: {len(files)} slices with InstanceNumbers from {lowest} to {highest}, wanted one of each"
        )
    rise = float(np.cross(axes[0], axes[1]) @ (places[1] - places[0])) * (numbers[-1] - numbers[0])
    if rise == 0:
        raise ManifestError(f"{series.folder}: its first and last slice have one position")
    in_order = range(lowest, highest + 1)
    return in_order if rise > 0 else in_order[::-1], ends[0][SERIES_UID]


def _label(row: Row, numbers: range) -> ObjectLabel:
    first, last = row.whole("start slice", 1), row.whole("end slice", 1)
    if not min(numbers) <= first <= last <= max(numbers):
        there = f"{min(numbers)} to {max(numbers)}"
        raise ManifestError(f"{row.where}: slices {first} to {last}, wanted rising ones of the series' {there}")
    low = min(numbers.index(first), numbers.index(last)), *(row.whole(f"start {axis}", 1) - 1 for axis in IN_SLICE)
    high = max(numbers.index(first), numbers.index(last)) + 1, *(row.whole(f"end {axis}", 1) for axis in IN_SLICE)
    try:
        return ObjectLabel(0, box_zyx=(*low, *high))
    except ValueError as error:
        raise ManifestError(f"{row.where}: {error}") from error
