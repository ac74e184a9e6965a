"""KiTS21 in its true layout: z first, three annotators of every object, masks without images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import girih_data3d as d3
from girih_data3d.formats import read_format

CASES = {"case_00000": "turned", "case_00001": "empty", "case_00002": "touching", "case_00299": "plain"}
"""In the true files the first axis is z; "plain" runs the usual way."""


def write(folder: Path, scan: Any) -> None:
    """Write a case: object 1 is a tumour, object 2 a cyst, and nobody marks quite the same."""
    scan.write(folder / "imaging.nii.gz")
    majority = np.zeros(scan.volume.shape, np.uint8)
    majority[11] = 1
    for number in scan.boxes:
        majority[scan.labels() == number] = number + 1
    scan.write(folder / "aggregated_MAJ_seg.nii.gz", majority)
    masks = {"kidney": (majority == 1).astype(np.uint8)}
    masks |= {{1: "tumor", 2: "cyst"}[number]: scan.mask(number) for number in scan.boxes}
    for name, mask in masks.items():
        for annotator in (1, 2, 3):
            marked = mask.copy()
            if annotator == 1:
                marked[0, 0, 0] = 1  # one of three
            if annotator == 3:
                marked[...] = 0  # the other two agree
            scan.write(folder / "segmentations" / f"{name}_instance-1_annotation-{annotator}.nii.gz", marked)


@pytest.fixture
def root(tmp_path: Path, scans: dict[str, Any]) -> Path:
    folder = tmp_path / "clone" / "kits21" / "data"
    for case_id, name in CASES.items():
        write(folder / case_id, scans[name])
    (folder / "kits.json").write_text("[]")
    return folder


def test_two_of_three_annotators(
    root: Path, scans: dict[str, Any], prepare: Callable[..., d3.Store], assert_planted: Callable[..., None]
) -> None:
    dataset = read_format("kits21", root)
    assert (dataset.name, dataset.classes) == ("kits21", ("tumor", "cyst"))
    store = prepare(dataset)
    for case_id, name in CASES.items():
        scan = scans[name]
        assert_planted(store, case_id, scan, [(number - 1, box) for number, box in scan.boxes.items()])
        semantic = store[case_id].read_label_patch("semantic", (0, 0, 0), (12, 16, 20))
        assert set(np.unique(semantic)) == {0, 1} | {number + 1 for number in scan.boxes}


def test_touching_tumours_are_one_component(
    root: Path, scans: dict[str, Any], prepare: Callable[..., d3.Store], assert_planted: Callable[..., None]
) -> None:
    scan = scans["touching"]
    majority = (scan.labels() > 0).astype(np.uint8) * 2
    scan.write(root / "case_00002" / "aggregated_MAJ_seg.nii.gz", majority)
    folder = root / "case_00002" / "segmentations"
    for annotator in (1, 2, 3):
        scan.write(folder / f"tumor_instance-2_annotation-{annotator}.nii.gz", scan.mask(2))
        (folder / f"cyst_instance-1_annotation-{annotator}.nii.gz").unlink()
    apart = prepare(read_format("kits21", root))
    assert_planted(apart, "case_00002", scan, [(0, box) for box in scan.boxes.values()])


def test_components(
    root: Path, scans: dict[str, Any], prepare: Callable[..., d3.Store], assert_planted: Callable[..., None]
) -> None:
    scan = scans["touching"]
    scan.write(root / "case_00002" / "aggregated_MAJ_seg.nii.gz", (scan.labels() > 0).astype(np.uint8) * 2)
    store = prepare(read_format("kits21", root, objects="components"))
    assert_planted(store, "case_00002", scan, [(0, scan.hull(1, 2))])
    assert_planted(store, "case_00000", scans["turned"], [(n - 1, box) for n, box in scans["turned"].boxes.items()])


@pytest.mark.parametrize("level", ["..", "../..", "case_00000/.."])
def test_repository_or_its_folders(root: Path, level: str) -> None:
    assert len(read_format("kits21", root / level).sources) == 4


def test_images_not_downloaded(root: Path) -> None:
    (root / "case_00001" / "imaging.nii.gz").unlink()
    with pytest.raises(
        d3.ManifestError, match=r"imaging.nii.gz: no such file, of case 'case_00001'; the challenge's get_imaging"
    ):
        read_format("kits21", root)
    dataset = read_format("kits21", root, partial=True)
    assert dataset.passed_over == ("case_00001: no imaging.nii.gz",)
    assert [source.case_id for source in dataset.sources] == [
        "case_00000",
        "case_00002",
        "case_00299",
    ]


def test_missing_majority_vote(root: Path) -> None:
    (root / "case_00001" / "aggregated_MAJ_seg.nii.gz").unlink()
    with pytest.raises(d3.ManifestError, match=r"aggregated_MAJ_seg.nii.gz: no such file, of case 'case_00001'"):
        read_format("kits21", root, partial=True)


def test_missing_annotation(root: Path) -> None:
    (root / "case_00000" / "segmentations" / "cyst_instance-1_annotation-2.nii.gz").unlink()
    with pytest.raises(d3.ManifestError, match=r"cyst_instance-1 has the annotations \[1, 3\], wanted \[1, 2, 3\]"):
        read_format("kits21", root)
    assert len(read_format("kits21", root, objects="components").sources) == 4


@pytest.mark.parametrize("name", ["tumor_instance-1_annotation-{}.nii", "tumour_instance-1_annotation-{}.nii.gz"])
def test_masks_under_other_names(root: Path, name: str) -> None:
    folder = root / "case_00002" / "segmentations"
    for number in (1, 2, 3):
        (folder / f"tumor_instance-1_annotation-{number}.nii.gz").rename(folder / name.format(number))
    with pytest.raises(
        d3.ManifestError, match=r"wanted {kidney, tumor, cyst}_instance-i_annotation-j.nii.gz; found \['cyst_inst"
    ):
        read_format("kits21", root)


@pytest.mark.parametrize("value", [2, 3])
def test_a_case_without_masks_of_single_objects_has_none_in_the_vote_either(
    root: Path, scans: dict[str, Any], tmp_path: Path, value: int
) -> None:
    case = root / "case_00002"
    for path in (case / "segmentations").iterdir():
        path.unlink()
    scans["touching"].write(case / "aggregated_MAJ_seg.nii.gz", scans["touching"].mask(1) * value)
    report = d3.prepare_many(read_format("kits21", root), tmp_path / "out", d3.PrepareSpec(), workers=0)
    assert list(report.failed) == ["case_00002"]
    assert (
        f"aggregated_MAJ_seg.nii.gz: label {value} (1 such labels), wanted 0 or one of [1]"
        in report.failed["case_00002"]
    )
    scans["touching"].write(case / "aggregated_MAJ_seg.nii.gz", scans["touching"].mask(1))
    assert not d3.prepare_many(read_format("kits21", root), tmp_path / "out", d3.PrepareSpec(), workers=0).failed


def test_no_masks_of_single_objects(root: Path, tmp_path: Path) -> None:
    (root / "case_00001" / "segmentations").rename(tmp_path / "elsewhere")
    with pytest.raises(d3.ManifestError, match=r"segmentations: no such folder, .*; objects=components does without"):
        read_format("kits21", root)


def test_no_cases(tmp_path: Path) -> None:
    (tmp_path / "kits21-master.zip").touch()
    with pytest.raises(d3.ManifestError, match=r"looked for folders case_00000, .*unpack kits21-master.zip"):
        read_format("kits21", tmp_path)
