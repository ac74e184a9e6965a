"""RibFrac in its true layout: numbered masks, codes from the tables, folders as the archives unpack."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import girih_data3d as d3
from girih_data3d.formats import read_format

HEADER = ["public_id", "label_id", "label_code"]
NAMES = {"plain": 1, "numbered": 2, "flipped": 301, "touching": 302, "empty": 421}
PLACES = {1: "train", 2: "train", 301: "train", 302: "train", 421: "val"}
ROWS = {
    "ribfrac-train-info-1.csv": [[1, 0, 0], [1, 1, 2], [1, 2, 4], [2, 0, 0], [2, 7, 1], [2, 256, -1], [2, 300, 3]],
    "ribfrac-train-info-2.csv": [[301, 0, 0], [301, 1, 3], [301, 2, 3], [302, 0, 0], [302, 1, 1], [302, 2, 1]],
    "ribfrac-val-info.csv": [[421, 0, 0]],
}
FOLDERS = {1: ("train", "Part1"), 301: ("train", "Part2"), 421: ("val", "")}


@pytest.fixture
def root(tmp_path: Path, scans: dict[str, Any], write_rows: Callable[..., Path]) -> Path:
    folder = tmp_path / "ribfrac"
    for name, rows in ROWS.items():
        write_rows(folder / name, [HEADER, *([f"RibFrac{n}", *rest] for n, *rest in rows)])
    for name, number in NAMES.items():
        part, inner = FOLDERS[max(first for first in FOLDERS if first <= number)]
        for what, labels in (("image", None), ("label", scans[name].labels())):
            place = folder / f"ribfrac-{part}-{what}s{'' if part == 'val' else '-1'}" / inner
            scans[name].write(place / f"RibFrac{number}-{what}.nii.gz", labels)
    scans["plain"].write(folder / "ribfrac-test-images" / "RibFrac501-image.nii.gz")
    return folder


def place_of(root: Path, name: str) -> Path:
    (found,) = root.rglob(name)
    return found


def test_instances_are_never_made_anew(
    root: Path, scans: dict[str, Any], prepare: Callable[..., d3.Store], assert_planted: Callable[..., None]
) -> None:
    dataset = read_format("ribfrac", root)
    assert (dataset.name, dataset.classes) == ("ribfrac", ("fracture",))
    store = prepare(dataset)
    for name, number in NAMES.items():
        assert_planted(store, f"RibFrac{number}", scans[name], [(0, box) for box in scans[name].boxes.values()])
    assert {source.case_id: source.part for source in dataset.sources} == {
        f"RibFrac{number}": part for number, part in PLACES.items()
    }
    assert store["RibFrac2"].truth is not None
    assert len(store["RibFrac302"].boxes) == 2  # they touch


def test_codes_are_classes(
    root: Path, scans: dict[str, Any], prepare: Callable[..., d3.Store], assert_planted: Callable[..., None]
) -> None:
    dataset = read_format("ribfrac", root, classes="codes")
    assert dataset.classes == ("displaced", "nondisplaced", "buckle", "segmental")
    store = prepare(dataset)
    plain, numbered = scans["plain"].boxes, scans["numbered"].boxes
    assert_planted(store, "RibFrac1", scans["plain"], [(1, plain[1]), (3, plain[2])])
    assert_planted(store, "RibFrac2", scans["numbered"], [(0, numbered[7]), (2, numbered[300])])
    objects = store["RibFrac2"].objects  # code -1 is real, but neither trained on nor scored
    assert objects.ignore.tolist() == [False, False, True]
    assert objects.boxes[2].tolist() == list(map(float, numbered[256]))


def test_undefined_fractures_may_be_ignored_in_one_class_too(root: Path) -> None:
    sources = {source.case_id: source for source in read_format("ribfrac", root, undefined="ignore").sources}
    assert sources["RibFrac2"].ignore == (256,)
    with pytest.raises(ValueError, match="undefined is 'keep', which needs classes=fracture"):
        read_format("ribfrac", root, undefined="keep", classes="codes")


def test_hidden_test_set_is_an_option(root: Path) -> None:
    sources = read_format("ribfrac", root, unlabelled=True).sources
    assert (sources[-1].case_id, sources[-1].part, sources[-1].instances) == ("RibFrac501", "test", ())
    assert len(sources) == 6


@pytest.mark.parametrize(
    ("header", "delimiter", "encoding"),
    [
        (["Public ID", "Label ID", "Label Code"], ",", "utf-8-sig"),
        ([" PUBLIC_ID ", "label-id", "LabelCode"], ";", "utf-8"),
        (["label_code", "public_id", "label_id"], "\t", "utf-8"),
    ],
)
def test_spellings_of_columns(
    root: Path, header: list[str], delimiter: str, encoding: str, write_rows: Callable[..., Path]
) -> None:
    before = read_format("ribfrac", root)
    order = [1, 2, 0] if header[0] == "label_code" else [0, 1, 2]
    for name, rows in ROWS.items():
        lines = [[f"RibFrac{n}", *rest] for n, *rest in rows]
        turned = [[line[order.index(k)] for k in range(3)] for line in lines] if order[0] else lines
        write_rows(root / name, [header, *turned, [], ["", "", ""]], delimiter, encoding)
    assert read_format("ribfrac", root) == before


def test_unknown_column(root: Path, write_rows: Callable[..., Path]) -> None:
    write_rows(root / "ribfrac-val-info.csv", [["public_id", "label_id", "type"], ["RibFrac421", 0, 0]])
    with pytest.raises(
        d3.ManifestError, match=r"val-info.csv: no column label_code, found \['public_id', 'label_id', 't"
    ):
        read_format("ribfrac", root)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["RibFrac421", 1, 0], "row 3: label 1 has code 0"),
        (["RibFrac421", 1, 5], "row 3: label_code is '5', wanted a whole number from -1 to 4"),
        (["RibFrac421", 1.5, 1], "row 3: label_id is '1.5', wanted a whole number"),
        (["RibFrac421", 0, 0], "row 3: label 0 of RibFrac421 is there twice"),
        (["421", 1, 1], "row 3: public_id is '421', wanted RibFrac and a number"),
        (["RibFrac1", 1, 1], "row 3: case 'RibFrac1' is in ribfrac-train-info-1.csv too"),
        (["RibFrac421", 1], "row 3: label_code is '', wanted a finite number"),
    ],
)
def test_rows_that_cannot_be(root: Path, row: list[Any], message: str, write_rows: Callable[..., Path]) -> None:
    write_rows(root / "ribfrac-val-info.csv", [HEADER, ["RibFrac421", 0, 0], row])
    with pytest.raises(d3.ManifestError, match=message):
        read_format("ribfrac", root)


def test_images_not_downloaded(root: Path) -> None:
    place_of(root, "RibFrac2-image.nii.gz").unlink()
    with pytest.raises(d3.ManifestError, match=r"RibFrac2-image.nii.gz: no such file, .*\(1 such cases\)"):
        read_format("ribfrac", root)
    dataset = read_format("ribfrac", root, partial=True)
    assert len(dataset.sources) == 4
    assert dataset.passed_over == ("RibFrac2: no image", "RibFrac501: its labels are not public")


@pytest.mark.parametrize("partial", [False, True])
def test_image_without_its_label(root: Path, partial: bool) -> None:
    place_of(root, "RibFrac2-label.nii.gz").unlink()
    with pytest.raises(d3.ManifestError, match=r"RibFrac2-label.nii.gz: no such file, the label of case 'RibFrac2'"):
        read_format("ribfrac", root, partial=partial)


def test_table_that_is_missing(root: Path) -> None:
    (root / "ribfrac-val-info.csv").unlink()
    with pytest.raises(d3.ManifestError, match=r"RibFrac421-image.nii.gz: case 'RibFrac421' is in none of the tables"):
        read_format("ribfrac", root, unlabelled=True)


@pytest.mark.parametrize("given", ["..", "ribfrac-train-images-1"])
def test_another_level(root: Path, given: str) -> None:
    assert len(read_format("ribfrac", root / given).sources) == 5


def test_mask_of_a_case_without_objects_is_empty(root: Path, scans: dict[str, Any], tmp_path: Path) -> None:
    scans["empty"].write(place_of(root, "RibFrac421-label.nii.gz"), scans["plain"].labels())
    report = d3.prepare_many(read_format("ribfrac", root), tmp_path / "out", d3.PrepareSpec(), workers=0)
    assert list(report.failed) == ["RibFrac421"]
    assert "object 1 has no class in instance_classes (2 such objects)" in report.failed["RibFrac421"]


def test_label_that_no_table_has(root: Path, scans: dict[str, Any]) -> None:
    scans["plain"].write(root / "more" / "RibFrac9-label.nii.gz", scans["plain"].labels())
    with pytest.raises(d3.ManifestError, match=r"RibFrac9-label.nii.gz: case 'RibFrac9' is in none of the tables"):
        read_format("ribfrac", root)


def test_unpacked_twice(root: Path, scans: dict[str, Any]) -> None:
    scans["plain"].write(root / "copy" / "RibFrac1-image.nii.gz")
    with pytest.raises(
        d3.ManifestError, match=r"RibFrac1-image.nii.gz: the image of RibFrac1 is there twice, here and at"
    ):
        read_format("ribfrac", root)


def test_number_without_a_row(root: Path, scans: dict[str, Any], tmp_path: Path) -> None:
    scans["plain"].write(place_of(root, "RibFrac1-label.nii.gz"), scans["plain"].labels() * 2)
    report = d3.prepare_many(read_format("ribfrac", root), tmp_path / "out", d3.PrepareSpec(), workers=0)
    assert list(report.failed) == ["RibFrac1"]
    assert "object 4 has no class" in report.failed["RibFrac1"]


def test_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "ribfrac-train-images-1.zip").touch()
    with pytest.raises(d3.ManifestError, match=r"looked for ribfrac-\*-info\*.csv.*unpack ribfrac-train-images-1.zip"):
        read_format("ribfrac", tmp_path)
