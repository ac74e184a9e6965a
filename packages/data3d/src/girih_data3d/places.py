"""Where training patches come from: which case, place and spatial map; a pure function of the item's number."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float64, Int64, Integer, Real

from girih_data3d.case_table import CaseTable
from girih_data3d.geometry import is_flip
from girih_data3d.sampler import PatchSampler

Foreground = Callable[[int], Integer[np.ndarray, "n 4"]]
"""Row of a case -> its table of labelled voxels: class, z, y, x."""


@dataclass(frozen=True)
class Placement:
    """One patch: row of its case, the map from patch to case voxels, its centre in voxel edges of the case."""

    case: int
    matrix: Float64[np.ndarray, "3 3"]
    centre: Float64[np.ndarray, "3"]


class Places:
    """The places of all items of a sampler in a table of cases; an item costs the same however many cases there are.

    Raises:
        ValueError: no cases, nothing to draw object items from, unlabelled cases among those to find objects in,
            weights that name unknown or ambiguous cases or other datasets, or weights that leave nothing to draw.
    """

    def __init__(self, sampler: PatchSampler, table: CaseTable) -> None:
        if not table.case_ids:
            raise ValueError("no cases to draw from")
        self.sampler, self.table = sampler, table
        weights = _case_weights(sampler, table)
        self._cases: _Urn | None = None
        if sampler.dataset_weights is not None or sampler.case_weights is not None:
            self._cases = _Urn(_share_out(weights, table.dataset, sampler, table), "case")
        self._objects: _Urn | None = None
        if sampler.object_fraction > 0 and sampler.around == "semantic":
            if not table.semantic.any():
                raise ValueError("around='semantic', but none of the cases has semantic labels")
            self._objects = _Urn(_share_out(weights * table.semantic, table.dataset, sampler, table), "labelled case")
        elif sampler.object_fraction > 0:
            if not len(table.boxes):
                raise ValueError(
                    f"object_fraction is {sampler.object_fraction}, but none of the cases has an object; wanted 0"
                )
            _refuse_unlabelled(table)
            dataset, weights = table.dataset[table.box_case], weights[table.box_case]
            if sampler.class_balanced:
                weights = _even(weights, dataset * (table.labels.max() + 1) + table.labels)
            self._objects = _Urn(_share_out(weights, dataset, sampler, table), "object")

    def place(self, g: int, foreground: Foreground) -> Placement:
        """Return where item g lies; `foreground` is asked with `around="semantic"` only."""
        sampler, table = self.sampler, self.table
        rng = np.random.default_rng(np.random.SeedSequence(sampler.item_seed(g), spawn_key=(0,)))
        box = None
        if self._objects is not None and sampler.is_object_item(g):
            row = self._objects.draw(rng)
            if sampler.around == "semantic":
                case, voxel = row, _tissue_voxel(rng, foreground(row))
                if voxel is not None:
                    box = np.concatenate([voxel, voxel + 1])
            else:
                case, box = int(table.box_case[row]), table.boxes[row].astype(np.float64)
        elif self._cases is not None:
            case = self._cases.draw(rng)
        else:
            turn = g - sampler.object_items(g)
            count = len(table.case_ids)
            case = int(_permutation(sampler.seed, turn // count, count)[turn % count])
        z, y, x = table.spacings_mm[case].tolist()
        matrix = np.eye(3) if sampler.geometry is None else sampler.geometry.draw(rng, (z, y, x))
        centred = box is not None and sampler.around == "semantic"
        start = self._start(rng, table.shapes[case], box, centred=centred)
        centre: np.ndarray = start + np.array(sampler.patch_zyx) / 2
        if box is not None and not is_flip(matrix):
            centre = self._turned_centre(centre, box, matrix)
        return Placement(case, matrix, centre)

    def _start(
        self,
        rng: np.random.Generator,
        shape: Int64[np.ndarray, "3"],
        box: Float64[np.ndarray, "6"] | None,
        *,
        centred: bool,
    ) -> Int64[np.ndarray, "3"]:
        """Draw the first voxel of an unturned patch, inside the case; centred where the case is smaller."""
        start = np.empty(3, np.int64)
        for axis, (n, patch) in enumerate(zip(shape.tolist(), self.sampler.patch_zyx, strict=True)):
            low, high = 0, n - patch
            if n <= patch:
                low = high = -((patch - n) // 2)
            elif box is not None:
                first, last = int(np.floor(box[axis])), int(np.ceil(box[axis + 3]))
                if last - first <= patch and not centred:
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
        slack = np.array(self.sampler.patch_zyx) / 2 - half
        limit = np.where(slack >= 0, slack, half)  # an object larger than the patch: the centre stays inside it
        place = np.clip(inverse @ (middle - centre), -limit, limit)
        moved: np.ndarray = middle - matrix @ place
        return moved


class _Urn:
    """Rows to draw, each in proportion to its weight."""

    def __init__(self, weights: Float64[np.ndarray, " n"], name: str) -> None:
        self.rows = np.flatnonzero(weights)
        if not len(self.rows):
            raise ValueError(f"the weights leave nothing to draw: every {name} has weight 0")
        self.cumulative = np.cumsum(weights[self.rows])

    def draw(self, rng: np.random.Generator) -> int:
        at = np.searchsorted(self.cumulative, rng.random() * self.cumulative[-1], side="right")
        return int(self.rows[min(int(at), len(self.rows) - 1)])


def _refuse_unlabelled(table: CaseTable) -> None:
    """Raise for a case that nobody looked at: its patches, without boxes, would pass for free of objects."""
    if not table.annotated.all():
        rows = np.flatnonzero(~table.annotated)
        first = int(rows[0])
        raise ValueError(
            f"dataset {table.datasets[table.dataset[first]]!r}: case {table.case_ids[first]!r} is unlabelled "
            f"({len(rows)} of all {len(table.annotated)} cases are), so that its patches would pass for free of "
            "objects; leave such cases out of case_ids (store.index.annotated), or set object_fraction=0"
        )


def _case_weights(sampler: PatchSampler, table: CaseTable) -> Float64[np.ndarray, " n"]:
    weights = np.ones(len(table.case_ids))
    if sampler.case_weights is None:
        return weights
    found: dict[str, int] = {}
    for row, case_id in enumerate(table.case_ids):
        if case_id in sampler.case_weights:
            if case_id in found:
                raise ValueError(f"case_weights names {case_id!r}, which several datasets have")
            found[case_id] = row
            weights[row] = sampler.case_weights[case_id]
    if unknown := sorted(set(sampler.case_weights) - set(found)):
        raise ValueError(f"case_weights names {unknown[0]!r}, which is not among the {len(weights)} cases")
    return weights


def _share_out(
    weights: Float64[np.ndarray, " n"], dataset: Int64[np.ndarray, " n"], sampler: PatchSampler, table: CaseTable
) -> Float64[np.ndarray, " n"]:
    """Give every dataset its weight, which its rows share."""
    if sampler.dataset_weights is None:
        return weights
    if set(sampler.dataset_weights) != set(table.datasets):
        found = sorted(sampler.dataset_weights)
        raise ValueError(f"dataset_weights names {found}, wanted each of {sorted(table.datasets)}")
    wanted = np.array([sampler.dataset_weights[name] for name in table.datasets], np.float64)
    shared: np.ndarray = _even(weights, dataset) * wanted[dataset]
    return shared


def _even(weights: Float64[np.ndarray, " n"], group: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Scale weights so that those of every group sum to one; a group of zeros stays."""
    total = np.bincount(group, weights)
    even: np.ndarray = weights / np.where(total > 0, total, 1)[group]
    return even


def _tissue_voxel(rng: np.random.Generator, table: Integer[np.ndarray, "n 4"]) -> Real[np.ndarray, "3"] | None:
    """Draw a class of a foreground table, then one of its voxels; None if the case holds no tissue."""
    classes = np.unique(table[:, 0])
    if not len(classes):
        return None
    rows = table[table[:, 0] == rng.choice(classes)]
    voxel: np.ndarray = rows[rng.integers(len(rows)), 1:].astype(np.float64)
    return voxel


@lru_cache(maxsize=8)
def _permutation(seed: int, turn: int, count: int) -> Int64[np.ndarray, " count"]:
    return np.random.default_rng(np.random.SeedSequence([seed, turn], spawn_key=(1,))).permutation(count)
