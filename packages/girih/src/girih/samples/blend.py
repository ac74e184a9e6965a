"""One operator puts every object into a CT, nodule or decoy: how it was blended tells nothing about what it is."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from scipy import ndimage

from girih.samples.backgrounds import Background
from girih.samples.lidc import Nodule
from girih.samples.lungs import AIR_BELOW_HU, Window

TEXTURE_RATING, TEXTURE_HU = (1.0, 3.0, 5.0), (-550.0, -250.0, 30.0)
"""Mean attenuation of ground-glass, part-solid and solid nodules by LIDC texture rating."""
TEXTURE_SPREAD_HU = 40.0
MARGIN_RATING, MARGIN_SOFT_MM = (1.0, 5.0), (2.0, 0.5)
"""Half-width of the edge, from poorly defined to sharp, by LIDC margin rating."""
NOISE_HU, NOISE_SIGMA_VOXELS = 25.0, 0.7
"""Texture inside an object: Gaussian noise, smoothed to the grain of the resampled scan."""
IN_LUNG, VISIBLE_HU = 0.95, 200.0
"""An object lies with this share of its core in free lung, and raises its attenuation by this much on average."""
NODULE_IN_AIR, DECOY_IN_AIR = 0.7, 0.3
"""Least share of the core where there was air: nodules touch vessels, but are not inside them nor in the hilum."""
GAP_MM = 4.0
"""Between the surfaces of two objects."""


@dataclass(frozen=True)
class Look:
    """What an object is made of: its mean attenuation and the half-width of its edge."""

    hu: float
    soft_mm: float


@dataclass(eq=False)
class Scene:
    """A CT in the making: `hu` and `instances` are changed by `insert`, `free` shrinks."""

    background: Background
    hu: Float32[np.ndarray, "z y x"]
    instances: UInt8[np.ndarray, "z y x"]
    free: Bool[np.ndarray, "z y x"]


def empty_scene(background: Background) -> Scene:
    """Return the CT as it is, with nothing inserted."""
    return Scene(background, background.hu.copy(), np.zeros(background.hu.shape, np.uint8), background.free.copy())


def draw_look(nodule: Nodule, spacing_mm: float, rng: np.random.Generator) -> Look:
    """Draw attenuation and edge from a nodule's texture and margin ratings.

    An edge is never sharper than a voxel, as a scanner's is not.
    """
    hu = np.interp(nodule.texture, TEXTURE_RATING, TEXTURE_HU) + rng.normal(0, TEXTURE_SPREAD_HU)
    soft_mm = np.interp(nodule.margin, MARGIN_RATING, MARGIN_SOFT_MM)
    return Look(float(hu), max(float(soft_mm), spacing_mm / 2))


def fits(scene: Scene, window: Window, distance_mm: Float[np.ndarray, "z y x"], look: Look, *, in_air: float) -> bool:
    """Return whether the object's core is in free lung, a share `in_air` of it in air, and would be seen there."""
    core = distance_mm < 0
    if not core.any() or scene.free[window][core].mean() < IN_LUNG:
        return False
    if (scene.background.hu[window][core] < AIR_BELOW_HU).mean() < in_air:
        return False
    raised = _opacity(distance_mm, look, scene) * np.maximum(look.hu - scene.hu[window], 0)
    return bool(raised[core].mean() >= VISIBLE_HU)


def insert(
    scene: Scene,
    window: Window,
    distance_mm: Float[np.ndarray, "z y x"],
    look: Look,
    *,
    label: int,
    rng: np.random.Generator,
) -> None:
    """Blend an object into the scene.

    Opacity falls from 1 to 0 across the edge, clip(0.5 - distance / (2 soft), 0, 1), and is blurred along z as the
    scan's thick slices blur. Attenuation is only ever raised: vessels stay visible in ground glass and no wall is
    carved. The label covers the voxels of opacity above 0.5 before the blur.

    Args:
        scene: changed in place.
        window: the voxels that `distance_mm` covers.
        distance_mm: signed distance to the object's surface, negative inside.
        look: attenuation and edge.
        label: number in `scene.instances`; 0 leaves the object unlabelled.
        rng: for the texture.
    """
    opacity = _opacity(distance_mm, look, scene)
    grain = np.hypot([scene.background.blur_z_voxels, 0, 0], NOISE_SIGMA_VOXELS)
    noise = ndimage.gaussian_filter(rng.standard_normal(opacity.shape), grain)
    texture = look.hu + NOISE_HU / noise.std() * noise
    under = scene.hu[window]
    scene.hu[window] = under + (opacity * np.maximum(texture - under, 0)).astype(np.float32)
    if label:
        scene.instances[window][distance_mm < 0] = label
    scene.free[window] &= distance_mm > GAP_MM


def _opacity(distance_mm: np.ndarray, look: Look, scene: Scene) -> np.ndarray:
    opacity = np.clip(0.5 - distance_mm / (2 * look.soft_mm), 0, 1)
    blur = scene.background.blur_z_voxels
    blurred: np.ndarray = ndimage.gaussian_filter1d(opacity, blur, axis=0, mode="constant") if blur > 0 else opacity
    return blurred
