"""Signed distance fields of what is inserted: LIDC nodules, and decoys that are no nodules.

Decoys imitate what a detector has to tell from nodules: thickened vessels and pleural plaques (Armato et al. 2011 call
them non-nodular findings).
"""

import itertools

import numpy as np
from jaxtyping import Float, Float64, Integer
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from girih.samples.backgrounds import Background
from girih.samples.blend import GAP_MM
from girih.samples.lidc import MARGIN_MM, Nodule
from girih.samples.lungs import Window

VESSEL_HU = -650.0
"""Denser than this inside the lungs counts as vessel."""
VESSEL_REACH_MM = 6.0
"""Radius of the neighbourhood whose principal axis is the vessel's direction."""
VESSEL_ANISOTROPY = 2.0
"""Least ratio of the first to the second principal variance of a vessel."""
TUBE_WIDTH_MM, TUBE_ELONGATION = (3.0, 7.0), (3.0, 4.5)
"""Diameter, and length in diameters: longer than 97 % of LIDC nodules (their boxes' 95th percentile is 2.3)."""
PLAQUE_RADIUS_MM, PLAQUE_HEIGHT_MM = (7.0, 15.0), (2.0, 4.5)
PLAQUE_ROOT_MM = 4.0
"""How far a plaque reaches into the wall, so that no dark line of half-filled voxels is left under it."""

Shape = tuple[Window, Float64[np.ndarray, "z y x"]]
"""A window of the volume and the signed distance in mm at its voxels, negative inside."""


def nodule_shape(nodule: Nodule, centre: Float[np.ndarray, "3"], turn: Rotation, background: Background) -> Shape:
    """Return a nodule turned by `turn` with its middle at the (fractional) index `centre`."""
    spacing = background.spacing_mm
    grid = nodule.signed_distance_mm
    middle = (np.array(grid.shape) - 1) / 2
    reach = np.linalg.norm(middle - MARGIN_MM) + GAP_MM
    window = _window(centre - reach / spacing, centre + reach / spacing, background)
    back = turn.inv().as_matrix() * spacing  # voxels around the centre -> mm on the nodule's own 1 mm grid
    start = np.array([side.start for side in window])
    distance = ndimage.affine_transform(
        grid.astype(np.float64),
        back,
        middle + back @ (start - centre),
        output_shape=tuple(side.stop - side.start for side in window),
        order=1,
        mode="constant",
        cval=GAP_MM + 1,
    )
    return window, distance


def vessel_starts(background: Background) -> Integer[np.ndarray, "n 3"]:
    """Return voxel indices in vessels that run freely in the lung."""
    inside = background.free & (background.depth_mm > VESSEL_REACH_MM)
    return np.argwhere(inside & (background.hu > VESSEL_HU))


def vessel_shape(start: Integer[np.ndarray, "3"], background: Background, rng: np.random.Generator) -> Shape | None:
    """Return a tube along the vessel through `start`; None where the tissue has no clear direction."""
    width_mm = rng.uniform(*TUBE_WIDTH_MM)
    length_mm = width_mm * rng.uniform(*TUBE_ELONGATION)
    first = _local_axis(start.astype(float), background)
    if first is None or first[1] < VESSEL_ANISOTROPY:
        return None
    steps = int(np.ceil((length_mm - width_mm) / 2 / background.spacing_mm))
    ahead = _follow(start.astype(float), first[0], steps, background)
    behind = _follow(start.astype(float), -first[0], steps, background)
    path = np.concatenate([behind[::-1], [start], ahead])
    path = ndimage.gaussian_filter1d(path, 1.0, axis=0, mode="nearest")
    reach = (width_mm / 2 + GAP_MM) / background.spacing_mm
    window = _window(path.min(axis=0) - reach, path.max(axis=0) + reach, background)
    fine = np.concatenate([np.linspace(a, b, 4, endpoint=False) for a, b in itertools.pairwise(path)])
    nearest, _ = cKDTree(np.concatenate([fine, path[-1:]])).query(_indices(window))
    distance = nearest * background.spacing_mm - width_mm / 2
    return window, distance.reshape([side.stop - side.start for side in window])


def pleura_starts(background: Background) -> Integer[np.ndarray, "n 3"]:
    """Return voxel indices just inside the lungs' surface."""
    return np.argwhere(background.free & (background.depth_mm <= background.spacing_mm))


def plaque_shape(start: Integer[np.ndarray, "3"], background: Background, rng: np.random.Generator) -> Shape:
    """Return a flat lens that lies on the pleura around `start`."""
    radius_mm = rng.uniform(*PLAQUE_RADIUS_MM)
    height_mm = rng.uniform(*PLAQUE_HEIGHT_MM)
    reach = (radius_mm + GAP_MM) / background.spacing_mm
    window = _window(start - reach, start + reach, background)
    depth_mm = background.depth_mm[window].astype(np.float64)
    away_mm = np.linalg.norm(_indices(window) - start, axis=1).reshape(depth_mm.shape) * background.spacing_mm
    thickness_mm = height_mm * (1 - (away_mm / radius_mm) ** 2)
    distance = np.maximum(depth_mm - thickness_mm, -depth_mm - PLAQUE_ROOT_MM)
    return window, np.maximum(distance, away_mm - radius_mm)


def _window(low: Float[np.ndarray, "3"], high: Float[np.ndarray, "3"], background: Background) -> Window:
    """Return the voxels from `low` to `high` and room for the blur along z, as far as the volume reaches."""
    room = np.array([np.ceil(2 * background.blur_z_voxels), 0, 0])
    start = np.maximum(np.floor(low - room).astype(int), 0)
    stop = np.minimum(np.ceil(high + room).astype(int) + 1, background.hu.shape)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    return z, y, x


def _indices(window: Window) -> Integer[np.ndarray, "n 3"]:
    axes = [np.arange(side.start, side.stop) for side in window]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def _local_axis(point: np.ndarray, background: Background) -> tuple[np.ndarray, float, np.ndarray] | None:
    """Return the vessel's direction around `point`, how much it stands out, and its middle; None off the lungs."""
    reach = VESSEL_REACH_MM / background.spacing_mm
    window = _window(point - reach, point + reach, background)
    index = _indices(window)
    weight = np.clip(background.hu[window] - VESSEL_HU, 0, -VESSEL_HU) * background.free[window]
    weight = weight.ravel() * (np.linalg.norm(index - point, axis=1) <= reach)
    if weight.sum() == 0:
        return None
    middle = weight @ index / weight.sum()
    centred = index - middle
    variances, axes = np.linalg.eigh((centred * weight[:, None]).T @ centred / weight.sum())
    return axes[:, 2], float(variances[2] / max(variances[1], 1e-9)), middle


def _follow(point: np.ndarray, direction: np.ndarray, steps: int, background: Background) -> np.ndarray:
    """Return the points one voxel apart along the vessel, from `point` on."""
    path = np.empty((0, 3))
    for _ in range(steps):
        found = _local_axis(point, background)
        if found is None:
            break
        axis, _, middle = found
        axis = axis if axis @ direction >= 0 else -axis
        direction = (direction + axis) / np.linalg.norm(direction + axis)
        aside = middle - point
        point = point + direction + 0.3 * (aside - (aside @ direction) * direction)
        path = np.concatenate([path, point[None]])
    return path
