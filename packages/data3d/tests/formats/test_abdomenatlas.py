"""AbdomenAtlas in its true layout: one folder a scan, tissues and no objects."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import girih_data3d as d3
from girih_data3d.formats import read_format
from girih_data3d.leakage import find_leaks


@pytest.fixture
def root(tmp_path: Path, scans: dict[str, Any]) -> Path:
    folder = tmp_path / "AbdomenAtlas1.0Mini"
    for number, name in enumerate(("plain", "flipped", "turned"), start=1):
        case, scan = folder / f"BDMAP_{number:08}", scans[name]
        scan.write(case / "ct.nii.gz")
        scan.write(case / "combined_labels.nii.gz", scan.labels() * 5)
        for organ in ("aorta", "liver"):
            scan.write(case / "segmentations" / f"{organ}.nii.gz", scan.mask(1))
    (folder / ".cache").mkdir()
    (folder / "TextReports").mkdir()
    return folder


def test_tissues_and_no_objects(root: Path, scans: dict[str, Any], prepare: Callable[..., d3.Store]) -> None:
    dataset = read_format("abdomenatlas", root)
    assert (dataset.name, dataset.classes, dataset.passed_over) == (
        "abdomenatlas",
        (),
        ("TextReports: not a folder BDMAP_<number>",),
    )
    store = prepare(dataset)
    assert not store.index.annotated.any()
    for number, name in enumerate(("plain", "flipped", "turned"), start=1):
        case = store[f"BDMAP_{number:08}"]
        np.testing.assert_array_equal(case.read_patch((0, 0, 0), case.shape[1:])[0], scans[name].volume)
        found = case.read_label_patch("semantic", (0, 0, 0), case.shape[1:])
        np.testing.assert_array_equal(found, scans[name].labels() * 5)
        assert (case.patient_id, case.modality) == (f"BDMAP_{number:08}", "CT")


def test_scans_without_combined_labels(root: Path) -> None:
    (root / "BDMAP_00000002" / "combined_labels.nii.gz").unlink()
    found = r"BDMAP_00000002/combined_labels.nii.gz: no such file \(the masks in segmentations are not put together\)"
    with pytest.raises(d3.ManifestError, match=found):
        read_format("abdomenatlas", root)
    sources = read_format("abdomenatlas", root, missing="unlabelled").sources
    assert [source.semantic is None for source in sources] == [False, True, False]


def test_folders_without_a_scan(root: Path) -> None:
    (root / "BDMAP_00000003" / "ct.nii.gz").unlink()
    found = r"BDMAP_00000003/ct.nii.gz: no such file; found \['combined_labels.nii.gz', 'segmentations'\]; partial=true"
    with pytest.raises(d3.ManifestError, match=found):
        read_format("abdomenatlas", root)
    dataset = read_format("abdomenatlas", root, partial=True)
    assert (len(dataset.sources), dataset.passed_over[1:]) == (2, ("BDMAP_00000003: no ct.nii.gz",))
    assert len(read_format("abdomenatlas", root.parent, partial=True).sources) == 2


def test_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "AbdomenAtlas1.0Mini.tar.gz").touch()
    with pytest.raises(d3.ManifestError, match=r"looked for folders BDMAP_<number>.*unpack AbdomenAtlas1.0Mini.tar.gz"):
        read_format("abdomenatlas", tmp_path)


def test_scans_of_the_decathlon_are_found(root: Path, tmp_path: Path, scans: dict[str, Any]) -> None:
    """A scan of Task07 that AbdomenAtlas holds under another name is known by its voxels, turned as it is."""
    image = scans["turned"].write(tmp_path / "msd" / "pancreas_001.nii")
    msd = d3.Dataset("msd-pancreas", ("cancer",), (d3.CaseSource("pancreas_001", (image,), objects=()),))
    spec = d3.PrepareSpec()
    d3.prepare_many(msd, tmp_path / "a", spec, workers=0)
    d3.prepare_many(read_format("abdomenatlas", root), tmp_path / "b", spec, workers=0)
    report = find_leaks(d3.Store.open(tmp_path / "b"), d3.Store.open(tmp_path / "a"))
    assert [(leak.case_a, leak.case_b, leak.reason) for leak in report.leaks] == [
        ("BDMAP_00000003", "pancreas_001", "content")
    ]
