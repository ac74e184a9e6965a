"""A small dataset of real files, prepared once: two labelled CT-like cases and an unlabelled one."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import settings

import girih_data3d as d3
from girih_data3d.case_writer import write_case
from girih_data3d.checksum import BLANK, checked_text
from girih_data3d.layout import SCHEMA, case_folder

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")

OBLIQUE = np.array([[-0.79, 0.12, 0, 40], [0.12, 0.79, 0, -30], [0, 0, 2.0, 7], [0, 0, 0, 1]])
"""x runs to the left and is turned by 8.6 degrees; 0.8 x 0.8 x 2 mm."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out tests/peers and tests/models unless they are named: they need more packages than the others."""
    apart = {"peers", "models"} & {collection_path.name}
    return True if apart and not any(apart & set(Path(given).parts) for given in config.args) else None


def make_source(folder: Path) -> Path:
    """Write images, labels and dataset.json."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    cases: list[dict[str, Any]] = []
    for number, shape in enumerate([(20, 60, 50), (16, 44, 70)]):
        image = rng.normal(100, 20, shape).astype(np.float32)
        labels = np.zeros(shape, np.uint8)
        labels[3:6, 10:22, 10:20] = 7
        labels[9:12, 30:36, 24:34] = 2
        labels[12:14, 5:9, 30:40] = 4
        image[labels > 0] += 200
        d3.write_nifti(image, folder / f"{number}.nii.gz", affine=OBLIQUE)
        d3.write_nifti(labels, folder / f"{number}_objects.nii.gz", affine=OBLIQUE)
        d3.write_nifti((image > 120).astype(np.uint8), folder / f"{number}_tissue.nii.gz", affine=OBLIQUE)
        cases.append(
            {
                "case_id": f"case{number}",
                "patient_id": f"p{number}",
                "images": [f"{number}.nii.gz"],
                "instances": f"{number}_objects.nii.gz",
                "instance_classes": {"7": 1, "2": 0, "4": 0},
                "ignore": [2],
                "semantic": f"{number}_tissue.nii.gz",
            }
        )
    d3.write_nifti(rng.normal(0, 1, (30, 30, 30)).astype(np.float32), folder / "free.nii.gz", affine=np.eye(4))
    cases.append({"case_id": "free", "images": ["free.nii.gz"]})
    write_manifest(folder, cases)
    return folder


def write_manifest(folder: Path, cases: list[dict[str, Any]], **other: Any) -> None:
    record = {"schema": 1, "name": "toy", "classes": ["small", "large"], "modality": "CT", "cases": cases, **other}
    (folder / "dataset.json").write_text(json.dumps(record))


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of raw files; read only."""
    return make_source(tmp_path_factory.mktemp("raw") / "toy")


@pytest.fixture(scope="session")
def prepared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> d3.Store:
    """The prepared dataset; read only."""
    root = tmp_path_factory.mktemp("prepared")
    report = d3.prepare_many(d3.read_manifest(source), root, d3.PrepareSpec(), workers=0)
    assert report == d3.Report(done=["case0", "case1", "free"])
    return d3.Store.open(root)


@pytest.fixture
def own_source(source: Path, tmp_path: Path) -> Path:
    """A folder of raw files that the test may change; a copy keeps the files' times."""
    return shutil.copytree(source, tmp_path / "toy")


@pytest.fixture
def manifest_of() -> Callable[..., None]:
    return write_manifest


def write_dicom(
    folder: Path, positions: list[float], *, series: str = "1.2.3", slopes: Sequence[float] | None = None
) -> None:
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number, z in enumerate(positions):
        image = sitk.GetImageFromArray(np.full((1, 4, 5), number, np.int16) + np.arange(5, dtype=np.int16) * 100)
        image.SetSpacing((0.8, 0.9, 1.0))
        tags = {
            "0008|0060": "CT",
            "0020|000d": "1.2",
            "0020|000e": series,
            "0020|0032": f"-10\\-20\\{z}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(number),
            "0008|0018": f"{series}.{number}",
        }
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{series}-{number}.dcm"))
        writer.Execute(image)
        if slopes is not None:  # by hand: the writer would undo it in the voxels
            path = folder / f"{series}-{number}.dcm"
            before, slope, after = path.read_bytes().partition(b"\x28\x00\x53\x10\x02\x00\x00\x001 ")
            path.write_bytes(before + slope[:4] + b"\x06\x00\x00\x00" + f"{slopes[number]:<6}".encode() + after)


@pytest.fixture
def dicom_series() -> Callable[..., None]:
    """Writes a series of 4 x 5 slices at the given z positions into a folder."""
    return write_dicom


def write_small_case(
    root: Path,
    case_id: str,
    volume: np.ndarray,
    *,
    spec: d3.PrepareSpec | None = None,
    instances: Sequence[np.ndarray] = (),
    semantic: np.ndarray | None = None,
    objects: Sequence[dict[str, Any]] = (),
    **more: Any,
) -> Path:
    """Write arrays as a prepared case of a dataset, which is made if it is not there; return the case's folder."""
    spec = spec or d3.PrepareSpec()
    record = {"schema": SCHEMA, "name": "made", "classes": ["a", "b"], "spec": spec.to_json(), "spec_hash": spec.sha256}
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_bytes(checked_text({**record, "checksum": BLANK}))
    affine = np.diag([0.8, 0.9, 2.0, 1.0])
    prepared = {"affine": affine.tolist(), "source_affine": affine.tolist(), "source_shape_zyx": volume.shape[1:]}
    attributes = {"schema": SCHEMA, "case_id": case_id, "patient_id": f"p-{case_id}", "modality": "CT"}
    truth = {"classes": record["classes"]} if objects else None
    attributes |= {"spec_hash": spec.sha256, "source": {}, "prepared": prepared, "truth": truth}
    folder = case_folder(root, case_id)
    write_case(
        folder,
        volume=volume,
        affine=affine,
        spec=spec,
        instances=instances,
        semantic=semantic,
        objects=objects,
        attributes=attributes,
        **more,
    )
    return folder


@pytest.fixture(scope="session")
def small_case() -> Callable[..., Path]:
    """Writes arrays as a prepared case: (root, case_id, volume, *, spec, instances, semantic, objects)."""
    return write_small_case


def write_overlapping(root: Path, case_id: str = "two") -> Path:
    """Write a case of two channels with two overlapping objects in two layers, one to ignore, and tissues."""
    rng = np.random.default_rng(len(case_id))
    volume = rng.normal(0, 1, (2, 37, 40, 45)).astype(np.float32)
    layers = np.zeros((2, 37, 40, 45), np.int32)
    layers[0, 3:20, 4:19, 5:22] = 1
    layers[1, 5:9, 6:9, 7:11] = 2
    layers[0, 30:33, 30:35, 30:36] = 3
    objects = [
        {"id": 5, "class": 1, "ignore": False, "box": [3, 4, 5, 20, 19, 22], "voxels": 17 * 15 * 17, "layer": 0},
        {"id": 9, "class": 0, "ignore": False, "box": [5, 6, 7, 9, 9, 11], "voxels": 4 * 3 * 4, "layer": 1},
        {"id": 2, "class": 0, "ignore": True, "box": [30, 30, 30, 33, 35, 36], "voxels": 3 * 5 * 6, "layer": 0},
    ]
    semantic = (volume[0] > 1.5).astype(np.int16) * 3
    return write_small_case(root, case_id, volume, instances=list(layers), semantic=semantic, objects=objects)


@pytest.fixture(scope="session")
def overlapping_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("overlapping")
    write_overlapping(root)
    d3.update_index(root)
    return root


@pytest.fixture
def overlapping(overlapping_once: Path, tmp_path: Path) -> d3.Store:
    """A dataset of one case with two layers of instances and tissues, which the test may damage."""
    return d3.Store.open(shutil.copytree(overlapping_once, tmp_path / "made"))
