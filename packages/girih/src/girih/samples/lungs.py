"""The lungs of a thoracic CT by thresholds: good enough to place objects in them, not a segmentation tool."""

import numpy as np
from jaxtyping import Bool, Float32
from scipy import ndimage

AIR_BELOW_HU = -400.0
AIRWAY_BELOW_HU = -940.0
AIRWAY_RADIUS_MM = 3.0
"""Pockets of air at least this wide are trachea and bronchi (or a bulla), no place for a nodule."""
AIRWAY_WALL_MM = 3.0
CLOSING_MM = 5.0
"""Vessels, fissures and nodules up to twice this wide are closed into the lungs; the hila are wider."""
SMALLEST_SHARE = 0.2
"""A second lung has at least this share of the first one's volume."""

Window = tuple[slice, slice, slice]


def lung_mask(hu: Float32[np.ndarray, "z y x"], spacing_mm: float) -> Bool[np.ndarray, "z y x"]:
    """Return the voxels of both lungs with the vessels and nodules in them, without trachea and main bronchi.

    Args:
        hu: a CT in Hounsfield units with isotropic voxels; z runs along the patient.
        spacing_mm: voxel size.

    Raises:
        ValueError: nothing in the volume looks like a lung.
    """
    air = hu < AIR_BELOW_HU
    inside = np.stack([_body(tissue) for tissue in ~air]) & air
    lungs = np.zeros_like(inside)
    if inside.any():
        window = box_around(inside, 2 * CLOSING_MM, spacing_mm)
        lungs[window] = _lungs(hu[window], inside[window], spacing_mm)
    if not lungs.any():
        raise ValueError(f"no lungs in a volume of shape {hu.shape}: found no large space below {AIR_BELOW_HU} HU")
    return lungs


def within(mask: Bool[np.ndarray, "z y x"], distance_mm: float, spacing_mm: float) -> Bool[np.ndarray, "z y x"]:
    """Return the voxels of `mask` and those at most `distance_mm` from it."""
    if not mask.any():
        return mask
    near: np.ndarray = ndimage.distance_transform_edt(~mask, sampling=spacing_mm) <= distance_mm
    return near


def box_around(mask: Bool[np.ndarray, "z y x"], margin_mm: float, spacing_mm: float) -> Window:
    """Return the window of `mask`, which is not empty, widened by a margin as far as the volume reaches."""
    (box,) = ndimage.find_objects(mask.astype(np.int8))
    margin = round(margin_mm / spacing_mm)
    z, y, x = (
        slice(max(0, side.start - margin), min(size, side.stop + margin))
        for side, size in zip(box, mask.shape, strict=True)
    )
    return z, y, x


def _body(tissue: np.ndarray) -> np.ndarray:
    """Return one slice's largest piece of tissue with its holes filled (without the table)."""
    parts, count = ndimage.label(ndimage.binary_opening(tissue))
    if count == 0:
        return np.zeros_like(tissue)
    filled: np.ndarray = ndimage.binary_fill_holes(parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]))
    return filled


def _lungs(hu: np.ndarray, inside: np.ndarray, spacing_mm: float) -> np.ndarray:
    wide = inside & (ndimage.gaussian_filter(hu, 2.0 / spacing_mm) < AIRWAY_BELOW_HU)
    core = wide & ~within(~wide, AIRWAY_RADIUS_MM, spacing_mm)
    airways = within(core, AIRWAY_RADIUS_MM + AIRWAY_WALL_MM, spacing_mm)
    parts, count = ndimage.label(ndimage.binary_opening(inside & ~airways))
    if count == 0:
        return np.zeros_like(inside)
    sizes = np.bincount(parts.ravel())[1:]
    largest = np.argsort(sizes)[::-1][:2]
    lungs = np.isin(parts, 1 + largest[sizes[largest] >= SMALLEST_SHARE * sizes[largest[0]]])
    closed: np.ndarray = ~within(~within(lungs, CLOSING_MM, spacing_mm), CLOSING_MM, spacing_mm)
    closed &= ~airways
    return closed
