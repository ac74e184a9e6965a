"""BIDS datasets: subjects with and without sessions, ABCD's names, and all that is no image of the kind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import girih_data3d as d3
from girih_data3d.formats import read_format

ABCD = "sub-NDARINV0A1B2C3D/ses-baselineYear1Arm1/anat/sub-NDARINV0A1B2C3D_ses-baselineYear1Arm1_run-01_T1w.nii.gz"
LATER = ABCD.replace("baselineYear1Arm1", "2YearFollowUpYArm1")
PLAIN = "sub-01/anat/sub-01_T1w.nii"
IMAGES = [PLAIN, "sub-01/anat/sub-01_T2w.nii.gz", ABCD, LATER, ABCD.replace("run-01", "run-02")]


@pytest.fixture
def root(tmp_path: Path, scans: dict[str, Any], write_rows: Callable[..., Path]) -> Path:
    folder = tmp_path / "ds000999"
    for name in IMAGES:
        scans["flipped"].write(folder / name)
    scans["plain"].write(folder / "derivatives" / "fmriprep" / "sub-01" / "anat" / "sub-01_desc-preproc_T1w.nii.gz")
    scans["plain"].write(folder / "sourcedata" / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    (folder / "sub-01" / "anat" / "sub-01_T1w.json").write_text("{}")
    (folder / "sub-02" / "func").mkdir(parents=True)
    (folder / "dataset_description.json").write_text(json.dumps({"Name": "toy", "BIDSVersion": "1.8.0"}))
    write_rows(
        folder / "participants.tsv",
        [["participant_id", "age", "split"], ["sub-01", 30, "test"], ["NDARINV0A1B2C3D", 10, "train"]],
        delimiter="\t",
    )
    return folder


def ids(root: Path, **options: Any) -> list[str]:
    return [source.case_id for source in read_format("bids", root, **options).sources]


def test_layout(root: Path, prepare: Callable[..., d3.Store], scans: dict[str, Any]) -> None:
    dataset = read_format("bids", root)
    assert (dataset.name, dataset.classes) == ("ds000999", ())
    assert dataset.passed_over == (
        "derivatives: not a subject",
        "sourcedata: not a subject",
        "sub-01/anat/sub-01_T2w.nii.gz: the suffix is T2w",
        "sub-02: no image with the suffix T1w in anat",
    )
    assert [(source.case_id, source.patient_id, source.modality, source.part) for source in dataset.sources] == [
        ("sub-01_T1w", "sub-01", "MR", None),
        (Path(LATER).name.removesuffix(".nii.gz"), "sub-NDARINV0A1B2C3D", "MR", None),
        (Path(ABCD).name.removesuffix(".nii.gz"), "sub-NDARINV0A1B2C3D", "MR", None),
        (Path(IMAGES[4]).name.removesuffix(".nii.gz"), "sub-NDARINV0A1B2C3D", "MR", None),
    ]
    store = prepare(dataset)
    case = store["sub-01_T1w"]
    np.testing.assert_array_equal(case.read_patch((0, 0, 0), case.shape[1:])[0], scans["flipped"].volume)
    np.testing.assert_allclose(case.affine, scans["flipped"].affine)
    assert not store.index.annotated.any()


def test_suffixes(root: Path) -> None:
    assert ids(root, suffixes="T2w") == ["sub-01_T2w"]
    assert len(ids(root, suffixes="T1w, T2w")) == 5
    with pytest.raises(
        d3.ManifestError, match=r"no images with the suffix FLAIR in anat; there are T1w \(4\), T2w \(1\)"
    ):
        read_format("bids", root, suffixes="FLAIR")
    with pytest.raises(d3.ManifestError, match="no images with the suffix T1w in pet; there are none"):
        read_format("bids", root, datatypes="pet")


def test_sessions(root: Path) -> None:
    first = ids(root, sessions="first")
    passed_over = read_format("bids", root, sessions="first").passed_over
    assert [text for text in passed_over if "session" in text] == [
        f"{ABCD}: not of the first session",
        f"{IMAGES[4]}: not of the first session",
    ]
    assert first == ["sub-01_T1w", "sub-NDARINV0A1B2C3D_ses-2YearFollowUpYArm1_run-01_T1w"]
    (root / LATER).rename(root / LATER.replace("T1w", "T2w"))
    assert len(ids(root, sessions="first")) == 3  # the first that has such images, with both runs


def test_images_with_a_time_axis(root: Path, tmp_path: Path) -> None:
    path = root / "sub-02" / "func" / "sub-02_task-rest_bold.nii.gz"
    frames = np.random.default_rng(0).normal(0, 1, (6, 5, 4, 3)).astype(np.float32)
    nib.save(nib.Nifti1Image(frames, np.diag([2.0, 2, 3, 1])), path)
    for frame, wanted in (("mean", frames.mean(axis=3)), ("first", frames[..., 0])):
        dataset = read_format("bids", root, suffixes="bold", datatypes="func", frame=frame)
        scan = d3.read_source(dataset.sources[0])
        np.testing.assert_allclose(scan.values[0], wanted.transpose(2, 1, 0), atol=1e-6)
    none = read_format("bids", root, suffixes="bold", datatypes="anat,func")
    with pytest.raises(d3.ScanError, match="3 frames"):
        d3.read_source(none.sources[0])


def test_parts_of_a_column(root: Path, write_rows: Callable[..., Path]) -> None:
    parts = {source.patient_id: source.part for source in read_format("bids", root, part_column="split").sources}
    assert parts == {"sub-01": "test", "sub-NDARINV0A1B2C3D": "train"}
    with pytest.raises(d3.ManifestError, match=r"participants.tsv: no column site, found \['participant_id', 'age'"):
        read_format("bids", root, part_column="site")
    table = root / "participants.tsv"
    write_rows(table, [["participant_id", "split"], ["sub-01", "n/a"]], delimiter="\t")
    with pytest.raises(d3.ManifestError, match=r"T1w.nii.gz: subject sub-NDARINV0A1B2C3D is not in participants.tsv"):
        read_format("bids", root, part_column="split")
    write_rows(table, [["participant_id", "split"], ["sub-01", "a"], ["01", "b"]], delimiter="\t")
    with pytest.raises(d3.ManifestError, match="row 3: participant sub-01 is there twice"):
        read_format("bids", root, part_column="split")
    table.unlink()
    with pytest.raises(d3.ManifestError, match=r"participants.tsv: not a readable"):
        read_format("bids", root, part_column="split")
    assert len(ids(root)) == 4  # the table is not needed otherwise


def test_a_file_of_another_subject(root: Path) -> None:
    (root / PLAIN).rename(root / PLAIN.replace("sub-01_", "sub-02_"))
    with pytest.raises(d3.ManifestError, match=r"sub-02_T1w.nii: wanted a name that begins with sub-01_"):
        read_format("bids", root)


def test_unusual_names(root: Path) -> None:
    (root / PLAIN).with_name("sub-01_T1w.nii.gz").touch()
    with pytest.raises(d3.ManifestError, match="case 'sub-01_T1w' is there twice"):
        read_format("bids", root)
    (root / PLAIN).unlink()
    (root / PLAIN).with_name("localizer.nii.gz").touch()
    (root / PLAIN).with_name("._sub-01_T1w.nii.gz").touch()
    assert len(ids(root)) == 4


def test_no_subjects(tmp_path: Path) -> None:
    (tmp_path / "subjects").mkdir()
    with pytest.raises(d3.ManifestError, match="looked for folders sub-<label>"):
        read_format("bids", tmp_path)
