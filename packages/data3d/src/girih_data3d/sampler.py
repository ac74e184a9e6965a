"""Where training patches come from: which case, place and spatial map; a pure function of the item's number."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float64, Int64

from girih_data3d.geometry import Geometry, Triplet, is_flip
from girih_data3d.resampling import Number


@dataclass(frozen=True)
class CaseTable:
    """What the sampler needs to know of the cases, as arrays (a worker process copies them cheaply)."""

    case_ids: tuple[str, ...]
    shapes: Int64[np.ndarray, "n 3"]
    spacings_mm: Float64[np.ndarray, "n 3"]
    boxes: Float64[np.ndarray, "m 6"]
    """Of all objects of all cases."""
    box_case: Int64[np.ndarray, " m"]
    """Row of the case of each box."""


@dataclass(frozen=True)
class Placement:
    """One patch: row of its case, the map from patch to case voxels, its centre in voxel edges of the case."""

    case: int
    matrix: Float64[np.ndarray, "3 3"]
    centre: Float64[np.ndarray, "3"]


class PatchSampler:
    """Decides where each training patch lies.

    Item g is an object item if floor((g + 1) p) > floor(g p), p = `object_fraction`: it is drawn uniformly over all
    (case, object) pairs and holds the whole object where that fits, as nnDetection does. The other items go through the
    cases in random order, each once before any comes again, with a uniform place inside the case.

    Args:
        patch_zyx: voxels of a patch.
        object_fraction: share of object items, in [0, 1]; 0 for unlabelled data.
        geometry: random rotation, scaling and mirroring; None: none.
        seed: of the run.
        min_visible: objects of which a smaller share of voxels lies in the patch are not in `boxes`, and not `valid`;
            0 keeps every object with a voxel in the patch, as nnDetection does.
        case_weights: case id -> how often relative to the others (0: never), for both kinds of items; the cases that
            are not named have weight 1. With weights, cases are drawn independently.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        patch_zyx: Sequence[int],
        *,
        object_fraction: Number = 0.5,
        geometry: Geometry | None = None,
        seed: int = 0,
        min_visible: Number = 0.0,
        case_weights: Mapping[str, Number] | None = None,
    ) -> None:
        if len(patch_zyx) != 3 or min(patch_zyx) < 1:
            raise ValueError(f"patch_zyx is {patch_zyx}, wanted three positive numbers of voxels")
        for name, value in (("object_fraction", object_fraction), ("min_visible", min_visible)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, wanted 0 to 1")
        if seed < 0:
            raise ValueError(f"seed is {seed}, wanted 0 or more")
        weights = {} if case_weights is None else dict(case_weights)
        if not all(math.isfinite(w) and w >= 0 for w in weights.values()):
            raise ValueError(f"case_weights are {weights}, wanted finite numbers, 0 or more")
        self.patch_zyx: Triplet = (int(patch_zyx[0]), int(patch_zyx[1]), int(patch_zyx[2]))
        self.object_fraction = object_fraction
        self.geometry = geometry
        self.seed = seed
        self.min_visible = min_visible
        self.case_weights = None if case_weights is None else weights

    def is_object_item(self, g: int) -> bool:
        """Return whether item g is drawn around an object."""
        p = self.object_fraction
        return math.floor((g + 1) * p) > math.floor(g * p)

    def item_seed(self, g: int) -> int:
        """Return the seed of item g, a 63-bit hash of the run's seed and g."""
        return int(np.random.SeedSequence([self.seed, g]).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def place(self, g: int, table: CaseTable) -> Placement:
        """Return where item g lies."""
        rng = np.random.default_rng(np.random.SeedSequence(self.item_seed(g), spawn_key=(0,)))
        box = None
        if self.is_object_item(g):
            row = _weighted(rng, self._weights(table)[table.box_case])
            case, box = int(table.box_case[row]), table.boxes[row]
        elif self.case_weights is not None:
            case = _weighted(rng, self._weights(table))
        else:
            turn = g - math.floor(g * self.object_fraction)  # number of the items before g that are not object items
            count = len(table.case_ids)
            case = int(_permutation(self.seed, turn // count, count)[turn % count])
        spacing = (
            float(table.spacings_mm[case, 0]),
            float(table.spacings_mm[case, 1]),
            float(table.spacings_mm[case, 2]),
        )
        matrix = np.eye(3) if self.geometry is None else self.geometry.draw(rng, spacing)
        start = self._start(rng, table.shapes[case], box)
        centre: np.ndarray = start + np.array(self.patch_zyx) / 2
        if box is not None and not is_flip(matrix):
            centre = self._turned_centre(centre, box, matrix)
        return Placement(case, matrix, centre)

    def check(self, table: CaseTable) -> None:
        """Check that the sampler can draw from these cases.

        Raises:
            ValueError: no cases, no objects though `object_fraction` is above 0, an unknown case in `case_weights`, or
                all weights zero.
        """
        if not table.case_ids:
            raise ValueError("no cases to draw from")
        if self.object_fraction > 0 and not len(table.boxes):
            raise ValueError(
                f"object_fraction is {self.object_fraction}, but none of the cases has an object; wanted 0"
            )
        unknown = sorted(set(self.case_weights or {}) - set(table.case_ids))
        if unknown:
            raise ValueError(f"case_weights names {unknown[0]!r}, which is not among the {len(table.case_ids)} cases")
        weights = self._weights(table)
        if not weights.any() or (self.object_fraction > 0 and not weights[table.box_case].any()):
            raise ValueError(
                "case_weights leaves nothing to draw: every case (or every case with an object) has weight 0"
            )

    def _weights(self, table: CaseTable) -> Float64[np.ndarray, " n"]:
        if self.case_weights is None:
            return np.ones(len(table.case_ids))
        return np.array([self.case_weights.get(case_id, 1.0) for case_id in table.case_ids])

    def _start(
        self, rng: np.random.Generator, shape: Int64[np.ndarray, "3"], box: Float64[np.ndarray, "6"] | None
    ) -> Int64[np.ndarray, "3"]:
        """Draw the first voxel of an unturned patch, inside the case; centred where the case is smaller."""
        start = np.empty(3, np.int64)
        for axis, (n, patch) in enumerate(zip(shape.tolist(), self.patch_zyx, strict=True)):
            low, high = 0, n - patch
            if n <= patch:
                low = high = -((patch - n) // 2)
            elif box is not None:
                first, last = round(box[axis]), round(box[axis + 3])
                if last - first <= patch:
                    low, high = max(low, last - patch), min(high, first)
                else:  # a random centre inside the object
                    low, high = (min(max(e - patch // 2, 0), n - patch) for e in (first, last - 1))
            start[axis] = rng.integers(low, high + 1)
        return start

    def _turned_centre(
        self,
        centre: Float64[np.ndarray, "3"],
        box: Float64[np.ndarray, "6"],
        matrix: Float64[np.ndarray, "3 3"],
    ) -> Float64[np.ndarray, "3"]:
        """Move the centre as little as it takes for the turned patch to hold the whole object."""
        inverse = np.linalg.inv(matrix)
        middle = (box[:3] + box[3:]) / 2
        half = np.abs(inverse) @ ((box[3:] - box[:3]) / 2)  # of the object's hull, in the patch's frame
        slack = np.array(self.patch_zyx) / 2 - half
        limit = np.where(slack >= 0, slack, half)  # an object larger than the patch: the centre stays inside it
        place = np.clip(inverse @ (middle - centre), -limit, limit)
        moved: np.ndarray = middle - matrix @ place
        return moved


def _weighted(rng: np.random.Generator, weights: Float64[np.ndarray, " n"]) -> int:
    """Draw a row with probability proportional to its weight."""
    return int(rng.choice(len(weights), p=weights / weights.sum()))


@lru_cache(maxsize=8)
def _permutation(seed: int, turn: int, count: int) -> Int64[np.ndarray, " count"]:
    return np.random.default_rng(np.random.SeedSequence([seed, turn], spawn_key=(1,))).permutation(count)
