"""A plain folder: which label file belongs to which scan, and what is in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import girih_data3d as d3
from girih_data3d.formats import read_format

NAMES = ("plain", "flipped", "turned", "empty", "touching", "numbered")


@pytest.fixture
def root(tmp_path: Path, scans: dict[str, Any]) -> Path:
    """Return a folder with images/ and labels/, in different file formats, and names with dots."""
    folder = tmp_path / "data"
    for name in NAMES:
        scans[name].write(folder / "images" / f"1.2.é.{name}.nii.gz")
        scans[name].write(folder / "labels" / f"1.2.é.{name}.nrrd", scans[name].labels())
    (folder / "labels" / "readme.txt").touch()
    return folder


@pytest.fixture
def mixed(tmp_path: Path, scans: dict[str, Any]) -> Path:
    """Return a folder with a_ct.nii.gz beside a_seg.nii.gz."""
    folder = tmp_path / "mixed"
    for name in NAMES:
        scans[name].write(folder / f"{name}_ct.nii.gz")
        scans[name].write(folder / f"{name}_seg.nii.gz", np.minimum(scans[name].labels(), 2))
    return folder


def test_instances(
    root: Path, scans: dict[str, Any], prepare: Callable[..., d3.Store], assert_planted: Callable[..., None]
) -> None:
    dataset = read_format("folder", root, classes="nodule", modality="CT")
    assert (dataset.name, dataset.classes, dataset.sources[0].modality) == ("data", ("nodule",), "CT")
    store = prepare(dataset)
    for name in NAMES:
        assert_planted(store, f"1.2.é.{name}", scans[name], [(0, box) for box in scans[name].boxes.values()])


def test_classes_beside_the_scans(
    mixed: Path, scans: dict[str, Any], prepare: Callable[..., d3.Store], assert_planted: Callable[..., None]
) -> None:
    options = {"images": ".", "labels": ".", "image_suffix": "_ct", "label_suffix": "_seg"}
    dataset = read_format("folder", mixed, kind="classes", classes="small, large", **options)
    assert dataset.classes == ("small", "large")
    store = prepare(dataset)
    for name in ("plain", "flipped", "turned", "empty", "touching"):
        assert_planted(store, name, scans[name], [(n - 1, box) for n, box in scans[name].boxes.items()])
    semantic = store["plain"].read_label_patch("semantic", (0, 0, 0), (12, 16, 20))
    np.testing.assert_array_equal(semantic, scans["plain"].labels())


def test_scans_without_suffix_beside_their_labels(mixed: Path) -> None:
    for name in NAMES:
        (mixed / f"{name}_ct.nii.gz").rename(mixed / f"{name}.nii.gz")
    dataset = read_format("folder", mixed, images=".", labels=".", label_suffix="_seg")
    assert [source.case_id for source in dataset.sources] == sorted(NAMES)


def test_tissues(root: Path) -> None:
    dataset = read_format("folder", root, kind="semantic")
    assert dataset.classes == ()
    assert {(source.rule, source.instances) for source in dataset.sources} == {(None, ())}
    assert all(source.semantic is not None for source in dataset.sources)


def test_dicom_series_are_scans(tmp_path: Path, dicom_series: Callable[..., None]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    dicom_series(tmp_path / "images" / "a", [0.0, 2, 4])
    dataset = read_format("folder", tmp_path, missing="unlabelled")
    assert [source.case_id for source in dataset.sources] == ["a"]
    assert d3.prepare_many(dataset, tmp_path / "out", d3.PrepareSpec(), workers=0).done == ["a"]


def test_scans_without_labels(root: Path, prepare: Callable[..., d3.Store]) -> None:
    (root / "labels" / "1.2.é.plain.nrrd").unlink()
    with pytest.raises(d3.ManifestError, match=r"no label file named 1.2.é.plain in .*\(1 such scans\); missing=unl"):
        read_format("folder", root)
    sources = {s.case_id: s for s in read_format("folder", root, missing="unlabelled").sources}
    assert sources["1.2.é.plain"].objects is None
    store = prepare(read_format("folder", root, missing="empty"))
    assert store.index.annotated.all()
    assert len(store["1.2.é.plain"].boxes) == 0


@pytest.mark.parametrize("missing", ["refuse", "unlabelled", "empty"])
def test_labels_that_cannot_be_read_do_not_make_a_negative(root: Path, missing: str) -> None:
    (root / "labels" / "1.2.é.plain.nrrd").rename(root / "labels" / "1.2.é.plain.seg.png")
    with pytest.raises(d3.ManifestError, match=r"1.2.é.plain.seg.png: the label file of 1.2.é.plain.nii.gz, in a form"):
        read_format("folder", root, missing=missing)


def test_files_that_are_no_scans_are_told(root: Path) -> None:
    (root / "images" / "list.csv").touch()
    assert read_format("folder", root).passed_over == ("labels/readme.txt: no scan", "images/list.csv: no scan")


def test_scans_beside_the_folder_of_labels(root: Path) -> None:
    for path in (root / "images").iterdir():
        path.rename(root / path.name)
    (root / "images").rmdir()
    wanted = sorted(f"1.2.é.{name}" for name in NAMES)
    assert [source.case_id for source in read_format("folder", root, images=".").sources] == wanted


def test_label_without_scan(root: Path, scans: dict[str, Any]) -> None:
    scans["plain"].write(root / "labels" / "z.nrrd", scans["plain"].labels())
    with pytest.raises(d3.ManifestError, match=r"z.nrrd: a label file without a scan named z"):
        read_format("folder", root)


def test_name_twice(root: Path, scans: dict[str, Any]) -> None:
    scans["plain"].write(root / "images" / "1.2.é.plain.nrrd")
    with pytest.raises(
        d3.ManifestError, match=r"'1.2.é.plain' is there twice, 1.2.é.plain.nii.gz and 1.2.é.plain.nrrd"
    ):
        read_format("folder", root)


def test_names_that_differ_in_case_only(root: Path, scans: dict[str, Any]) -> None:
    for name in ("x", "X"):
        scans["plain"].write(root / "images" / f"{name}.nii.gz")
        scans["plain"].write(root / "labels" / f"{name}.nii.gz", scans["plain"].labels())
    with pytest.raises(d3.ManifestError, match=r"case 'x' is there twice"):
        read_format("folder", root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": "a,b"}, "classes is 'a,b', wanted one with kind=instances"),
        ({"classes": "", "kind": "classes"}, "classes is '', wanted at least one"),
        ({"classes": "a,a", "kind": "classes"}, "a class is given twice"),
        ({"labels": "images"}, "scans and label files would be the same files: give label_suffix"),
        ({"image_suffix": "_ct"}, "wanted a name that ends in _ct"),
        ({"labels": "masks"}, "looked for a folder images and a folder masks"),
    ],
)
def test_options_that_do_not_fit(root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(d3.ManifestError, match=message):
        read_format("folder", root, **options)
