"""OpenMind in its true layout: studies, sessions, shared masks, removed faces that are not learnt from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import girih_data3d as d3
from girih_data3d.formats import read_format

HEADER = ["unique_id", "modality", "image_path", "anon_mask_path", "anat_mask_path", "derived_from"]
HEADER += ["image_quality_score", "age"]
T1, T2 = "ds000001/sub-01/anat/sub-01_T1w.nii.gz", "ds000001/sub-01/ses-2/anat/sub-01_ses-2_T2w.nii.gz"
FA, PET = "ds000117/sub-01/dwi/sub-01_dwi/FA.nii.gz", "ds000117/sub-02/pet/sub-02_pet.nii.gz"
DEFACED, ANATOMY = "ds000001/sub-01/anat/sub-01_defacemask.nii.gz", "ds000001/sub-01/anat/sub-01_fb_mask.nii.gz"
ROWS = [
    [1, "T1w", T1, DEFACED, ANATOMY, "", 1.5, 30],
    [2, "T2w", T2, DEFACED, "", "", 3.0, ""],
    [3, "FA", FA, "", "nan", "dwi", "", ""],
    [4, "PET", PET, "", "", "", 2.5, ""],
]
IDS = [
    "ds000001__sub-01__anat__sub-01_T1w",
    "ds000001__sub-01__ses-2__anat__sub-01_ses-2_T2w",
    "ds000117__sub-01__dwi__sub-01_dwi__FA",
    "ds000117__sub-02__pet__sub-02_pet",
]


@pytest.fixture
def root(tmp_path: Path, scans: dict[str, Any], write_rows: Callable[..., Path]) -> Path:
    folder = tmp_path / "openmind-dataset"
    for name in (T1, T2, FA, PET):
        scans["flipped"].write(folder / "OpenMind" / name)
    scans["flipped"].write(folder / "OpenMind" / DEFACED, scans["flipped"].mask(1))
    scans["flipped"].write(folder / "OpenMind" / ANATOMY, scans["flipped"].mask(2))
    write_rows(folder / "openneuro_metadata.csv", [HEADER, *ROWS])
    return folder


def test_layout(root: Path, prepare: Callable[..., d3.Store], scans: dict[str, Any]) -> None:
    dataset = read_format("openmind", root)
    assert (dataset.name, dataset.classes) == ("openmind", ())
    assert [source.case_id for source in dataset.sources] == IDS
    assert [source.patient_id for source in dataset.sources] == [
        "ds000001__sub-01",
        "ds000001__sub-01",
        "ds000117__sub-01",
        "ds000117__sub-02",
    ]
    assert [source.modality for source in dataset.sources] == ["MR", "MR", "MR", "PT"]
    store = prepare(dataset)
    case = store[IDS[0]]
    np.testing.assert_array_equal(case.read_patch((0, 0, 0), case.shape[1:])[0], scans["flipped"].volume)
    np.testing.assert_allclose(case.affine, scans["flipped"].affine)
    assert not store.index.annotated.any()
    assert store.index.valid.tolist() == [True, True, False, False]


def test_removed_faces_are_not_valid(root: Path, prepare: Callable[..., d3.Store], scans: dict[str, Any]) -> None:
    store = prepare(read_format("openmind", root, modalities="T2w"))
    sampler = d3.PatchSampler(scans["flipped"].volume.shape, object_fraction=0)
    sample = d3.PatchDataset(store, sampler, n_per_epoch=1)[0]
    np.testing.assert_array_equal(sample["valid"], scans["flipped"].mask(1) == 0)


def test_anatomy_masks_are_an_option(root: Path, prepare: Callable[..., d3.Store], scans: dict[str, Any]) -> None:
    assert all(source.semantic is None for source in read_format("openmind", root).sources)
    store = prepare(read_format("openmind", root, anatomy=True))
    labels = store[IDS[0]].read_label_patch("semantic", (0, 0, 0), scans["flipped"].volume.shape)
    np.testing.assert_array_equal(labels, scans["flipped"].mask(2))
    assert store.index.semantic.tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"modalities": "t1w, T2W"}, [0, 1]),
        ({"max_quality_score": 2.5}, [0, 3]),
        ({"derived": False}, [0, 1, 3]),
        ({"derived": False, "max_quality_score": 1.0, "modalities": ""}, []),
    ],
)
def test_filters(root: Path, options: dict[str, Any], kept: list[int]) -> None:
    if not kept:
        with pytest.raises(d3.ManifestError, match="no case of openmind in it"):
            read_format("openmind", root, **options)
    else:
        assert [source.case_id for source in read_format("openmind", root, **options).sources] == [IDS[k] for k in kept]


def test_an_unknown_modality(root: Path) -> None:
    with pytest.raises(d3.ManifestError, match="no modality 'flair', it has fa, pet, t1w, t2w"):
        read_format("openmind", root, modalities="T1w,FLAIR")


def test_paths_in_other_letters_and_other_folders(root: Path, write_rows: Callable[..., Path]) -> None:
    before = read_format("openmind", root)
    rows = [[*row[:2], f"OpenMind/{row[2]}".replace("/", "\\"), *row[3:]] for row in ROWS]
    write_rows(root / "openneuro_metadata.csv", [HEADER, *rows])
    assert read_format("openmind", root) == before
    (root / "OpenMind").rename(root / "openmind")
    (root / "openmind" / "ds000001").rename(root / "openmind" / "DS000001")
    (root / "openmind" / "DS000001" / "sub-01").rename(root / "openmind" / "DS000001" / "Sub-01")
    found = [name.replace("ds000001__sub-01", "DS000001__Sub-01") for name in IDS]  # ids as the folders are spelt
    sources = read_format("openmind", root).sources
    assert [source.case_id for source in sources] == found
    assert sources[0].patient_id == "DS000001__Sub-01"
    assert sources[0].images[0] == root / "openmind" / T1.replace("ds000001/sub", "DS000001/Sub")
    (root / "openneuro_metadata.csv").rename(root / "openmind" / "openneuro_metadata.csv")
    for folder in (root / "openmind", root):  # the table inside the folder of the studies
        assert [s.case_id for s in read_format("openmind", folder).sources] == found


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (2, "", "row 2: image_path is '', wanted a text"),
        (1, "", "row 2: modality is '', wanted a text"),
        (2, ".", r"row 2: image_path is '\.', wanted a path inside the folder OpenMind"),
        (2, "OpenMind", r"row 2: image_path is 'OpenMind', wanted a path inside"),
        (2, "../sub-01/a.nii.gz", r"row 2: image_path is '../sub-01/a.nii.gz', wanted a path inside"),
        (2, "/data/sub-01/a.nii.gz", "row 2: image_path is '/data/sub-01/a.nii.gz', wanted a path inside"),
        (2, "ds000001/sub-09/anat/sub-09_T1w.nii.gz", "row 2: image_path: .*sub-09_T1w.nii.gz: no such file; partial"),
        (2, T2, "case '.*T2w' is there twice"),
        (3, "ds000001/sub-01/anat/other.nii.gz", "row 2: anon_mask_path: .*other.nii.gz: no such file$"),
        (6, "good", "row 2: image_quality_score is 'good', wanted a finite number"),
    ],
)
def test_rows_that_cannot_be(
    root: Path, column: int, value: str, message: str, write_rows: Callable[..., Path]
) -> None:
    first = [*ROWS[0][:column], value, *ROWS[0][column + 1 :]]
    write_rows(root / "openneuro_metadata.csv", [HEADER, first, *ROWS[1:]])
    with pytest.raises(d3.ManifestError, match=message):
        read_format("openmind", root, max_quality_score=5.0)


def test_images_that_are_not_there(root: Path) -> None:
    (root / "OpenMind" / T2).unlink()
    with pytest.raises(d3.ManifestError, match=r"row 3: image_path: .*T2w.nii.gz: no such file"):
        read_format("openmind", root)
    assert len(read_format("openmind", root, partial=True).sources) == 3
    (root / "OpenMind" / DEFACED).unlink()  # a face that was removed is never learnt from in silence
    with pytest.raises(d3.ManifestError, match="anon_mask_path"):
        read_format("openmind", root, partial=True)


def test_a_path_without_a_subject(root: Path, scans: dict[str, Any], write_rows: Callable[..., Path]) -> None:
    scans["plain"].write(root / "OpenMind" / "ds1" / "phantom" / "a.nii.gz")
    write_rows(root / "openneuro_metadata.csv", [HEADER, [9, "T1w", "ds1/phantom/a.nii.gz", "", "", "", "", ""]])
    with pytest.raises(d3.ManifestError, match=r"row 2: image_path is .*, wanted <study>/sub-<id>"):
        read_format("openmind", root)


def test_columns_and_folders(root: Path, tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    write_rows(root / "openneuro_metadata.csv", [["id", "Modality", "image"], [1, "T1w", T1]])
    with pytest.raises(d3.ManifestError, match="no column image_path, found"):
        read_format("openmind", root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(d3.ManifestError, match=r"looked for openneuro_metadata.csv"):
        read_format("openmind", tmp_path / "empty")
