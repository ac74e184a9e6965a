"""CTA-A by a table of paths, and by folders in which image and mask have the same name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import girih_data3d as d3
from girih_data3d.formats import read_format

FILES = {"Tr0001": "plain", "Tr0002": "touching", "Tr0003": "empty", "Ts0001": "flipped", "ExtA0001": "plain"}
HEADER = ["subset", "id", "hospital", "cta_img_file", "aneurysm_seg_file"]


def mask_of(scan: Any) -> np.ndarray:
    return (scan.labels() > 0).astype(np.uint8)


@pytest.fixture
def folders(tmp_path: Path, scans: dict[str, Any]) -> Path:
    root = tmp_path / "large-ia"
    for name, scan in FILES.items():
        part = {"Tr": "training", "Ts": "internal_test"}.get(name[:2], "external_test")
        scans[scan].write(root / part / "images" / f"{name}.nii.gz")
        scans[scan].write(root / part / "masks" / f"{name}.nii.gz", mask_of(scans[scan]))
    return root


@pytest.fixture
def table(tmp_path: Path, scans: dict[str, Any], write_rows: Callable[..., Path]) -> Path:
    root = tmp_path / "medical_data"
    rows = []
    for number, (subset, scan) in enumerate([("train", "plain"), ("train", "touching"), ("eval", "flipped")], start=1):
        name = f"P{number:03}"
        scans[scan].write(root / "cta_img" / f"{name}.nii.gz")
        scans[scan].write(root / "ane_seg" / f"{name}.nii.gz", mask_of(scans[scan]))
        rows.append([subset, name, "hos_1", f"cta_img/{name}.nii.gz", f"ane_seg/{name}.nii.gz"])
    write_rows(root / "aneurysm_seg.csv", [HEADER, *rows])
    return root


def test_folders(
    folders: Path, scans: dict[str, Any], prepare: Callable[..., d3.Store], assert_planted: Callable[..., None]
) -> None:
    dataset = read_format("cta-a", folders)
    assert (dataset.name, dataset.classes) == ("cta-a", ("aneurysm",))
    assert {source.case_id: source.part for source in dataset.sources} == {
        "Tr0001": "train",
        "Tr0002": "train",
        "Tr0003": "train",
        "Ts0001": "test",
    }
    store = prepare(dataset)
    for name, groups in {"Tr0001": [(1,), (2,)], "Tr0002": [(1, 2)], "Tr0003": [], "Ts0001": [(1,), (2,)]}.items():
        scan = scans[FILES[name]]
        assert_planted(store, name, scan, [(0, scan.hull(*numbers)) for numbers in groups])
    assert dataset.passed_over == ("ExtA0001: external",)
    external = {source.case_id: source.part for source in read_format("cta-a", folders, external=True).sources}
    assert external["ExtA0001"] == "external"


def test_table(
    table: Path, scans: dict[str, Any], prepare: Callable[..., d3.Store], assert_planted: Callable[..., None]
) -> None:
    dataset = read_format("cta-a", table)
    assert [(source.case_id, source.part) for source in dataset.sources] == [
        ("P001", "train"),
        ("P002", "train"),
        ("P003", "test"),
    ]
    store = prepare(dataset)
    assert_planted(store, "P003", scans["flipped"], [(0, box) for box in scans["flipped"].boxes.values()])


def test_values_above_one(folders: Path, scans: dict[str, Any], tmp_path: Path) -> None:
    scans["plain"].write(folders / "training" / "masks" / "Tr0001.nii.gz", scans["plain"].labels())
    spec = d3.PrepareSpec(target_zyx_mm=None, crop=None)
    report = d3.prepare_many(read_format("cta-a", folders), tmp_path / "strict", spec, workers=0)
    assert list(report.failed) == ["Tr0001"]
    assert "label 2 (1 such labels), wanted 0 or one of [1]" in report.failed["Tr0001"]
    dataset = read_format("cta-a", folders, other_values=True)
    assert d3.prepare_many(dataset, tmp_path / "any", spec, workers=0).failed == {}
    assert len(d3.Store.open(tmp_path / "any")["Tr0001"].boxes) == 2


@pytest.mark.parametrize(("lost", "kept"), [("image", "mask"), ("mask", "image")])
def test_missing_file_of_a_pair(folders: Path, lost: str, kept: str) -> None:
    (folders / "training" / f"{lost}s" / "Tr0002.nii.gz").unlink()
    with pytest.raises(d3.ManifestError, match=rf"Tr0002.nii.gz: no such file, the {lost} of case 'Tr0002'"):
        read_format("cta-a", folders)


def test_name_that_tells_no_part(folders: Path) -> None:
    for inner in ("images", "masks"):
        (folders / "training" / inner / "Tr0001.nii.gz").rename(folders / "training" / inner / "X1.nii.gz")
    with pytest.raises(d3.ManifestError, match=r"X1.nii.gz: the name begins with none of Tr, Ts, Ext"):
        read_format("cta-a", folders)


def test_a_folder_of_both_that_speaks_of_masks(folders: Path, tmp_path: Path) -> None:
    inside = tmp_path / "up" / "Large_IA_Segmentation"
    inside.mkdir(parents=True)
    for name in ("images", "masks"):
        (folders / "training" / name).rename(inside / name)
    for given in (inside, inside.parent):
        assert len(read_format("cta-a", given).sources) == 3


def test_name_twice(folders: Path, scans: dict[str, Any]) -> None:
    scans["plain"].write(folders / "more" / "Tr0001.nii.gz")
    with pytest.raises(d3.ManifestError, match=r"the image is there twice, here and at"):
        read_format("cta-a", folders)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            ["hidden", "P9", "h", "cta_img/P001.nii.gz", "ane_seg/P001.nii.gz"],
            "row 2: subset is 'hidden', wanted one of",
        ),
        (["train", "P9", "h", "cta_img/P9.nii.gz", "ane_seg/P001.nii.gz"], "row 2: cta_img_file is .*: no such file"),
        (["train", "", "h", "cta_img/P001.nii.gz", "ane_seg/P001.nii.gz"], "row 2: id is '', wanted a text"),
        (["train", "P1", "h", "cta_img/P001.nii.gz", "cta_img/P001.nii.gz"], "row 2: .* is both image and mask"),
        (["train", "P1", "h", "cta_img/../../a.nii.gz", "x.nii.gz"], "row 2: cta_img_file is .*, wanted a path inside"),
        (["train", "P1", "h", "/cta_img/P001.nii.gz", "x.nii.gz"], "row 2: cta_img_file is .*, wanted a path inside"),
    ],
)
def test_rows_that_cannot_be(table: Path, row: list[str], message: str, write_rows: Callable[..., Path]) -> None:
    write_rows(table / "aneurysm_seg.csv", [HEADER, row])
    with pytest.raises(d3.ManifestError, match=message):
        read_format("cta-a", table)


def test_case_twice_in_the_table(table: Path, write_rows: Callable[..., Path]) -> None:
    row = ["train", "P1", "h", "cta_img/P001.nii.gz", "ane_seg/P001.nii.gz"]
    write_rows(table / "aneurysm_seg.csv", [HEADER, row, row])
    with pytest.raises(d3.ManifestError, match="case 'P1' is there twice"):
        read_format("cta-a", table)
