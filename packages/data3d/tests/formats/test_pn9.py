"""PN9: arrays without a header, numbers of patients that are text elsewhere, boxes in voxels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import girih_data3d as d3
from girih_data3d.formats.pn9 import FORMAT, TYPES, read

HEADER = ["pid", "nodule_class", "xmin", "xmax", "ymin", "ymax", "zmin", "zmax"]
BOX = (2, 3, 4, 5, 7, 9)
"""Half-open, of the row [.., 4, 8, 3, 6, 2, 4]."""


def row(pid: object, name: str, box: tuple[int, ...]) -> list[object]:
    z0, y0, x0, z1, y1, x1 = box
    return [pid, name, x0, x1 - 1, y0, y1 - 1, z0, z1 - 1]


@pytest.fixture
def volumes() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(9)
    return {pid: rng.integers(0, 256, (1, 12, 16, 20)).astype(np.uint8) for pid in ("00024", "09184", "00300", "00007")}


@pytest.fixture
def release(tmp_path: Path, volumes: dict[str, np.ndarray], write_rows: Callable[..., Path]) -> Path:
    """Two training scans, one of them blacklisted, one validation scan without nodules, one test scan."""
    root = tmp_path / "PN9"
    (root / "full").mkdir(parents=True)
    for pid, volume in volumes.items():
        np.save(root / f"full/{pid}_zoom.npy", volume)
    tables = root / "split_full_with_nodule_9classes"
    rows = [
        row(24, "3-10SN", BOX),
        row(24, ">5GGN", (7, 9, 12, 8, 14, 18)),
        row(9184, "CN", BOX),
        [300, "CN"] + [0] * 6,
    ]
    write_rows(tables / "train_anno.csv", [HEADER, *rows])
    more = ["nodule_id", "center_x", "center_y", "center_z", "diameter", "x_size", "y_size"]
    write_rows(tables / "test_anno.csv", [HEADER + more, row(7, "0-3SN", (11, 15, 19, 12, 16, 20)) + [0] * 7])
    for part, lines in {"train": "00024\n09184\n", "val": "00300\r\n", "test": "00007"}.items():
        (tables / f"{part}.txt").write_text(lines)
    return root


def test_arrays_and_boxes_come_out_as_they_are(
    release: Path, volumes: dict[str, np.ndarray], prepare: Callable[..., d3.Store]
) -> None:
    dataset = read(release)
    assert [(s.case_id, s.part) for s in dataset.sources] == [
        ("00007", "test"),
        ("00024", "train"),
        ("00300", "val"),
        ("09184", "train"),
    ]
    assert {s.modality for s in dataset.sources} == {"CT windowed to 0..255"}
    store = prepare(dataset)
    for pid, volume in volumes.items():
        case = store[pid]
        assert case.spacing_zyx_mm == (1, 1, 1)
        assert case.truth is not None
        np.testing.assert_array_equal(np.asarray(case.truth["shape_zyx"]), volume.shape[1:])
    boxes = {pid: np.asarray(store[pid].truth["boxes"]).tolist() for pid in volumes}  # type: ignore[index]
    assert boxes["00024"] == [list(map(float, BOX)), [7, 9, 12, 8, 14, 18]]
    assert boxes["00007"] == [[11, 15, 19, 12, 16, 20]]  # one voxel, in the last corner
    assert boxes["00300"] == []  # a row of zeros says so
    patch = store["00024"].read_patch((0, 0, 0), (12, 16, 20))[0]
    np.testing.assert_array_equal(np.sort(patch.ravel()), np.sort(volumes["00024"].ravel()))


def test_nine_types(release: Path) -> None:
    dataset = read(release, classes="types")
    assert dataset.classes == TYPES
    assert dataset.sources[1].objects is not None
    assert [TYPES[label.class_index] for label in dataset.sources[1].objects] == ["3-10SN", ">5GGN"]


def test_the_blacklist_holds_for_training_scans(release: Path) -> None:
    dataset = read(release, skip_blacklisted=True)
    assert [s.case_id for s in dataset.sources] == ["00007", "00024", "00300"]
    assert dataset.passed_over == ("09184_zoom.npy: blacklisted",)


def test_the_folders_of_nndetection(release: Path) -> None:
    wanted = read(release)
    for table in (release / "split_full_with_nodule_9classes").iterdir():
        table.rename(release / table.name)
    (release / "train/image").mkdir(parents=True)
    (release / "test").mkdir()
    for path in (release / "full").iterdir():
        path.rename(release / ("test" if path.name == "00007_zoom.npy" else "train/image") / path.name)
    (release / "full").rmdir()
    found = read(release)
    assert [(s.case_id, s.objects, s.part) for s in found.sources] == [
        (s.case_id, s.objects, s.part) for s in wanted.sources
    ]


def test_slices_as_jpg_are_refused(tmp_path: Path) -> None:
    (tmp_path / "img/00024").mkdir(parents=True)
    (tmp_path / "img/00024/0.jpg").write_bytes(b"")
    with pytest.raises(d3.ManifestError, match=r"no file \*_zoom.npy .*\(.jpg\) is not read, take the .npy files"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([24, "CN", 4, 8, 3, 6, 2, "x"], "row 2: zmax is 'x', wanted a finite number"),
        ([24, "CN", 4, 8, 3, 6, 2, 2.5], "row 2: zmax is '2.5', wanted a whole number"),
        ([24, "CN", 8, 4, 3, 6, 2, 4], "row 2: box_zyx is .*wanted every low edge below its high edge"),
        ([24, "CN", -1, 4, 3, 6, 2, 4], "row 2: xmin is '-1', wanted a whole number from 0"),
        ([25, "CN", 4, 8, 3, 6, 2, 4], "row 2: pid 25 is in none of the lists"),
        ([7, "CN", 4, 8, 3, 6, 2, 4], "row 2: pid 7 is in test.txt, wanted one whose nodules are in train_anno.csv"),
        (["a24", "CN", 4, 8, 3, 6, 2, 4], "row 2: pid is 'a24', wanted digits"),
        ([24, "XN", 4, 8, 3, 6, 2, 4], "row 2: nodule_class is 'XN', wanted one of CN"),
    ],
)
def test_bad_rows(release: Path, write_rows: Callable[..., Path], cells: list[object], message: str) -> None:
    write_rows(release / "split_full_with_nodule_9classes/train_anno.csv", [HEADER, cells])
    with pytest.raises(d3.ManifestError, match=f"train_anno.csv: {message}"):
        read(release, classes="types")


def test_scans_and_lists_that_do_not_agree(release: Path, volumes: dict[str, np.ndarray]) -> None:
    tables = release / "split_full_with_nodule_9classes"
    (tables / "val.txt").write_text("00300\n00024\n")
    with pytest.raises(d3.ManifestError, match=r"val.txt: row 2: pid 24 is in train.txt too, wanted once"):
        read(release)
    (tables / "val.txt").write_text("00300\n")
    np.save(release / "full/24_zoom.npy", volumes["00024"])
    with pytest.raises(d3.ManifestError, match=r"24_zoom.npy: pid 24 is there twice"):
        read(release)
    (release / "full/24_zoom.npy").rename(release / "full/00025_zoom.npy")
    with pytest.raises(d3.ManifestError, match=r"00025_zoom.npy: pid 25 is in none of the lists"):
        read(release)
    (release / "full/00025_zoom.npy").unlink()
    (release / "full/00300_zoom.npy").unlink()
    with pytest.raises(d3.ManifestError, match=r"no scan of pid 300 of val.txt \(1 such scans\)"):
        read(release)
    dataset = read(release, partial=True)
    assert dataset.passed_over == ("pid 300 of val.txt: no scan",)
    (tables / "test.txt").unlink()
    with pytest.raises(d3.ManifestError, match=r"test.txt: not a readable list of pids"):
        read(release)


def test_a_scan_without_any_row_is_unlabelled(release: Path, write_rows: Callable[..., Path]) -> None:
    rows = [HEADER, row(24, "CN", BOX), [300, "CN"] + [0] * 6]
    write_rows(release / "split_full_with_nodule_9classes/train_anno.csv", rows)
    dataset = read(release)
    assert {s.case_id: s.objects is not None for s in dataset.sources} == {
        "00007": True,
        "00024": True,
        "00300": True,
        "09184": False,
    }
    assert dataset.passed_over == ("09184_zoom.npy: no row, taken as unlabelled",)
    write_rows(release / "split_full_with_nodule_9classes/train_anno.csv", [*rows, rows[1]])
    with pytest.raises(d3.ManifestError, match=r"train_anno.csv: row 4: the nodule is there twice"):
        read(release)


@pytest.mark.parametrize("box", [(3, 4, 5, 5, 44, 6), (2, 30, 3, 5, 35, 9)])  # 2 x 40 x 1, 3 x 5 x 6
def test_boxes_are_as_labelled_in_the_case_and_in_samples(
    release: Path, write_rows: Callable[..., Path], prepare: Callable[..., d3.Store], box: tuple[int, ...]
) -> None:
    np.save(release / "full/00024_zoom.npy", np.zeros((1, 8, 48, 12), np.uint8))
    write_rows(release / "split_full_with_nodule_9classes/train_anno.csv", [HEADER, row(24, "CN", box)])
    store = prepare(read(release))
    boxes = store["00024"].boxes
    assert (boxes[:, 3:] - boxes[:, :3]).tolist() == [[high - low for low, high in zip(box[:3], box[3:], strict=True)]]
    sampler = d3.PatchSampler((48, 48, 48), object_fraction=1)
    for sample in d3.PatchDataset(store, sampler, case_ids=["00024"], n_per_epoch=4):
        np.testing.assert_array_equal(sample["boxes"], boxes - np.tile(sample["start"], 2))


@pytest.mark.parametrize(
    ("box", "message"),
    [((2, 3, 4, 5, 7, 25), "reaches out of the image's array by more"), ((2, 3, 18, 5, 7, 21), None)],
)
def test_a_box_that_reaches_out_of_the_scan(
    release: Path, write_rows: Callable[..., Path], tmp_path: Path, box: tuple[int, ...], message: str | None
) -> None:
    write_rows(release / "split_full_with_nodule_9classes/train_anno.csv", [HEADER, row(24, "CN", box)])
    report = d3.prepare_many(read(release), tmp_path / "out", d3.PrepareSpec(normalisation="none"), workers=0)
    assert set(report.failed) == ({"00024"} if message else set())
    assert (message or "") in report.failed.get("00024", "")


def test_a_box_outside_of_the_scan_fails_its_case_only(
    release: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    table = release / "split_full_with_nodule_9classes/train_anno.csv"
    write_rows(table, [HEADER, row(24, "CN", (12, 3, 4, 14, 5, 6))])
    report = d3.prepare_many(read(release), tmp_path / "out", d3.PrepareSpec(normalisation="none"), workers=0)
    assert set(report.failed) == {"00024"}
    assert "less than 0.01 voxels lie inside" in report.failed["00024"]


def test_what_is_stated() -> None:
    assert FORMAT.counts is not None
    assert FORMAT.counts.parts == FORMAT.counts.official
    assert sum(FORMAT.counts.parts.values()) == FORMAT.counts.images == 8798


def test_the_numbers_of_nodules_type(release: Path) -> None:
    labels: Any = read(release).sources[1].objects
    assert [label.class_index for label in labels] == [0, 0]
