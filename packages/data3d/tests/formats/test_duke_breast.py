"""Duke-Breast-Cancer-MRI: boxes that count from 1 in slices whose numbers may run against z."""

import shutil
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pytest

import girih_data3d as d3
from girih_data3d.formats.duke_breast import BOXES, FORMAT, MAPPING, read
from girih_data3d.formats.spreadsheet import read_xlsx

HEADER = ["Patient ID", "Start Row", "End Row", "Start Column", "End Column", "Start Slice", "End Slice"]
SEQUENCES = ("pre", "post_1", "post_2", "post_3")
DESCRIPTIONS = ("ax dyn pre", "ax dyn 1st pass", "Ph2ax dyn", "ax 3d dyn 3rd pass")
UPSIDE_DOWN = (False, True)


def write_xlsx(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    book = openpyxl.Workbook()
    assert book.active is not None
    for row in rows:
        book.active.append(list(row))
    book.save(path)
    return path


def box_row(patient: str, box: Sequence[int], *, upside_down: bool) -> list[object]:
    """Return the row of a box of the canonical scan, in the files of `write_series`, whose axes run to L and P."""
    z0, y0, x0, z1, y1, x1 = box
    slices = [12 - z1 + 1, 12 - z0] if upside_down else [z0 + 1, z1]
    return [patient, 16 - y1 + 1, 16 - y0, 20 - x1 + 1, 20 - x0, *slices]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, scans: dict[str, Any], write_series: Callable[..., Path]) -> Path:
    """Two patients with four sequences each, one also with others; the slices of one are numbered against z."""
    root = tmp_path_factory.mktemp("duke") / "manifest-1/Duke-Breast-Cancer-MRI"
    rows: list[list[object]] = [HEADER]
    paths: list[list[object]] = [["original_path_and_filename", "classic_path", "descriptive_path"]]
    for number, upside_down in enumerate(UPSIDE_DOWN, start=1):
        patient = f"Breast_MRI_{number:03}"
        study = root / patient / "01-01-1990-NA-MRI BREAST"
        for k, (sequence, text) in enumerate(zip(SEQUENCES, DESCRIPTIONS, strict=True)):
            name, uid = f"{k}.000000-{text}-1{number}{k}", f"1.2.{number}.{k}"
            tags = {"Modality": "MR", "SeriesDescription": text}
            write_series(scans["plain"], study / name, upside_down=upside_down, series_uid=uid, **tags)
            for file in ("1-001.dcm", "1-002.dcm"):
                original = f"DICOM_Images/{patient}/{sequence}/{patient}_{sequence}_001.dcm"
                classic = f"Duke-Breast-Cancer-MRI/{patient}/1.2/{uid}/000000.dcm"
                paths.append([original, classic, f"Duke-Breast-Cancer-MRI/{patient}/{study.name}/{name}//{file}"])
        for k, text in enumerate(("SUB ax dyn 1st pass", "ax t1") if number == 1 else ()):
            uid = f"1.2.{number}.9{k}"
            write_series(scans["empty"], study / f"9{k}.0-{text}-0", series_uid=uid, SeriesDescription=text)
        rows.append(box_row(patient, scans["plain"].boxes[2], upside_down=upside_down))
    write_xlsx(root.parent / BOXES, rows)
    write_xlsx(root.parent / MAPPING, paths)
    return root.parent


@pytest.fixture
def collection(written: Path, tmp_path: Path) -> Path:
    """A copy that the test may change."""
    return shutil.copytree(written, tmp_path / "manifest-1")


@pytest.mark.parametrize("mapping", [True, False])
def test_boxes_come_out_where_they_were_drawn_whichever_way_slices_are_numbered(
    collection: Path,
    scans: dict[str, Any],
    prepare: Callable[..., d3.Store],
    assert_planted: Callable[..., None],
    mapping: bool,
) -> None:
    if not mapping:
        (collection / MAPPING).unlink()
    dataset = read(collection)
    assert [(s.case_id, s.patient_id, s.series_uid) for s in dataset.sources] == [
        ("Breast_MRI_001", "Breast_MRI_001", "1.2.1.0"),
        ("Breast_MRI_002", "Breast_MRI_002", "1.2.2.0"),
    ]
    for source in dataset.sources:
        assert [path.name.split("-")[1] for path in source.images] == list(DESCRIPTIONS)
    store = prepare(dataset)
    for case_id in ("Breast_MRI_001", "Breast_MRI_002"):
        assert store[case_id].shape == (4, 12, 16, 20)
        assert_planted(store, case_id, scans["plain"], [(0, scans["plain"].boxes[2])])


def test_the_fixture_numbers_slices_both_ways(collection: Path) -> None:
    boxes = [source.objects[0].box_zyx for source in read(collection).sources if source.objects]
    assert boxes[0] == boxes[1] == (7, 2, 2, 10, 7, 8)  # the same in the patient
    sheet = openpyxl.load_workbook(collection / BOXES).active
    assert sheet is not None
    slices = [[cell.value for cell in row[5:7]] for row in list(sheet.iter_rows())[1:]]
    assert slices == [[8, 10], [3, 5]]  # N - end + 1, N - start + 1


def test_sequences_and_masks_as_asked(collection: Path) -> None:
    dataset = read(collection, sequences=" POST_2, pre", paint="box")
    assert [path.name.split("-")[1] for path in dataset.sources[0].images] == ["Ph2ax dyn", "ax dyn pre"]
    assert dataset.sources[0].paint == "box"
    assert read(collection, paint="none").sources[0].paint is None
    for sequences in ("pre,pre", "post_5", "", "pre,,post_1"):
        with pytest.raises(ValueError, match="format duke-breast: sequences is"):
            read(collection, sequences=sequences)


def test_classic_folders_and_names_that_only_end_alike(collection: Path, scans: dict[str, Any]) -> None:
    study = collection / "Duke-Breast-Cancer-MRI/Breast_MRI_001/01-01-1990-NA-MRI BREAST"
    series = sorted(path for path in study.iterdir() if path.name[1] == ".")
    series[0].rename(study / "1.2.1.0")
    series[1].rename(study / f"7-{series[1].name}")  # a number in front
    names = [path.name for path in read(collection).sources[0].images]
    assert names[:2] == ["1.2.1.0", f"7-{series[1].name}"]
    (study / "1.2.1.0").rename(study / "9.1.2.1.0")  # another UID
    assert "Breast_MRI_001: no series of sequence pre among 6" in read(collection).passed_over


def test_incomplete_patients_are_passed_over(collection: Path) -> None:
    study = collection / "Duke-Breast-Cancer-MRI/Breast_MRI_001/01-01-1990-NA-MRI BREAST"
    next(study.glob("3.*")).rename(collection / "elsewhere")
    (collection / "Duke-Breast-Cancer-MRI/Breast_MRI_003").mkdir()
    rows = [HEADER, ["Breast_MRI_001", *[1, 2] * 3], ["Breast_MRI_002", *[1, 2] * 3], ["Breast_MRI_922", *[1, 2] * 3]]
    write_xlsx(collection / BOXES, rows)
    assert read(collection).passed_over == (
        "Breast_MRI_001: no series of sequence post3 among 5",
        "Breast_MRI_003: no row in Annotation_Boxes.xlsx",
        "Annotation_Boxes.xlsx: rows of 1 patients whose folder is not there",
    )
    write_xlsx(collection / BOXES, rows[:2])
    with pytest.raises(d3.ManifestError, match=r"3 patients, none of them complete: Breast_MRI_001: no series"):
        read(collection)


def test_two_series_of_one_sequence(collection: Path, scans: dict[str, Any], write_series: Callable[..., Path]) -> None:
    (collection / MAPPING).unlink()
    study = collection / "Duke-Breast-Cancer-MRI/Breast_MRI_002/01-01-1990-NA-MRI BREAST"
    write_series(scans["plain"], study / "again", SeriesDescription="sag dyn pre")
    with pytest.raises(d3.ManifestError, match=r"Breast_MRI_002: 2 series of sequence pre \(.*again\), wanted one"):
        read(collection)


def test_other_spellings_texts_and_floats(collection: Path) -> None:
    wanted = read(collection)
    sheet = openpyxl.load_workbook(collection / BOXES).active
    assert sheet is not None
    rows = [[cell.value for cell in row] for row in sheet.iter_rows()]
    rows[0] = ["PatientID", "start_row", "END ROW", "Column Start", "endcolumn", "Start-Slice", "Slice End", "more"]
    rows[1:] = [[row[0], *map(str, row[1:4]), *(float(v) for v in row[4:]), None] for row in rows[1:]]  # type: ignore[arg-type]
    write_xlsx(collection / BOXES, rows)
    assert read(collection) == wanted


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["Breast_MRI_1", 1, 2, 1, 2, 1, 2], "row 2: patient is 'Breast_MRI_1', wanted Breast_MRI_ and three digits"),
        (["Breast_MRI_001", 0, 2, 1, 2, 1, 2], "row 2: start row is '0', wanted a whole number from 1"),
        (["Breast_MRI_001", 1, 2, None, 2, 1, 2], "row 2: start column is '', wanted a finite number"),
        (["Breast_MRI_001", 1, 2, 1, 2.5, 1, 2], "row 2: end column is '2.5', wanted a whole number"),
        (["Breast_MRI_001", 9, 2, 1, 2, 1, 2], "row 2: box_zyx is .*wanted every low edge below its high edge"),
        (["Breast_MRI_001", 1, 2, 1, 2, 10, 13], "row 2: slices 10 to 13, wanted rising ones of the series' 1 to 12"),
        (["Breast_MRI_001", 1, 2, 1, 2, 5, 4], "row 2: slices 5 to 4, wanted rising ones"),
    ],
)
def test_bad_rows(collection: Path, cells: list[object], message: str) -> None:
    write_xlsx(collection / BOXES, [HEADER, cells])
    with pytest.raises(d3.ManifestError, match=rf"Annotation_Boxes.xlsx: {message}"):
        read(collection)


def test_tables_that_are_missing_or_lack_a_column(collection: Path) -> None:
    write_xlsx(collection / BOXES, [HEADER[:-1]])
    with pytest.raises(d3.ManifestError, match=r"no column end slice .*found \['Patient ID'"):
        read(collection)
    (collection / BOXES).unlink()
    with pytest.raises(d3.ManifestError, match=r"Annotation_Boxes.xlsx: no such file, also not in the folder above"):
        read(collection)
    for path in collection.iterdir():
        if path.is_dir():
            path.rename(collection / "other")
    with pytest.raises(d3.ManifestError, match=r"looked for folders Breast_MRI_001"):
        read(collection.parent)


def test_slices_without_number_or_at_one_place(
    collection: Path, scans: dict[str, Any], write_series: Callable[..., Path]
) -> None:
    folder = next((collection / "Duke-Breast-Cancer-MRI/Breast_MRI_001/01-01-1990-NA-MRI BREAST").glob("0.*"))
    tags = {"SeriesDescription": "ax dyn pre", "Modality": "MR"}
    write_series(scans["plain"], folder, InstanceNumber=None, **tags)
    with pytest.raises(d3.ManifestError, match=r"slices without InstanceNumber, Image Position"):
        read(collection)
    write_series(scans["plain"], folder, InstanceNumber=3, **tags)
    with pytest.raises(d3.ManifestError, match=r"12 slices with InstanceNumbers from 3 to 3, wanted one of each"):
        read(collection)
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()
    with pytest.raises(d3.ManifestError, match=r"1 .dcm files, wanted a series of slices"):
        read(collection)


@pytest.mark.parametrize("box", [(3, 1, 5, 5, 15, 6), (2, 9, 3, 5, 14, 9)])  # 2 x 14 x 1, 3 x 5 x 6
def test_boxes_are_as_labelled_in_the_case_and_in_samples(
    tmp_path: Path,
    scans: dict[str, Any],
    write_series: Callable[..., Path],
    prepare: Callable[..., d3.Store],
    box: tuple[int, ...],
) -> None:
    write_series(scans["plain"], tmp_path / "Breast_MRI_001/study/1", SeriesDescription="ax dyn pre")
    write_xlsx(tmp_path / BOXES, [HEADER, box_row("Breast_MRI_001", box, upside_down=False)])
    store = prepare(read(tmp_path, sequences="pre"))
    assert store["Breast_MRI_001"].boxes.tolist() == [list(box)]
    for sample in d3.PatchDataset(store, d3.PatchSampler((24, 24, 24), object_fraction=1), n_per_epoch=4):
        assert (sample["boxes"] + np.tile(sample["start"], 2)).tolist() == [list(box)]


@pytest.mark.parametrize("upside_down", UPSIDE_DOWN)
@pytest.mark.parametrize("lost", [(1,), (12,), (1, 2, 12)])
@pytest.mark.parametrize("renamed", [False, True])
def test_slices_missing_at_an_end_do_not_shift_the_box(
    tmp_path: Path,
    scans: dict[str, Any],
    write_series: Callable[..., Path],
    upside_down: bool,
    lost: tuple[int, ...],
    renamed: bool,
) -> None:
    folder = tmp_path / "Breast_MRI_001/study/1"
    write_series(scans["plain"], folder, upside_down=upside_down, SeriesDescription="ax dyn pre")
    for number in lost:
        (folder / f"1-{number:03}.dcm").unlink()
    for path in sorted(folder.iterdir()) if renamed else ():  # in no order
        path.rename(folder / f"{int(path.stem[2:]) * 7 % 13}x.DCM")
    (folder / "._1-001.dcm").write_bytes(b"\0\5\26\7")
    write_xlsx(tmp_path / BOXES, [HEADER, box_row("Breast_MRI_001", (4, 3, 4, 7, 7, 9), upside_down=upside_down)])
    source = read(tmp_path, sequences="pre").sources[0]
    below = len([number for number in lost if (number > 6) == upside_down])  # slices that are gone below the box
    assert source.objects is not None
    assert source.objects[0].box_zyx == (4 - below, 9, 11, 7 - below, 13, 16)
    write_xlsx(tmp_path / BOXES, [HEADER, ["Breast_MRI_001", 1, 2, 1, 2, lost[0], lost[0]]])
    with pytest.raises(d3.ManifestError, match=rf"slices {lost[0]} to {lost[0]}, wanted rising ones of the series'"):
        read(tmp_path, sequences="pre")
    sorted(folder.glob("[!.]*"))[4].unlink()
    with pytest.raises(d3.ManifestError, match=r"slices with InstanceNumbers from \d+ to \d+, wanted one of each"):
        read(tmp_path, sequences="pre")


def damaged(path: Path, how: str) -> None:
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-400])
        return
    if how == "no archive":
        path.write_text("Patient ID,Start Row")
        return
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    if how == "entities":
        bomb = b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'
        members[sheet] = bomb + members[sheet].replace(b"<sheetData>", b"<sheetData><row><c><v>&b;</v></c></row>")
    elif how == "broken XML":
        members[sheet] = members[sheet][:300]
    elif how == "no sheet":
        del members[sheet]
    elif how == "no content":
        members = {"a.txt": b""}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("how", ["truncated", "no archive", "entities", "broken XML", "no sheet", "no content"])
def test_hostile_and_broken_spreadsheets_are_one_clear_error(tmp_path: Path, how: str) -> None:
    path = write_xlsx(tmp_path / "boxes.xlsx", [HEADER, ["Breast_MRI_001", *[1, 2] * 3]])
    assert [row["patient"] for row in read_xlsx(path, {"patient": ("Patient ID",)}, max_bytes=10**6)]
    damaged(path, how)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # openpyxl's own, of the broken file
        with pytest.raises(d3.ManifestError, match=r"boxes.xlsx: "):
            list(read_xlsx(path, {"patient": ("Patient ID",)}, max_bytes=10**6))


def test_a_spreadsheet_that_unpacks_to_too_much_is_not_unpacked(tmp_path: Path) -> None:
    path = write_xlsx(tmp_path / "bomb.xlsx", [HEADER])
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/bomb.xml", b"0" * 50_000_000)
    assert path.stat().st_size < 100_000
    with pytest.raises(d3.ManifestError, match=r"bomb.xlsx: 500\d+ bytes when unpacked, wanted at most 1000000"):
        list(read_xlsx(path, {"patient": ("Patient ID",)}, max_bytes=1_000_000))


def test_oblique_series_are_turned_by_their_normal(
    collection: Path, scans: dict[str, Any], write_series: Callable[..., Path]
) -> None:
    """Slices whose normal runs downwards (columns run to the front): numbers that rise with z fall along the normal."""
    folder = next((collection / "Duke-Breast-Cancer-MRI/Breast_MRI_001/01-01-1990-NA-MRI BREAST").glob("0.*"))
    tags = {"SeriesDescription": "ax dyn pre", "Modality": "MR", "ImageOrientationPatient": [1, 0, 0, 0, -1, 0]}
    write_series(scans["plain"], folder, **tags)
    labels = read(collection).sources[0].objects
    assert labels is not None
    assert labels[0].box_zyx == (12 - 10, 2, 2, 12 - 7, 7, 8)
    scan = d3.read_scan(folder)
    assert np.sign(scan.attrs["source_affine"][2, 2]) == -1  # and so they are read


def test_what_is_stated() -> None:
    assert FORMAT.counts is not None
    assert sum(FORMAT.counts.parts.values()) == FORMAT.counts.images == FORMAT.counts.objects == 911
