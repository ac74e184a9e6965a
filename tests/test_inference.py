"""From files in any orientation, through preparation and whole-volume inference, back to the place in the patient."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import xarray
from scipy import ndimage
from torch import nn

import girih_data3d
from girih_data3d import CaseSource, Dataset, PrepareSpec, Store
from girih_detectors.inference import detect_volume, restore

SHAPE = (44, 40, 28)  # voxels along x, y, z of the scan as it lies in the patient
SPACING = (1.5, 1.0, 2.0)
BODY = ((6, 4, 2), (42, 36, 26))
"""The scan is zero outside, and cropped to this."""
OBJECTS = [((10, 8, 4), (14, 14, 8)), ((30, 24, 16), (38, 30, 20)), ((12, 28, 20), (16, 32, 24))]
"""First voxels and ends (x, y, z). From the start of the body they lie at multiples of the target's voxels."""
VALUES = (0.9, 0.8, 0.7)
HALF = 0.4
PATCH = (16, 16, 32)  # half of it holds the largest object of the finest grid
TARGETS = {"finer": (1.0, 1.0, 0.75), "coarser": (4.0, 2.0, 3.0), "as it is": None}
ORIENTATIONS = [
    np.array([*zip(axes, flips, strict=True)])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:  # the tiles are small
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class HalfMaximum(nn.Module):
    """A box around each component above half of the objects' intensity, and less trust where the tile cuts it."""

    classes = ("object",)

    def __init__(self) -> None:
        super().__init__()
        self.pyramid = nn.Identity()

    def forward(self, images: Any, targets: Any) -> Any:
        raise NotImplementedError

    tensors = postprocess = forward

    def detect(self, images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        return [self._one(image[0].numpy()) for image in images]

    def _one(self, image: np.ndarray) -> dict[str, torch.Tensor]:
        rows = []
        marks, _ = ndimage.label(image > HALF)
        for part in ndimage.find_objects(marks):
            cut = any(s.start == 0 or s.stop == n for s, n in zip(part, image.shape, strict=True))
            score = min(1.0, float(image[part].max())) * (0.5 if cut else 1.0)
            rows.append([*(s.start for s in part), *(s.stop for s in part), score])
        table = torch.tensor(sorted(rows, key=lambda row: -row[6]), dtype=torch.float32).reshape(-1, 7)
        return {"boxes": table[:, :6], "scores": table[:, 6], "labels": torch.zeros(len(rows), dtype=torch.int64)}


def write_scan(path: Path, orientation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Write the scan with its axes in this order and direction.

    Returns:
        The objects' boxes in the voxel edges of the file's array (z, y, x), and their hulls in RAS mm.
    """
    scan = np.zeros(SHAPE, dtype=np.float32)
    scan[tuple(slice(a, b) for a, b in zip(*BODY, strict=True))] = 0.01
    for (low, high), value in zip(OBJECTS, VALUES, strict=True):
        scan[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = value
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = (-31.5, 12.25, -140.0)
    image = nibabel.Nifti1Image(scan, affine).as_reoriented(orientation)
    nibabel.save(image, path)
    boxes = []
    stored = image.get_fdata()
    for value in VALUES:
        where = np.argwhere(np.isclose(stored, value))
        boxes.append([*where.min(axis=0)[::-1], *(where.max(axis=0)[::-1] + 1)])
    edges = np.array(OBJECTS) - 0.5  # voxel edges as indices of centres
    world = edges * SPACING + affine[:3, 3]
    return np.array(boxes, dtype=float), world.reshape(-1, 6)


def expect(found: dict[str, Any], boxes: np.ndarray, world: np.ndarray) -> None:
    """The three best detections are the objects, within 1e-3 mm in the patient, and in the voxels of the file."""
    order = np.argsort(np.array(found["boxes_ras_mm"][:3])[:, 0])
    wanted = np.argsort(world[:, 0])
    np.testing.assert_allclose(np.array(found["boxes_ras_mm"])[order], world[wanted], atol=1e-3)
    np.testing.assert_allclose(np.array(found["boxes"])[order], boxes[wanted], atol=1e-3 / max(SPACING))


@pytest.mark.parametrize("target", TARGETS)
def test_planted_objects_come_back_from_all_48_orientations(target: str, tmp_path: Path) -> None:
    spec = PrepareSpec(target_zyx_mm=TARGETS[target], normalisation="none")
    shapes, path = set(), tmp_path / "scan.nii.gz"
    for number, orientation in enumerate(ORIENTATIONS):
        boxes, world = write_scan(path, orientation)
        image, prepared = girih_data3d.prepare_scan(girih_data3d.read_scan(path), spec)
        shapes.add(image.shape)
        mirror = number == 5  # 8 times the work: in one of those that are flipped along two axes, but not the third
        found = detect_volume(HalfMaximum(), image.values, patch_zyx=PATCH, batch_size=4, mirror=mirror)
        expect(restore(found, prepared, case_id=f"orientation {number}", classes=["object"]), boxes, world)
    assert len(ORIENTATIONS) == 48
    assert len(shapes) == 1  # the patient is the same


@pytest.mark.parametrize("number", [0, 13, 47])
def test_planted_objects_come_back_from_a_prepared_store(number: int, tmp_path: Path) -> None:
    boxes, world = write_scan(tmp_path / "scan.nii.gz", ORIENTATIONS[number])
    source = CaseSource(case_id="scan", images=(tmp_path / "scan.nii.gz",))
    spec = PrepareSpec(target_zyx_mm=TARGETS["finer"], normalisation="none")
    report = girih_data3d.prepare_many(Dataset("planted", ("object",), (source,)), tmp_path / "store", spec, workers=0)
    assert not report.failed
    case = Store.open(tmp_path / "store")["scan"]
    whole = xarray.DataArray(np.ones(case.lazy().shape[1:], dtype=bool))
    found = detect_volume(HalfMaximum(), case.lazy(), patch_zyx=PATCH, batch_size=4, valid=whole)
    expect(restore(found, case.prepared, case_id="scan", classes=["object"]), boxes, world)
