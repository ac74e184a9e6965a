"""Training samples: item g is the same in every process, for ever."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int32
from scipy import ndimage

from girih_data3d.case import Case
from girih_data3d.geometry import patch_affine
from girih_data3d.patch import cut_image, cut_inside, cut_labels, plain_start
from girih_data3d.sampler import CaseTable, PatchSampler
from girih_data3d.store import Store

OPEN_CASES = 64
"""Cases kept open per process, each with up to three files."""


class PatchDataset:
    """Patches of a prepared dataset; `dataset[g]` depends on nothing but g (any number from 0, not only below len).

    A sample is a dict of numpy arrays:
        image: (C, Z, Y, X) float32, or with `raw` as stored, plus scale and offset (C,) float32.
        boxes: (n, 6) float32, patch voxel edges, tight around the voxels that are in the patch; labels: (n,) int64.
        instances: (Z, Y, X) int32, row k of boxes has the value k + 1; only if the case has instance labels.
        semantic: (Z, Y, X) int16, -1 outside; only if the case has semantic labels.
        valid: (Z, Y, X) bool, False outside the case and on objects to ignore.
        case_id, dataset: str; start: (3,) int64, first voxel of the unturned patch; affine: (4, 4) float64 of the
        patch; index, seed: int64.

    Args:
        store: a prepared dataset.
        sampler: says where patches lie.
        case_ids: cases to use; default: all.
        n_per_epoch: items that count as one epoch; `len(dataset)`.
        raw: leave intensities as stored, for a smaller transfer; excludes `geometry` and `transform`.
        transform: called with the finished sample; returns the sample to use.

    Raises:
        KeyError: no such case.
        CorruptCaseError: on opening or reading.
        ValueError: `raw` together with what it excludes, or a sampler that cannot draw from these cases.
    """

    def __init__(
        self,
        store: Store,
        sampler: PatchSampler,
        *,
        case_ids: Sequence[str] | None = None,
        n_per_epoch: int,
        raw: bool = False,
        transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        if raw and (sampler.geometry is not None or transform is not None):
            raise ValueError("raw=True leaves values as stored: it excludes the sampler's geometry and a transform")
        if n_per_epoch < 1:
            raise ValueError(f"n_per_epoch is {n_per_epoch}, wanted 1 or more")
        self.store = store
        self.sampler = sampler
        self.n_per_epoch = n_per_epoch
        self.raw = raw
        self.transform = transform
        self.table = _tabulate(store, store.case_ids if case_ids is None else tuple(case_ids))
        sampler.check(self.table)
        self._open: OrderedDict[str, Case] = OrderedDict()

    def __len__(self) -> int:
        return self.n_per_epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[g] for g in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __getitem__(self, g: int) -> dict[str, Any]:
        """Return sample g."""
        if g < 0:
            raise IndexError(f"item {g}, wanted 0 or more")
        place, size = self.sampler.place(g, self.table), self.sampler.patch_zyx
        matrix, centre = place.matrix, place.centre
        case = self._case(self.table.case_ids[place.case])
        start = plain_start(centre, size)
        order = 1 if self.sampler.geometry is None else self.sampler.geometry.order
        if self.raw:
            image = case.read_patch(start, size, raw=True)
        else:
            image = cut_image(case, matrix, centre, size, order)
        sample: dict[str, Any] = {
            "image": image,
            "boxes": np.zeros((0, 6), np.float32),
            "labels": np.zeros(0, np.int64),
            "valid": cut_inside(case.shape[1:], matrix, centre, size),
            "case_id": case.case_id,
            "dataset": self.store.name,
            "start": np.array(start, np.int64),
            "affine": patch_affine(case.affine, matrix, centre, size),
            "index": np.int64(g),
            "seed": np.int64(self.sampler.item_seed(g)),
        }
        if self.raw:
            sample["scale"] = np.full(len(image), case.scale, np.float32)
            sample["offset"] = np.full(len(image), case.offset, np.float32)
        if "instances" in case.label_kinds:
            found = cut_labels(case, "instances", matrix, centre, size)
            needed = self.sampler.min_visible * case.voxels / abs(float(np.linalg.det(matrix)))
            sample |= _visible_objects(found, sample["valid"], case, needed)
        if "semantic" in case.label_kinds:
            sample["semantic"] = cut_labels(case, "semantic", matrix, centre, size)
        return sample if self.transform is None else self.transform(sample)

    def _case(self, case_id: str) -> Case:
        """Return a case from those kept open, or open it."""
        case = self._open.pop(case_id, None)
        if case is None:
            case = self.store[case_id]
            if len(self._open) >= OPEN_CASES:
                self._open.popitem(last=False)
        self._open[case_id] = case
        return case


def _visible_objects(
    found: Int32[np.ndarray, "z y x"],
    valid: Bool[np.ndarray, "z y x"],
    case: Case,
    needed: Float64[np.ndarray, " n"],
) -> dict[str, Any]:
    """Renumber the objects with at least one and `needed` voxels in the patch; the others become not valid."""
    instances, valid = np.zeros_like(found), valid.copy()
    rows, boxes = [], []
    for row, box in enumerate(ndimage.find_objects(found)):
        if box is None:
            continue
        inside = found[box] == row + 1
        if row < len(needed) and np.count_nonzero(inside) >= needed[row]:
            rows.append(row)
            boxes.append([s.start for s in box] + [s.stop for s in box])
            instances[box][inside] = len(rows)
        else:
            valid[box][inside] = False
    return {
        "instances": instances,
        "valid": valid,
        "boxes": np.array(boxes, np.float32).reshape(-1, 6),
        "labels": case.labels[rows],
    }


def _tabulate(store: Store, case_ids: tuple[str, ...]) -> CaseTable:
    cases = [store[case_id] for case_id in case_ids]
    return CaseTable(
        case_ids=case_ids,
        shapes=np.array([case.shape[1:] for case in cases], np.int64).reshape(-1, 3),
        spacings_mm=np.array([case.spacing_zyx_mm for case in cases], np.float64).reshape(-1, 3),
        boxes=np.concatenate([np.zeros((0, 6)), *(case.boxes.astype(np.float64) for case in cases)]),
        box_case=np.repeat(np.arange(len(cases)), [len(case.boxes) for case in cases]),
    )
