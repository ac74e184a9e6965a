"""What makes a prediction a hit: how close every prediction of a case lies to every object.

Each criterion is a function of one case, the rows of its objects and of its predictions, and returns a matrix in which
larger is closer; `cut` turns a threshold into the value from which a pair is a hit.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64
from scipy.ndimage import label

from girih_metrics.boxes import pairwise_iou
from girih_metrics.cases import Checked

CriterionName = Literal["box_iou", "mask_iou", "component_iou", "center_distance", "point_in_mask", "point_in_box"]
OVERLAPS = ("box_iou", "mask_iou", "component_iou")
"""The criteria with a threshold on overlap."""
Closeness = Callable[[Checked, Int64[np.ndarray, " n"], Int64[np.ndarray, " m"]], Float64[np.ndarray, "n m"]]

MISS = -np.inf
"""Closeness of a pair that no threshold accepts."""


def closeness(criterion: CriterionName, *, fixed_radius: bool) -> Closeness:
    """Return the function that measures `criterion`.

    Args:
        criterion: its name.
        fixed_radius: for "center_distance", measure in the boxes' unit instead of in radii of the object.

    Raises:
        ValueError: an unknown name.
    """
    if criterion == "center_distance":
        return _squared_distance if fixed_radius else _squared_radii
    table: dict[str, Closeness] = {
        "box_iou": _box_iou,
        "mask_iou": _mask_iou,
        "component_iou": _component_iou,
        "point_in_mask": _point_in_mask,
        "point_in_box": _point_in_box,
    }
    if criterion not in table:
        raise ValueError(f"criterion is {criterion!r}; wanted one of {['center_distance', *table]}")
    return table[criterion]


def cut(criterion: CriterionName, thresholds: Sequence[float]) -> Float64[np.ndarray, " t"]:
    """Return, for each threshold, the closeness from which a pair is a hit."""
    values = np.asarray(thresholds, dtype=np.float64)
    if criterion in OVERLAPS:
        return values
    if criterion == "center_distance":
        return -(values**2)
    return np.full(len(values), np.finfo(np.float64).min)


def _box_iou(case: Checked, preds: np.ndarray, gts: np.ndarray) -> np.ndarray:
    iou = pairwise_iou(case.pred_boxes[preds], case.gt_boxes[gts])
    iou[iou == 0] = MISS
    return iou


def _mask_iou(case: Checked, preds: np.ndarray, gts: np.ndarray) -> np.ndarray:
    if case.pred_masks is None or case.gt_masks is None:
        raise ValueError(f"case {case.case_id!r}: mask_iou needs gt_masks and pred_masks")
    value = np.full((len(preds), len(gts)), MISS)
    for i, pred in enumerate(preds):
        for j, gt in enumerate(gts):
            shared = _shared_voxels(case.pred_masks[pred], case.gt_masks[gt])
            if shared:
                joint = case.pred_masks[pred][1].sum() + case.gt_masks[gt][1].sum() - shared
                value[i, j] = shared / joint
    return value


def _component_iou(case: Checked, preds: np.ndarray, gts: np.ndarray) -> np.ndarray:
    """Voxels of a connected piece of the intersection, over those of the connected piece of the union around it."""
    if case.pred_masks is None or case.gt_masks is None:
        raise ValueError(f"case {case.case_id!r}: component_iou needs gt_masks and pred_masks")
    value = np.full((len(preds), len(gts)), MISS)
    if not value.size:
        return value
    found, real = [case.pred_masks[i] for i in preds], [case.gt_masks[j] for j in gts]
    low = np.min([start for start, _ in found + real], axis=0)
    high = np.max([start + mask.shape for start, mask in found + real], axis=0)
    pred_map = _painted(found, low, high - low, f"case {case.case_id!r}: pred_masks", preds)
    gt_map = _painted(real, low, high - low, f"case {case.case_id!r}: gt_masks", gts)
    touching = np.ones((3, 3, 3), dtype=bool)
    pieces, _ = label((pred_map > 0) & (gt_map > 0), structure=touching)
    union, _ = label((pred_map > 0) | (gt_map > 0), structure=touching)
    union_size = np.bincount(union.ravel())
    inside = np.flatnonzero(pieces)
    inside = inside[np.argsort(pieces.flat[inside], kind="stable")]
    for voxels in np.split(inside, np.flatnonzero(np.diff(pieces.flat[inside])) + 1):
        if len(voxels):
            owner = _owner(voxels, pred_map, gt_map, low)
            pair = pred_map.flat[owner] - 1, gt_map.flat[owner] - 1
            value[pair] = max(value[pair], len(voxels) / union_size[union.flat[owner]])
    return value


def _owner(voxels: np.ndarray, pred_map: np.ndarray, gt_map: np.ndarray, low: np.ndarray) -> int:
    """Return the voxel of a piece that says whose it is: the middle, else the first of the pair with most voxels."""
    places = np.stack(np.unravel_index(voxels, pred_map.shape))
    middle = np.rint(places.mean(axis=1) + low).astype(np.int64) - low  # rounds half to even, as the script's round()
    at = int(np.ravel_multi_index(tuple(middle), pred_map.shape))
    if at in voxels:
        return at
    pairs = np.stack([pred_map.flat[voxels], gt_map.flat[voxels]], axis=1)
    _, first, size = np.unique(pairs, axis=0, return_index=True, return_counts=True)
    return int(voxels[first[size == size.max()].min()])


def _painted(
    masks: Sequence[tuple[np.ndarray, np.ndarray]], low: np.ndarray, shape: np.ndarray, where: str, rows: np.ndarray
) -> np.ndarray:
    """Return a map with k + 1 where mask k is."""
    painted = np.zeros(shape, dtype=np.int64)
    for k, (start, mask) in enumerate(masks):
        window = painted[tuple(slice(a, a + n) for a, n in zip(start - low, mask.shape, strict=True))]
        taken = window[mask].max(initial=0)
        if taken:
            first, second = sorted((int(rows[taken - 1]), int(rows[k])))
            raise ValueError(
                f"{where} rows {first} and {second} overlap; component_iou wants them disjoint, a label map"
            )
        window[mask] = k + 1
    return painted


def _shared_voxels(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> int:
    low = np.maximum(a[0], b[0])
    high = np.minimum(a[0] + a[1].shape, b[0] + b[1].shape)
    if (high <= low).any():
        return 0
    in_a, in_b = (
        mask[tuple(slice(*edge) for edge in zip(low - start, high - start, strict=True))] for start, mask in (a, b)
    )
    return int(np.count_nonzero(in_a & in_b))


def _squared_distance(case: Checked, preds: np.ndarray, gts: np.ndarray) -> np.ndarray:
    offset = case.pred_points[preds][:, None, :] - case.gt_centers[gts][None, :, :]
    squared: np.ndarray = (offset**2).sum(axis=-1)
    return -squared


def _squared_radii(case: Checked, preds: np.ndarray, gts: np.ndarray) -> np.ndarray:
    squared = _squared_distance(case, preds, gts)
    radius = np.broadcast_to((case.gt_diameters[gts] / 2) ** 2, squared.shape)
    radii: np.ndarray = np.divide(squared, radius, out=np.full(squared.shape, MISS), where=radius > 0)
    return radii


def _point_in_box(case: Checked, preds: np.ndarray, gts: np.ndarray) -> np.ndarray:
    points, boxes = case.pred_points[preds][:, None, :], case.gt_boxes[gts][None]
    inside = ((points >= boxes[..., :3]) & (points < boxes[..., 3:])).all(axis=-1)
    return np.where(inside, _squared_distance(case, preds, gts), MISS)


def _point_in_mask(case: Checked, preds: np.ndarray, gts: np.ndarray) -> np.ndarray:
    if case.gt_masks is None:
        raise ValueError(f"case {case.case_id!r}: point_in_mask needs gt_masks")
    voxel = np.floor(case.pred_points[preds]).astype(np.int64)
    inside = np.zeros((len(preds), len(gts)), dtype=bool)
    for j, gt in enumerate(gts):
        start, mask = case.gt_masks[gt]
        local = voxel - start
        within = ((local >= 0) & (local < mask.shape)).all(axis=1)
        inside[within, j] = mask[tuple(local[within].T)]
    return np.where(inside, _squared_distance(case, preds, gts), MISS)
