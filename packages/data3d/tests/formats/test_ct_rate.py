"""CT-RATE in its true layout: numbers from the table, the repaired release, one reconstruction of each scan."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import girih_data3d as d3
from girih_data3d.formats import read_format

HEADER = ["VolumeName", "Manufacturer", "RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing", "Rows"]
VOLUMES = ["train_1_a_1", "train_1_a_2", "train_1_b_1", "train_2_a_1", "train_2_a_2", "valid_1_a_1"]


def line(name: str, **more: object) -> list[object]:
    row = {"RescaleSlope": 1, "RescaleIntercept": -8192, "XYSpacing": "[0.75, 0.5]", "ZSpacing": 2.5, "Rows": 16} | more
    return [f"{name}.nii.gz", "SIEMENS", *(row[key] for key in HEADER[2:])]


def place(root: Path, name: str, end: str = "") -> Path:
    part, patient, scan, _ = name.split("_")
    return root / f"{part}{end}" / f"{part}_{patient}" / f"{part}_{patient}_{scan}" / f"{name}.nii.gz"


@pytest.fixture
def root(tmp_path: Path, scans: dict[str, Any], write_rows: Callable[..., Path]) -> Path:
    """The original release: voxels as in DICOM, and headers that say 1 mm, no orientation, no slope."""
    folder = tmp_path / "dataset"
    for name in VOLUMES:
        path = place(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = (scans["plain"].volume.astype(np.int32) + 8192).astype(np.float64)
        nib.save(nib.Nifti1Image(stored.transpose(2, 1, 0), np.eye(4)), path)
    write_rows(folder / "metadata" / "train_metadata.csv", [HEADER, *(line(n) for n in VOLUMES if n[0] == "t")])
    write_rows(folder / "metadata" / "validation_metadata.csv", [HEADER, line("valid_1_a_1")])
    return folder


def test_numbers_come_from_the_table(root: Path, scans: dict[str, Any], prepare: Callable[..., d3.Store]) -> None:
    dataset = read_format("ct-rate", root, keep="all")
    assert (dataset.name, dataset.classes, dataset.passed_over) == ("ct-rate", (), ())
    store = prepare(dataset)
    assert list(store) == VOLUMES
    case = store["train_2_a_1"]
    np.testing.assert_array_equal(case.read_patch((0, 0, 0), case.shape[1:])[0], scans["plain"].volume)
    assert case.spacing_zyx_mm == (2.5, 0.75, 0.5)
    assert (case.patient_id, case.modality, case.truth, case.part) == ("train_2", "CT", None, "train")
    assert store["valid_1_a_1"].part == "val"


def test_fixed_files_are_read_as_they_are(root: Path, scans: dict[str, Any], prepare: Callable[..., d3.Store]) -> None:
    for name in VOLUMES:
        scans["flipped"].write(place(root, name, "_fixed"))
    store = prepare(read_format("ct-rate", root))  # both releases are there: the fixed one
    case = store["valid_1_a_1"]
    np.testing.assert_array_equal(case.read_patch((0, 0, 0), case.shape[1:])[0], scans["flipped"].volume)
    np.testing.assert_allclose(case.affine, scans["flipped"].affine)
    assert {source.rescale for source in read_format("ct-rate", root, release="original").sources} == {(1.0, -8192.0)}
    for table in (root / "metadata").iterdir():
        table.unlink()
    assert len(read_format("ct-rate", root).sources) == 4  # they need no table
    with pytest.raises(d3.ManifestError, match=r"train: no metadata/train_metadata.csv .* which has the slopes"):
        read_format("ct-rate", root, release="original")


def test_one_reconstruction_of_each_scan_or_patient(root: Path) -> None:
    def chosen(**options: Any) -> list[str]:
        return [source.case_id for source in read_format("ct-rate", root, **options).sources]

    drawn = [chosen(seed=seed) for seed in range(20)]
    assert all({name.rsplit("_", 1)[0] for name in names} == {v.rsplit("_", 1)[0] for v in VOLUMES} for names in drawn)
    assert all(len(names) == 4 for names in drawn)
    assert {name for names in drawn for name in names} == set(VOLUMES)
    assert chosen(seed=3) == drawn[3]
    by_patient = [chosen(keep="patient", seed=seed) for seed in range(20)]
    assert all([name.rsplit("_", 2)[0] for name in names] == ["train_1", "train_2", "valid_1"] for names in by_patient)
    place(root, "train_2_a_1").unlink()  # what is drawn of one scan does not depend on the others
    place(root, "train_2_a_2").unlink()
    assert chosen(seed=3, partial=True) == [name for name in drawn[3] if not name.startswith("train_2")]


def test_volumes_without_a_chest(root: Path) -> None:
    (root / "metadata" / "no_chest_train.txt").write_bytes(b"\xff")
    with pytest.raises(d3.ManifestError, match=r"no_chest_train\.txt: not a readable list"):
        read_format("ct-rate", root)
    text = "dataset/train/train_2/train_2_a/train_2_a_1.nii.gz\ntrain_2_a_2\n\n"
    (root / "metadata" / "no_chest_train.txt").write_text(text)
    dataset = read_format("ct-rate", root)
    assert {source.patient_id for source in dataset.sources} == {"train_1", "valid_1"}
    assert dataset.passed_over == ("train_2_a_1.nii.gz: shows no chest", "train_2_a_2.nii.gz: shows no chest")
    assert len(read_format("ct-rate", root, chest_only=False, keep="all").sources) == 6


def test_the_folder_above_and_below(root: Path) -> None:
    there = read_format("ct-rate", root)
    assert read_format("ct-rate", root.parent) == there
    assert read_format("ct-rate", root / "train") == there


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"XYSpacing": "[0.7 0.7 0.7]"}, r"row 2: XYSpacing is '\[0.7 0.7 0.7\]', wanted two numbers"),
        ({"XYSpacing": ""}, r"row 2: XYSpacing is ''"),
        ({"XYSpacing": "0.7 mm, 0.7 mm"}, r"row 2: XYSpacing is '0.7 mm, 0.7 mm', wanted two numbers"),
        ({"XYSpacing": "[0.7, -0.7]"}, r"row 2: XYSpacing is '\[0.7, -0.7\]', wanted two numbers"),
        ({"XYSpacing": "[0.7, 0]"}, r"row 2: case 'train_1_a_1': spacing_zyx_mm is \(2.5, 0.7, 0.0\)"),
        ({"ZSpacing": "nan"}, "row 2: ZSpacing is 'nan', wanted a finite number"),
        ({"RescaleSlope": 0}, "row 2: case 'train_1_a_1': rescale is"),
        ({"RescaleIntercept": "x"}, "row 2: RescaleIntercept is 'x'"),
    ],
)
def test_rows_that_cannot_be(
    root: Path, change: dict[str, object], message: str, write_rows: Callable[..., Path]
) -> None:
    lines = [line(name, **(change if name == VOLUMES[0] else {})) for name in VOLUMES[:5]]
    write_rows(root / "metadata" / "train_metadata.csv", [HEADER, *lines])
    with pytest.raises(d3.ManifestError, match=message):
        read_format("ct-rate", root, keep="all")
    for seed in range(4):  # whichever of the scan's two volumes is drawn
        with pytest.raises(d3.ManifestError, match=message):
            read_format("ct-rate", root, seed=seed)


def test_series_of_both_releases(root: Path, scans: dict[str, Any], write_rows: Callable[..., Path]) -> None:
    lines = [[*line(name), f"1.2.{name}"] for name in VOLUMES[:5]]
    write_rows(root / "metadata" / "train_metadata.csv", [[*HEADER, "SeriesInstanceUID"], *lines])
    wanted = {name: f"1.2.{name}" for name in VOLUMES[:5]} | {VOLUMES[5]: None}
    for name in VOLUMES:
        scans["flipped"].write(place(root, name, "_fixed"))
    for release in ("original", "fixed"):
        sources = read_format("ct-rate", root, release=release, keep="all").sources
        assert {source.case_id: source.series_uid for source in sources} == wanted
        assert {source.rescale for source in sources} == {None if release == "fixed" else (1.0, -8192.0)}


def test_a_volume_of_the_other_part(root: Path, write_rows: Callable[..., Path]) -> None:
    (root / "valid" / "valid_1").rename(root / "train" / "valid_1")
    with pytest.raises(d3.ManifestError, match=r"valid_1_a_1.nii.gz: a volume of valid, but .*train is of train"):
        read_format("ct-rate", root)
    (root / "train" / "valid_1").rename(root / "valid" / "valid_1")
    write_rows(root / "metadata" / "validation_metadata.csv", [HEADER, line("train_1_a_1")])
    with pytest.raises(d3.ManifestError, match=r"VolumeName is 'train_1_a_1.nii.gz', wanted .* valid_1_a_1.nii.gz"):
        read_format("ct-rate", root)


def test_names_in_the_table(root: Path, write_rows: Callable[..., Path]) -> None:
    table = root / "metadata" / "train_metadata.csv"
    lines = [line(name) for name in VOLUMES[:5]]
    for row, message in (
        (line("train_1"), r"row 7: VolumeName is 'train_1.nii.gz', wanted a name such as train_1_a_1.nii.gz"),
        (lines[1], r"row 7: train_1_a_2.nii.gz is there twice, first in .*row 3"),
    ):
        write_rows(table, [HEADER, *lines, row])
        with pytest.raises(d3.ManifestError, match=message):
            read_format("ct-rate", root)
    write_rows(table, [["Volume", *HEADER[1:]], *lines])
    with pytest.raises(d3.ManifestError, match="no column VolumeName, found"):
        read_format("ct-rate", root)


def test_files_and_rows_that_lack_each_other(root: Path, write_rows: Callable[..., Path]) -> None:
    place(root, "train_1_b_1").unlink()
    found = r"train_1_b/train_1_b_1.nii.gz: no such file \(1 such rows of the table\); partial=true"
    with pytest.raises(d3.ManifestError, match=found):
        read_format("ct-rate", root)
    assert len(read_format("ct-rate", root, partial=True, keep="all").sources) == 5
    write_rows(root / "metadata" / "train_metadata.csv", [HEADER, *(line(name) for name in VOLUMES[1:5])])
    with pytest.raises(d3.ManifestError, match=r"train_1_a_1.nii.gz: no row of the table has this volume"):
        read_format("ct-rate", root, keep="all", partial=True)


def test_files_that_lie_elsewhere(root: Path) -> None:
    place(root, "train_1_b_1").rename(place(root, "train_2_a_1").parent / "train_1_b_1.nii.gz")
    with pytest.raises(
        d3.ManifestError, match=r"train_2_a/train_1_b_1.nii.gz: wanted a name such as train_2_a_1.nii.gz"
    ):
        read_format("ct-rate", root)


def test_folders_that_are_not_it(tmp_path: Path) -> None:
    with pytest.raises(d3.ManifestError, match=r"looked for train or train_fixed .*found an empty folder"):
        read_format("ct-rate", tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(d3.ManifestError, match=r"no metadata/train_metadata\.csv"):
        read_format("ct-rate", tmp_path)
    with pytest.raises(d3.ManifestError, match=r"no volumes such as train_1/train_1_a/.*\(release fixed\)"):
        read_format("ct-rate", tmp_path, release="fixed")
