"""Training samples: item g is the same in every process, for ever."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt16

from girih_data3d.case import Case
from girih_data3d.case_table import CaseIds, tabulate
from girih_data3d.geometry import is_flip, patch_affine
from girih_data3d.patch import Cut
from girih_data3d.patch_objects import add_boxes, add_instances, moved_boxes, visible_shares
from girih_data3d.places import Places
from girih_data3d.sampler import PatchSampler
from girih_data3d.store import Store

OPEN_CASES = 64
"""Cases whose records are kept in memory, per process."""


class PatchDataset:
    """Patches of prepared datasets; `dataset[g]` depends on nothing but g (any number from 0, not only below len).

    A sample is a dict of numpy arrays:
        image: (C, Z, Y, X) float32, or with `raw` as stored, plus scale and offset (C,) float32.
        boxes: (n, 6) float32, patch voxel edges, clipped. Where there are masks, tight around the voxels in the patch;
            but of an object that lies wholly in a patch that is at most mirrored the box of the case, which is tight
            around a real mask, and as labelled around a painted one. Without masks, the hull of the moved box or
            sphere. labels: (n,) int64, classes of the sample's own dataset.
        instances: (Z, Y, X) int32, row k of boxes has the value k + 1; only if the case has masks.
        semantic: (Z, Y, X) int16, -1 outside; only if the case has semantic labels.
        valid: (Z, Y, X) bool. False are voxels outside the case, those that were defaced, and those of real objects
            that are not in boxes: those to ignore, those of which the patch holds less than the sampler's
            `min_visible`, and, without masks, those that are there with less than a voxel along some axis. Of these it
            is the mask, except where an object in boxes lies over it, or else the box. In an unlabelled case only
            voxels outside it and those that were defaced are False: nothing is known of its objects.
        case_id, dataset: str; start: (3,) int64, first voxel of the unturned patch; affine: (4, 4) float64 of the
        patch; index, seed: int64.

    Args:
        store: a prepared dataset, or several of different names.
        sampler: says where patches lie.
        case_ids: cases to use, with several datasets by the dataset's name; default: all.
        n_per_epoch: items that count as one epoch; `len(dataset)`.
        raw: leave intensities as stored, for a smaller transfer; excludes `geometry` and `transform`.
        transform: called with the finished sample; returns the sample to use.

    Raises:
        KeyError: no such case or dataset.
        CorruptCaseError: on reading.
        ValueError: `raw` together with what it excludes, two datasets of one name, a sampler that cannot draw from
            these cases, or unlabelled cases for a sampler that looks for objects: name the others in `case_ids`
            (`store.index.annotated` tells them), or set its `object_fraction` to 0.
    """

    def __init__(
        self,
        store: Store | Sequence[Store],
        sampler: PatchSampler,
        *,
        case_ids: CaseIds | None = None,
        n_per_epoch: int,
        raw: bool = False,
        transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        if raw and (sampler.geometry is not None or transform is not None):
            raise ValueError("raw=True leaves values as stored: it excludes the sampler's geometry and a transform")
        if n_per_epoch < 1:
            raise ValueError(f"n_per_epoch is {n_per_epoch}, wanted 1 or more")
        self.stores = (store,) if isinstance(store, Store) else tuple(store)
        self.sampler = sampler
        self.n_per_epoch = n_per_epoch
        self.raw = raw
        self.transform = transform
        self.table = tabulate(self.stores, case_ids)
        self.places = Places(sampler, self.table)
        self._open: OrderedDict[int, Case] = OrderedDict()

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
        place = self.places.place(g, self._foreground)
        case, cut = self._case(place.case), Cut(place.matrix, place.centre, self.sampler.patch_zyx)
        order = 1 if self.sampler.geometry is None else self.sampler.geometry.order
        sample: dict[str, Any] = {
            "image": case.read_patch(cut.start, cut.size, raw=True) if self.raw else cut.image(case, order),
            "valid": cut.valid(case) if "valid" in case.label_kinds else cut.inside(case.shape[1:]),
            "case_id": case.case_id,
            "dataset": self.table.datasets[self.table.dataset[place.case]],
            "start": np.array(cut.start, np.int64),
            "affine": patch_affine(case.affine, cut.matrix, cut.centre, cut.size),
            "index": np.int64(g),
            "seed": np.int64(self.sampler.item_seed(g)),
        }
        if self.raw:
            sample["scale"] = np.full(len(sample["image"]), case.scale, np.float32)
            sample["offset"] = np.full(len(sample["image"]), case.offset, np.float32)
        moved = moved_boxes(case.objects, cut.matrix, cut.centre, cut.size)
        if "instances" in case.label_kinds:
            enough = np.ones(len(case.objects), bool)
            if self.sampler.min_visible > 0:
                shares = visible_shares(case.objects, moved, cut, case.read_instance_layers)
                enough = shares >= self.sampler.min_visible
            add_instances(
                sample,
                case.objects,
                moved,
                lambda window: cut.part(window).instance_layers(case),
                enough,
                turned=not is_flip(cut.matrix),
            )
        else:
            add_boxes(sample, case.objects, moved, self.sampler.min_visible)
        if "semantic" in case.label_kinds:
            sample["semantic"] = cut.semantic(case)
        return sample if self.transform is None else self.transform(sample)

    def _foreground(self, row: int) -> UInt16[np.ndarray, "n 4"]:
        return self._case(row).foreground

    def _case(self, row: int) -> Case:
        """Return a case from those kept, or open it."""
        case = self._open.pop(row, None) or self.stores[self.table.dataset[row]][self.table.case_ids[row]]
        self._open[row] = case
        while len(self._open) > OPEN_CASES:
            self._open.popitem(last=False)
        return case
