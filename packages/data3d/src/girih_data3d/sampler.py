"""How training patches are drawn: around objects or anywhere, how often which case, turned how."""

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import numpy as np

from girih_data3d.geometry import Geometry, Triplet
from girih_data3d.resampling import Number


@dataclass(frozen=True)
class PatchSampler:
    """Decides where each training patch lies; item g is a function of `seed` and g alone.

    Item g is an object item if floor((g + 1) p) > floor(g p), p = `object_fraction`: it is drawn uniformly over all
    (case, object) pairs and holds the whole object where that fits, as nnDetection does. The other items go through the
    cases in random order, each once before any comes again, with a uniform place inside the case.

    Raises:
        ValueError: a value out of range, or `class_balanced` where no objects are drawn.
    """

    patch_zyx: Triplet
    """Voxels of a patch."""
    _: KW_ONLY
    object_fraction: Number = 0.5
    """Share of object items, in [0, 1]; 0 for unlabelled data. Above 0, with `around="objects"`, every case must say
    which objects it holds, even if none: `PatchDataset` refuses unlabelled cases."""
    around: Literal["objects", "semantic"] = "objects"
    """What object items are placed around. "semantic": a case with tissue labels is drawn, a tissue of it, a voxel of
    the tissue, and the patch is centred there as far as it stays inside the case, as nnU-Net does."""
    class_balanced: bool = False
    """Draw the class of an object first, uniformly, then an object of it (nnDetection's "balanced" loader). Classes of
    different datasets are different classes."""
    geometry: Geometry | None = None
    """Random rotation, scaling and mirroring; None: none."""
    min_visible: Number = 0.0
    """Objects of which a smaller share lies in the patch are not in `boxes`, and not `valid`; 0 keeps every object with
    a voxel in the patch, as nnDetection does. It is the share of the mask's voxels in the prepared case, however the
    patch is turned and scaled, or without masks that of the moved box's volume."""
    dataset_weights: Mapping[str, Number] | None = None
    """Name of each dataset -> how often it is drawn relative to the others, among both kinds of items; its cases, or
    its objects, share that evenly. With weights, cases are drawn independently of each other."""
    case_weights: Mapping[str, Number] | None = None
    """Case id -> how often it is drawn relative to the other cases of its dataset (0: never), for both kinds of items;
    1 for those not named."""
    seed: int = 0
    """Of the run."""

    def __post_init__(self) -> None:
        if len(self.patch_zyx) != 3 or min(self.patch_zyx) < 1:
            raise ValueError(f"patch_zyx is {self.patch_zyx}, wanted three positive numbers of voxels")
        z, y, x = (int(n) for n in self.patch_zyx)
        object.__setattr__(self, "patch_zyx", (z, y, x))
        for name in ("object_fraction", "min_visible"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted 0 to 1")
        if self.around not in ("objects", "semantic"):
            raise ValueError(f"around is {self.around!r}, wanted 'objects' or 'semantic'")
        if self.class_balanced and (self.around != "objects" or self.object_fraction == 0):
            found = f"around={self.around!r}, object_fraction={self.object_fraction}"
            raise ValueError(f"class_balanced is about items drawn around objects, found {found}")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, wanted 0 or more")
        for name in ("dataset_weights", "case_weights"):
            weights = getattr(self, name)
            if weights is not None and not all(math.isfinite(w) and w >= 0 for w in weights.values()):
                raise ValueError(f"{name} are {dict(weights)}, wanted finite numbers, 0 or more")

    def is_object_item(self, g: int) -> bool:
        """Return whether item g is drawn around an object."""
        return self.object_items(g + 1) > self.object_items(g)

    def object_items(self, g: int) -> int:
        """Return how many of the items before g are object items."""
        return math.floor(g * self.object_fraction)

    def item_seed(self, g: int) -> int:
        """Return the seed of item g, a 63-bit hash of the run's seed and g."""
        return int(np.random.SeedSequence([self.seed, g]).generate_state(1, np.uint64)[0] >> np.uint64(1))
