"""A scan becomes a zarr dataset, and training patches come out of it. Seconds; makes its own scan."""

import tempfile
from pathlib import Path

import nibabel
import numpy as np

import girih_data3d as data3d


def write_scan(folder: Path) -> data3d.CaseSource:
    """Write a noisy CT-like volume with one bright ball, as any scanner's NIfTI: anisotropic, axes not in RAS order."""
    rng, shape, affine = np.random.default_rng(0), (60, 60, 24), np.diag([-0.8, -0.8, 2.5, 1.0])
    z = np.indices(shape) * np.reshape([0.8, 0.8, 2.5], (3, 1, 1, 1))
    ball = np.linalg.norm(z - np.reshape([20.0, 24.0, 30.0], (3, 1, 1, 1)), axis=0) < 6
    image = rng.normal(-800, 60, shape) + 700 * ball
    nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), affine), folder / "ct.nii.gz")
    nibabel.save(nibabel.Nifti1Image(ball.astype(np.uint8), affine), folder / "objects.nii.gz")
    return data3d.CaseSource("patient1", (folder / "ct.nii.gz",), instances=(folder / "objects.nii.gz",))


with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    dataset = data3d.Dataset("balls", ("ball",), (write_scan(folder),))
    report = data3d.prepare_many(dataset, folder / "store", data3d.PrepareSpec(target_zyx_mm=(1, 1, 1)))
    store = data3d.Store.open(folder / "store")
    case = store["patient1"]
    print(f"prepared {report.done}: {case.shape} voxels of {case.spacing_zyx_mm} mm, box {case.boxes[0]}")
    print(f"in the file's own voxels the box is {case.truth['boxes'][0]}")

    sampler = data3d.PatchSampler((32, 32, 32), object_fraction=0.5, geometry=data3d.Geometry(), seed=0)
    patches = data3d.PatchDataset(store, sampler, n_per_epoch=100)
    for g in range(4):  # patch g is the same in every process, on every day
        patch = patches[g]
        print(f"patch {g}: image {patch['image'].shape}, {len(patch['boxes'])} boxes {patch['boxes'].tolist()}")
    print(case.to_xarray().coords["z"].values[:3], "mm along z; any OME-Zarr reader opens", case.folder.name)
