"""The three real thoracic CTs as scenes to place objects in: isotropic voxels, lungs found, real lesions set aside."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8
from scipy import ndimage

from girih.samples.lungs import box_around, lung_mask, within
from girih.samples.sample_set import Volume
from girih_data3d import read_labels, read_scan, resample, resample_instances
from girih_data3d.affine import rescale_affine, shift_affine

LESION_MARGIN_MM = 8.0
"""No object is placed closer than this to a real lesion."""
CROP_MARGIN_MM = 10.0
"""The volume is cropped to the lungs' box and this much around it."""
RIM_MM = 4.0
"""No object lies in the volume's outermost layer, where the scan may end within the lungs."""
FWHM_PER_SIGMA = 2.355  # of a Gaussian: 2 sqrt(2 ln 2)


@dataclass(frozen=True, eq=False)
class Background:
    """One CT, cropped to its lungs.

    `hu` are its values; `affine` maps voxel-centre indices (x, y, z) to RAS mm; `depth_mm` is the distance from the
    lungs' surface, positive inside; `free` are the lung voxels away from real lesions and from the volume's rim;
    `lesions` numbers the real lesions from 1; `blur_z_voxels` is the standard deviation that turns a voxel's profile
    along z into that of the scan's own, thicker slices.
    """

    name: str
    spacing_mm: float
    hu: Float32[np.ndarray, "z y x"]
    affine: Float64[np.ndarray, "4 4"]
    depth_mm: Float32[np.ndarray, "z y x"]
    free: Bool[np.ndarray, "z y x"]
    lesions: UInt8[np.ndarray, "z y x"]
    blur_z_voxels: float


def read_background(volume: Volume, spacing_mm: float) -> Background:
    """Read a thoracic CT, resample it to cubic voxels of `spacing_mm` and find its lungs."""
    scan = read_scan(volume.image, modality=volume.modality)
    source, source_mm, target_mm = scan.to_numpy()[0], scan.attrs["spacing_zyx_mm"], (spacing_mm,) * 3
    hu = resample(source, spacing_zyx_mm=source_mm, target_zyx_mm=target_mm)
    hu = hu.clip(source.min(), source.max())  # splines overshoot at metal and air
    lesions = np.zeros(hu.shape, np.uint8)
    if volume.label_kind == "lesion" and volume.labels is not None:
        labels = read_labels(volume.labels, like=scan).to_numpy()
        lesions = resample_instances(labels, spacing_zyx_mm=source_mm, target_zyx_mm=target_mm).astype(np.uint8)
    lungs = lung_mask(hu, spacing_mm)
    window = box_around(lungs | (lesions > 0), CROP_MARGIN_MM, spacing_mm)
    affine = shift_affine(
        rescale_affine(np.asarray(scan.attrs["affine"]), source.shape, hu.shape),
        np.array([side.start for side in window]),
    )
    lungs, lesions = lungs[window], lesions[window]
    rim = round(RIM_MM / spacing_mm)
    middle = np.pad(np.ones([n - 2 * rim for n in lungs.shape], bool), rim)
    inside = ndimage.distance_transform_edt(lungs, sampling=spacing_mm)
    outside = ndimage.distance_transform_edt(~lungs, sampling=spacing_mm)
    return Background(
        name=volume.name,
        spacing_mm=spacing_mm,
        hu=np.ascontiguousarray(hu[window]),
        affine=affine,
        depth_mm=np.where(lungs, inside - spacing_mm / 2, spacing_mm / 2 - outside).astype(np.float32),
        free=lungs & middle & ~within(lesions > 0, LESION_MARGIN_MM, spacing_mm),
        lesions=lesions,
        blur_z_voxels=float(np.sqrt(max(0.0, source_mm[0] ** 2 - spacing_mm**2))) / FWHM_PER_SIGMA / spacing_mm,
    )
