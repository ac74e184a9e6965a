"""LIDC-IDRI in its two layouts, and what its readers agree on."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import girih_data3d as d3
from girih_data3d.formats.lidc_consensus import (
    Drawing,
    LidcConsensus,
    LidcMasks,
    group_drawings,
    malignancy_class,
)
from girih_data3d.formats.lidc_idri import FORMAT, read
from girih_data3d.formats.lidc_xml import Outline
from girih_data3d.object_rules import vote
from girih_data3d.scan import read_scan

Points = Sequence[tuple[int, int]]


def ring(x0: int, y0: int, x1: int, y1: int) -> Points:
    """Return the corners of a rectangle's line; inside it lie x0 + 1 .. x1 - 1 and y0 + 1 .. y1 - 1."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def around(box: Sequence[int]) -> Points:
    """Return the line around a box of the canonical scan in the pixels of `write_series`, whose axes run to L and P."""
    _, y0, x0, _, y1, x1 = box
    return ring(19 - x1, 15 - y1, 20 - x0, 16 - y0)


def nodule(box: Sequence[int], rating: int | None = 3, *, uid: str | None = "1.2.3", z_shift: float = 0.0) -> str:
    """Return a reader's mark that is exactly a box of the canonical scan."""
    rois = "".join(
        roi(7 + 2.5 * k + z_shift, around(box), uid=None if uid is None else f"{uid}.{k}")
        for k in range(box[0], box[3])
    )
    return mark(rois, rating)


def roi(z: float, points: Points, *, uid: str | None = None, inclusion: str = "TRUE") -> str:
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points)
    sop = "" if uid is None else f"<imageSOP_UID>{uid}</imageSOP_UID>"
    return f"<roi><imageZposition>{z}</imageZposition>{sop}<inclusion>{inclusion}</inclusion>{edges}</roi>"


def mark(rois: str, rating: int | None = 3) -> str:
    rated = "" if rating is None else f"<characteristics><malignancy>{rating}</malignancy></characteristics>"
    return f"<unblindedReadNodule><noduleID>n</noduleID>{rated}{rois}</unblindedReadNodule>"


def write_xml(path: Path, sessions: Sequence[Sequence[str]], *, series_uid: str = "1.2.3") -> Path:
    body = "".join(f"<readingSession>{''.join(marks)}</readingSession>" for marks in sessions)
    header = f"<ResponseHeader><SeriesInstanceUid>{series_uid}</SeriesInstanceUid></ResponseHeader>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'<LidcReadMessage xmlns="http://www.nih.gov">{header}{body}</LidcReadMessage>')
    return path


@pytest.fixture
def collection(tmp_path: Path, scans: dict[str, Any], write_series: Callable[..., Path]) -> Path:
    """Three patients as the archive has them: one with a radiograph, one with two scans, one without nodules."""
    root = tmp_path / "LIDC-IDRI"
    first, second = scans["plain"].boxes[1], scans["plain"].boxes[2]
    one = write_series(scans["plain"], root / "LIDC-IDRI-0001/study/1.2.3")
    write_xml(one / "069.xml", [[nodule(first, 5), nodule(second, 5)], [nodule(first, 5), nodule(second, 5)], [], []])
    radiograph = write_series(scans["empty"], root / "LIDC-IDRI-0001/other/9.9", series_uid="9.9", Modality="DX")
    (radiograph / "070.xml").write_text("<IdriReadMessage xmlns='http://www.nih.gov/idri'/>")
    for uid, upside_down in (("7.2", True), ("7.1", False)):
        folder = root / f"LIDC-IDRI-0002/study-{uid}/series"
        write_series(scans["touching"], folder, series_uid=uid, upside_down=upside_down)
        boxes = scans["touching"].boxes.values()
        marks = [nodule(box, 4, uid=uid) for box in boxes]
        write_xml(root / f"tcia-lidc-xml/157/{uid}.xml", [marks, marks, marks], series_uid=uid)
    empty = write_series(scans["empty"], root / "LIDC-IDRI-0003/study/5.5", series_uid="5.5")
    write_xml(empty / "071.xml", [[], [], [], []], series_uid="5.5")
    write_series(scans["empty"], root / "LIDC-IDRI-0003/study/6.6", series_uid="6.6")
    return root


def test_scans_patients_and_nodules_come_out_where_they_were_planted(
    collection: Path, scans: dict[str, Any], prepare: Callable[..., d3.Store], assert_planted: Callable[..., None]
) -> None:
    dataset = read(collection.parent)  # one folder too high is fine
    assert dataset.classes == ("benign", "malignant")
    assert [(s.case_id, s.patient_id, s.series_uid) for s in dataset.sources] == [
        ("LIDC-IDRI-0001", "LIDC-IDRI-0001", "1.2.3"),
        ("LIDC-IDRI-0002a", "LIDC-IDRI-0002", "7.1"),
        ("LIDC-IDRI-0002b", "LIDC-IDRI-0002", "7.2"),
        ("LIDC-IDRI-0003", "LIDC-IDRI-0003", "5.5"),
    ]
    assert [s.modality for s in dataset.sources] == ["CT"] * 4
    assert dataset.passed_over == (
        "LIDC-IDRI-0001/other/9.9: modality DX, wanted CT",
        "LIDC-IDRI-0003/study/6.6: CT without an XML file of readings",
    )
    store = prepare(dataset)
    # two readers who say 5 and two who say nothing: 2.5, benign
    assert_planted(store, "LIDC-IDRI-0001", scans["plain"], [(0, box) for box in scans["plain"].boxes.values()])
    for case_id in ("LIDC-IDRI-0002a", "LIDC-IDRI-0002b"):  # slices numbered upwards and downwards
        assert_planted(store, case_id, scans["touching"], [(1, box) for box in scans["touching"].boxes.values()])
    assert_planted(store, "LIDC-IDRI-0003", scans["empty"], [])
    root, spec = store.root, store.spec
    again = d3.prepare_many(read(collection), root, spec, workers=0)
    assert again.skipped == [source.case_id for source in dataset.sources]
    xml = collection / "tcia-lidc-xml/157/7.1.xml"
    xml.write_text(xml.read_text() + "\n")
    assert list(d3.prepare_many(read(collection), root, spec, workers=0).failed) == ["LIDC-IDRI-0002a"]  # stale


def test_present_readers_only_and_one_class(collection: Path, prepare: Callable[..., d3.Store]) -> None:
    present = read(collection, malignancy_pad="present_only")
    scan = read_scan(present.sources[0].images[0])
    assert present.sources[0].rule is not None
    assert present.sources[0].rule.find(scan).classes == [1, 1]  # of those who rated, all say 5
    one = read(collection, classes="nodule")
    assert one.classes == ("nodule",)
    assert one.sources[1].rule is not None
    assert one.sources[1].rule.find(read_scan(one.sources[1].images[0])).classes == [0, 0]


def test_rules_can_be_pickled_and_compared(collection: Path) -> None:
    rule = read(collection).sources[0].rule
    assert isinstance(rule, d3.object_rules.ObjectRule)
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert read(collection, min_readers=3).sources[0].rule != rule


@pytest.fixture
def find(tmp_path: Path, scans: dict[str, Any], write_series: Callable[..., Path]) -> Callable[..., Any]:
    """Finds what readers agree on in a scan of which each session is given; returns boxes too."""
    series = write_series(scans["plain"], tmp_path / "series")
    scan = read_scan(series)

    def found(sessions: Sequence[Sequence[str]], **options: Any) -> tuple[Any, list[tuple[int, ...]]]:
        options = {"series": series, "classes": "nodule", **options}
        objects = LidcConsensus(write_xml(tmp_path / "a.xml", sessions), **options).find(scan)
        boxes = []
        for window, inside in objects.masks:
            at = np.argwhere(inside) + [s.start for s in window]
            boxes.append((*at.min(axis=0).tolist(), *(at.max(axis=0) + 1).tolist()))
        return objects, boxes

    return found


BOX = (2, 3, 4, 5, 9, 12)
"""Of 6 x 8 pixels in three slices."""


def test_half_of_four_readers_have_to_hold_a_voxel(find: Callable[..., Any]) -> None:
    wide, narrow = (2, 3, 4, 5, 9, 12), (2, 3, 4, 5, 9, 10)
    objects, boxes = find([[nodule(wide)], [nodule(narrow)], [], []])
    assert boxes == [narrow]
    assert objects.counts["nodules"] == 1
    objects, boxes = find([[nodule(wide)], [], [], []])  # one of four
    assert (boxes, objects.counts["nodules dropped: no voxel of 0.5 of the readers"]) == ([], 1)
    objects, boxes = find([[nodule(wide)], [nodule(narrow)], [], []], min_readers=3)
    assert (boxes, objects.counts["nodules dropped: fewer than 3 readers"]) == ([], 1)
    assert find([[nodule(wide)], [nodule(narrow)]], min_share=0.25)[1] == [wide]
    assert find([[nodule(wide)], [nodule(narrow)]])[1] == [narrow]  # padded to four also where two sessions are there


@pytest.mark.parametrize("hole_first", [True, False])
def test_holes_are_cut_whatever_the_order(find: Callable[..., Any], hole_first: bool) -> None:
    outer, hole = around(BOX), around((2, 5, 6, 5, 7, 9))
    z, uid = 7 + 2.5 * 2, "1.2.3.2"
    parts = [roi(z, outer, uid=uid), roi(z, hole, uid=uid, inclusion="FALSE")]
    objects, boxes = find([[mark("".join(parts[:: -1 if hole_first else 1]))]] * 2)
    assert boxes == [(2, 3, 4, 3, 9, 12)]
    wanted = np.ones((1, 6, 8), bool)
    wanted[0, 2:4, 2:5] = False
    inside = objects.masks[0][1]
    np.testing.assert_array_equal(inside, wanted)


def test_the_line_itself_is_not_nodule(find: Callable[..., Any]) -> None:
    assert find([[nodule(BOX)]] * 2)[1] == [BOX]


def test_a_point_is_a_nodule_below_3_mm_and_dropped(find: Callable[..., Any]) -> None:
    point = mark(roi(12, [(5, 5)]), None)
    objects, boxes = find([[point, nodule(BOX)], [nodule(BOX), "<nonNodule/>"], [], []])
    assert boxes == [BOX]
    assert objects.counts["marks dropped: nothing outlined (nodules below 3 mm)"] == 1
    assert objects.counts["marks dropped: not nodules"] == 1
    assert objects.counts["marks outlined"] == 2


def test_the_uid_says_the_slice_before_z_does(find: Callable[..., Any]) -> None:
    assert find([[nodule(BOX, z_shift=100.0)]] * 2)[1] == [BOX]
    assert find([[nodule(BOX, uid="8.8", z_shift=1.2)]] * 2)[1] == [BOX]  # unknown: by z, within half a slice
    assert find([[nodule(BOX, uid=None, z_shift=-1.2)]] * 2, series=None)[1] == [BOX]
    with pytest.raises(d3.ScanError, match=r"reading session 0, nodule 'n': an outline at z 36 mm .* none of the 12"):
        find([[nodule((11, 3, 4, 12, 9, 12), uid=None, z_shift=1.5)]] * 2, series=None)


def test_names_of_slices_in_capitals_and_what_macos_leaves(
    collection: Path, scans: dict[str, Any], prepare: Callable[..., d3.Store], assert_planted: Callable[..., None]
) -> None:
    series = collection / "LIDC-IDRI-0001/study/1.2.3"
    for path in list(series.glob("*.dcm")):
        path.rename(path.with_suffix(".DCM"))
    (series / "._1-001.dcm").write_bytes(b"\0\5\26\7")
    boxes = scans["plain"].boxes
    write_xml(series / "069.xml", [[nodule(box, z_shift=100.0) for box in boxes.values()]] * 2)  # the UIDs decide
    store = prepare(read(collection))
    assert_planted(store, "LIDC-IDRI-0001", scans["plain"], [(0, box) for box in boxes.values()])


@pytest.mark.parametrize("by_uid", [True, False])
def test_a_scan_that_is_read_downwards(
    tmp_path: Path, scans: dict[str, Any], write_series: Callable[..., Path], by_uid: bool
) -> None:
    """Columns run to the front, so that the normal, along which slices are read, runs down."""
    series = write_series(scans["plain"], tmp_path / "series", ImageOrientationPatient=[1, 0, 0, 0, -1, 0])
    scan = read_scan(series)
    assert scan.attrs["source_affine"][2, 2] < 0
    z0, y0, x0, z1, y1, x1 = BOX  # rows run as the canonical y
    points = ring(19 - x1, y0 - 1, 20 - x0, y1)
    marks = [mark("".join(roi(7 + 2.5 * k, points, uid=f"1.2.3.{k}") for k in range(z0, z1)))]
    xml = write_xml(tmp_path / "a.xml", [marks, marks])
    (found,) = LidcConsensus(xml, series if by_uid else None, classes="nodule").find(scan).masks
    assert [(s.start, s.stop) for s in found[0]] == [(z0, z1), (y0, y1), (x0, x1)]
    assert found[1].all()


def test_an_outline_outside_of_the_slice_is_refused(find: Callable[..., Any]) -> None:
    with pytest.raises(d3.ScanError, match=r"from \(x, y\) \[3, 4\] to \[20, 9\] reaches out of the slice, .* 20 x 16"):
        find([[mark(roi(12, ring(3, 4, 20, 9)))]])


def test_nobody_rated(find: Callable[..., Any]) -> None:
    marks = [[nodule(BOX, None)]] * 2
    assert find(marks, classes="malignancy")[0].classes == [0]
    with pytest.raises(d3.ScanError, match="nodule 'n': no reader rated its malignancy"):
        find(marks, classes="malignancy", malignancy_pad="present_only")


@pytest.mark.parametrize(
    ("ratings", "zeros", "present"),
    [([5, 5], 0, 1), ([4, 4, 4], 1, 1), ([3, 3, 3, 3], 1, 1), ([2, 3, 3, 3], 0, 0), ([5, None, 1], 0, 1), ([3], 0, 1)],
)
def test_malignancy_padded_with_zeros_or_of_those_present(ratings: list[int | None], zeros: int, present: int) -> None:
    assert malignancy_class(ratings, "zeros") == zeros
    assert malignancy_class(ratings, "present_only") == present


def drawing(reader: int, z: int, low: int, high: int) -> Drawing:
    points = np.array(ring(low, low, high, high), np.int64)
    return Drawing(reader, np.array([z], np.int64), (Outline(0.0, "", True, points),))


def test_marks_are_grouped_by_overlap_but_never_two_of_one_reader() -> None:
    one, two, far = drawing(0, 0, 0, 10), drawing(1, 0, 2, 12), drawing(2, 5, 0, 10)
    assert group_drawings([one, two, far]) == [[0, 1], [2]]
    near = drawing(1, 0, 9, 20)  # also overlaps the first, less than the second does
    assert group_drawings([one, near, two]) == [[0, 2], [1]]
    assert group_drawings([drawing(0, 0, 0, 10), drawing(1, 0, 8, 20), drawing(2, 0, 18, 30)]) == [[0, 1, 2]]  # chain
    assert group_drawings([drawing(0, 0, 0, 10), drawing(1, 0, 10, 20)]) == [[0], [1]]  # lines touch, no shared volume
    assert group_drawings([]) == []


def test_votes_of_masks_in_windows_of_their_own() -> None:
    left = ((slice(0, 1), slice(0, 1), slice(0, 4)), np.ones((1, 1, 4), bool))
    right = ((slice(0, 1), slice(0, 1), slice(2, 6)), np.ones((1, 1, 4), bool))
    agreed = vote([left, right], 4, 0.5)
    assert agreed is not None
    assert agreed[0] == (slice(0, 1), slice(0, 1), slice(2, 4))
    assert agreed[1].all()
    assert vote([left], 4, 0.5) is None


@pytest.mark.parametrize("options", [{"min_share": 0.0}, {"min_share": 1.5}, {"min_readers": 5}, {"min_readers": 0}])
def test_rules_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        LidcConsensus(Path("a.xml"), **options)
    with pytest.raises(ValueError, match="wanted"):
        LidcMasks((), **options)
    with pytest.raises(ValueError, match="format lidc-idri"):
        read(Path("nowhere"), **options)


def test_xml_of_another_series_two_of_them_and_broken_ones(collection: Path) -> None:
    series = collection / "LIDC-IDRI-0001/study/1.2.3"
    second = write_xml(series / "second.xml", [[]], series_uid="1.2.3")
    with pytest.raises(d3.ManifestError, match="2 XML files with readings, wanted one"):
        read(collection)
    write_xml(second, [[]], series_uid="4.4")
    with pytest.raises(d3.ManifestError, match=r"second.xml: readings of series 4.4, beside 1.2.3"):
        read(collection)
    second.write_text('<!DOCTYPE x [<!ENTITY a "b">]><LidcReadMessage>&a;</LidcReadMessage>')
    with pytest.raises(d3.ManifestError, match=r"second.xml: declares a document type or entities"):
        read(collection)
    second.unlink()
    (collection / "LIDC-IDRI-0009").mkdir()
    assert read(collection).passed_over[-1] == "LIDC-IDRI-0009: no series"
    unsaid = write_xml(collection / "tcia-lidc-xml/158/unsaid.xml", [[]], series_uid="")
    with pytest.raises(d3.ManifestError, match=r"unsaid.xml: readings without a SeriesInstanceUid"):
        read(collection)
    unsaid.unlink()
    write_xml(collection / "tcia-lidc-xml/158/again.xml", [[]], series_uid="7.1")
    with pytest.raises(d3.ManifestError, match=r"readings of series '7.1', as in .*7.1.xml; wanted one"):
        read(collection)


def test_a_folder_that_is_another(tmp_path: Path) -> None:
    (tmp_path / "LIDC-IDRI.zip").write_bytes(b"")
    with pytest.raises(d3.ManifestError, match=r"looked for folders LIDC-IDRI-0001, .*unpack LIDC-IDRI.zip"):
        read(tmp_path)
    (tmp_path / "LIDC-IDRI-0001/study/series").mkdir(parents=True)
    with pytest.raises(d3.ManifestError, match=r"no CT scan with readings .*no .dcm file"):
        read(tmp_path)


@pytest.fixture
def converted(tmp_path: Path, scans: dict[str, Any], write_rows: Callable[..., Path]) -> Path:
    """What the converter writes: two scans of one patient, one of another."""
    scan = scans["flipped"]
    rows: list[list[object]] = [["PatientID", "SessionID", "Radiologist", "NoduleID", "subtlety", "Malignancy"]]
    for case, ratings in (("0129a", (5, 5)), ("0129b", (5, 5, 4)), ("0130a", ())):
        folder = tmp_path / "raw/data_nrrd" / case
        scan.write(folder / f"{case}_ct_scan.nrrd")
        for session, rating in enumerate(ratings):
            scan.write(folder / f"{case}_{session}_{session + 3:08}_{3:08}.nii.gz", labels=scan.mask(1))
            rows.append([case, session, "anonymous", f"{session + 3:08}", 5, rating])
        (folder / "planar_masks").mkdir()
    scan.write(tmp_path / "raw/data_nrrd/0129b/0129b_3_00000009_00000009.nii.gz", labels=scan.mask(2))
    rows.append(["0129b", 3, "anonymous", "00000009", 5, -1])
    write_rows(tmp_path / "raw/characteristics.csv", rows, delimiter=";")
    return tmp_path / "raw"


def test_the_layout_of_the_converter(
    converted: Path, scans: dict[str, Any], prepare: Callable[..., d3.Store], assert_planted: Callable[..., None]
) -> None:
    dataset = read(converted)
    assert [(s.case_id, s.patient_id) for s in dataset.sources] == [
        ("LIDC-IDRI-0129a", "LIDC-IDRI-0129"),
        ("LIDC-IDRI-0129b", "LIDC-IDRI-0129"),
        ("LIDC-IDRI-0130", "LIDC-IDRI-0130"),
    ]
    store, scan = prepare(dataset), scans["flipped"]
    assert_planted(store, "LIDC-IDRI-0129a", scan, [(0, scan.boxes[1])])  # (5 + 5) / 4
    assert_planted(store, "LIDC-IDRI-0129b", scan, [(1, scan.boxes[1])])  # (5 + 5 + 4) / 4; the second has one reader
    assert_planted(store, "LIDC-IDRI-0130", scan, [])
    assert read(converted / "data_nrrd").sources == dataset.sources
    present = read(converted, malignancy_pad="present_only", classes="nodule").sources[0].rule
    assert isinstance(present, LidcMasks)
    assert [index for index, _ in present.nodules] == [0]


def test_what_the_converter_left_out_is_named(converted: Path, write_rows: Callable[..., Path]) -> None:
    with pytest.raises(d3.ManifestError, match=r"case '0129b', nodule 9: no reader rated"):
        read(converted, malignancy_pad="present_only")
    table = converted / "characteristics.csv"
    kept = table.read_text()
    table.write_text("\n".join(kept.splitlines()[:-2]))
    with pytest.raises(d3.ManifestError, match=r"nodule 5 of session 2 of case '0129b' has no row"):
        read(converted)
    table.write_text(kept.replace(";4", ";7"))
    with pytest.raises(d3.ManifestError, match=r"row 6: malignancy is '7', wanted a whole number from -1 to 5"):
        read(converted)
    table.write_text(kept)
    mask = converted / "data_nrrd/0129b/0129b_3_00000009_00000009.nii.gz"
    content = mask.read_bytes()
    mask.unlink()
    with pytest.raises(d3.ManifestError, match=r"nodule 9 of session 3 of case '0129b' has no mask"):
        read(converted)
    for other in ("0129a_3_00000009_00000009.nii.gz", "0129b_2_00000005_00000009.nii.gz"):
        mask.with_name(other).write_bytes(content)
        with pytest.raises(
            d3.ManifestError, match=r"wanted one of case '0129b' and one for nodule [59] of session [23]"
        ):
            read(converted)
        mask.with_name(other).unlink()
    mask.write_bytes(content)
    table.write_text(f"{kept.rstrip()}\n{kept.splitlines()[-1]}\n")
    with pytest.raises(d3.ManifestError, match=r"row 8: nodule 9 of session 3 is there twice"):
        read(converted)
    table.write_text(f"{kept.rstrip()}\n0777a;1;anonymous;4;5;5\n")
    assert read(converted).passed_over == ("characteristics.csv: case 0777a: no such folder",)
    table.write_text(kept)
    (converted / "data_nrrd/0130a/0130a_ct_scan.nrrd").unlink()
    with pytest.raises(d3.ManifestError, match=r"0130a_ct_scan.nrrd: no such file, the scan of case '0130a'"):
        read(converted)


def test_what_is_stated() -> None:
    assert FORMAT.counts is not None
    assert sum(FORMAT.counts.parts.values()) == FORMAT.counts.images == 1018
