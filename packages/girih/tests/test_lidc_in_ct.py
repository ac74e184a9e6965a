"""The benchmark as written: its arguments on their own, its content on the real samples (at 3 mm, to be quick)."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from girih.samples import SampleSet
from girih.samples.lidc import consensus_nodules
from girih.samples.lidc_in_ct import LidcInCt, split_by_patient, write_lidc_in_ct
from girih.samples.sample_set import sample_set
from girih_data3d import read_labels, read_scan, world_to_voxel
from girih_data3d.manifest import read_manifest

SMALL: dict[str, Any] = {
    "seed": 3,
    "n_train": 2,
    "n_test": 1,
    "n_unlabelled": 1,
    "nodules_per_volume": 6,
    "spacing_mm": 3.0,
    "classes": "texture",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [("fold", 3), ("seed", -1), ("n_train", 0), ("n_test", 0), ("n_unlabelled", -1), ("nodules_per_volume", 51),
     ("spacing_mm", 0.2), ("spacing_mm", float("nan"))],
)  # fmt: skip
def test_arguments_out_of_range_are_named(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        write_lidc_in_ct(sample_set(tmp_path), tmp_path / "out", **{name: value})
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ValueError, match="is not empty and has no recipe"):
        write_lidc_in_ct(sample_set(tmp_path), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.fixture(scope="module")
def built(samples: SampleSet, tmp_path_factory: pytest.TempPathFactory) -> LidcInCt:
    return write_lidc_in_ct(samples, tmp_path_factory.mktemp("lidc") / "in-ct", **SMALL)


def provenance(folder: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / "provenance").iterdir())}


@pytest.mark.samples
def test_manifests_and_the_separation_of_the_splits(built: LidcInCt) -> None:
    unlabelled, train, test = (read_manifest(folder) for folder in built)
    assert {source.patient_id for source in test.sources} == {"lung1"}
    assert {source.patient_id for source in train.sources} == {"lung2", "thorax_cta"}
    assert [source.case_id for source in unlabelled.sources] == [
        "lung2-real",
        "thorax_cta-real",
        "lung2-unlabelled-000",
    ]
    assert not any(source.instances for source in unlabelled.sources)
    assert train.classes == test.classes == ("solid", "subsolid")
    used = [{n["lidc_patient_id"] for case in provenance(folder).values() for n in case["nodules"]} for folder in built]
    assert used[2]
    assert not used[2] & (used[0] | used[1])


@pytest.mark.samples
def test_every_instance_is_where_its_record_says_and_lesions_are_ignored(built: LidcInCt) -> None:
    for folder in (built.train, built.test):
        records = provenance(folder)
        for source in read_manifest(folder).sources:
            scan = read_scan(source.images[0])
            labels = read_labels(source.instances[0], like=scan).to_numpy()
            record = records[source.case_id]
            assert np.unique(labels).tolist() == [0, *range(1, 7), *source.ignore]
            assert list(source.ignore) == record["lesions"] == ([] if source.patient_id == "thorax_cta" else [7])
            assert sorted(source.instance_classes) == [*range(1, 7), *source.ignore]
            for nodule in record["nodules"]:
                (index,) = world_to_voxel(scan.attrs["affine"], np.array([nodule["position_ras_mm"]]))
                voxels = np.argwhere(labels == nodule["instance"])
                away_mm = 3.0 * np.linalg.norm(voxels.mean(axis=0) - index)
                assert away_mm < max(3.0, nodule["diameter_mm"] / 2)
                assert source.instance_classes[nodule["instance"]] == (nodule["texture"] < 4)
            assert len(record["decoys"]) >= 4
            np.testing.assert_allclose(scan.attrs["spacing_zyx_mm"], 3.0, rtol=0.02)


@pytest.mark.samples
def test_what_was_inserted_is_seen_and_the_rest_is_the_real_scan(built: LidcInCt) -> None:
    real = read_scan(built.unlabelled / "images" / "lung2-real.nii.gz").to_numpy()[0]
    made = read_scan(built.train / "images" / "lung2-train-000.nii.gz")
    labels = read_labels(built.train / "instances" / "lung2-train-000.nii.gz", like=made).to_numpy()
    raised = made.to_numpy()[0] - real
    assert raised.min() >= -1  # rounding
    inserted = (labels > 0) & (labels <= 6)
    assert raised[inserted].mean() > 150
    assert real[inserted].mean() < -500  # it was lung
    assert (raised == 0).mean() > 0.9
    assert (raised[~inserted] > 100).sum() > 20  # decoys


@pytest.mark.samples
def test_same_arguments_give_the_same_bytes_also_after_a_kill(
    samples: SampleSet, built: LidcInCt, tmp_path: Path
) -> None:
    def kill(case_id: str, done: int, total: int) -> None:
        assert total == 6
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_lidc_in_ct(samples, tmp_path, **SMALL, on_progress=kill)
    assert not list(tmp_path.glob("*/dataset.json"))
    half = next((tmp_path / "train" / "provenance").iterdir())
    half.unlink()  # as if killed before the record, which is written last
    again = write_lidc_in_ct(samples, tmp_path, **SMALL)
    assert digest(tmp_path) == digest(built.train.parent)
    changed = [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))]
    assert write_lidc_in_ct(samples, tmp_path, **SMALL) == again  # finished: nothing is done
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))] == changed
    with pytest.raises(ValueError, match="made with seed = 3, wanted 4"):
        write_lidc_in_ct(samples, tmp_path, **SMALL | {"seed": 4})


def digest(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.samples
def test_patients_are_split_by_the_seed(samples: SampleSet) -> None:
    nodules = consensus_nodules(samples)
    train, test = split_by_patient(nodules, seed=0)
    assert len(train) + len(test) == len(nodules)
    assert not {nodule.patient_id for nodule in train} & {nodule.patient_id for nodule in test}
    assert 0.2 < len(test) / len(nodules) < 0.4
    assert [nodule.annotations for nodule in split_by_patient(nodules, seed=0)[1]] == [n.annotations for n in test]
    assert [nodule.annotations for nodule in split_by_patient(nodules, seed=1)[1]] != [n.annotations for n in test]


@pytest.mark.samples
def test_every_sample_volume_is_readable_with_its_labels(samples: SampleSet) -> None:
    for volume in samples.volumes:
        scan = read_scan(volume.image, modality=volume.modality)
        assert scan.ndim == 4
        if volume.labels is not None:
            assert read_labels(volume.labels, like=scan).to_numpy().any()
