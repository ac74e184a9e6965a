"""From the boxes of tiles, mirrors and models to the boxes of a volume."""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

import torch
from torch import Tensor

from ..interfaces import Detections
from ..ops.boxes import clip, wider_than
from ..ops.clustering import check_weighted, weighted_box_clustering
from ..ops.nms import class_nms, weighted_nms

TileNms = Literal["weighted", "plain"]
LARGEST = 2**31 - 1
"""Of the numbers in `Merging`; an index or a side of a volume is never greater."""


class Candidates(TypedDict):
    """Boxes of one model in one mirroring, from all tiles, on the CPU: raw, so that they can be merged again."""

    boxes: Tensor
    """(n, 6) float32, voxel edges of the volume, not clipped to it."""
    scores: Tensor
    """(n,) float32, descending."""
    labels: Tensor
    """(n,) int64."""
    weights: Tensor
    """(n,) float32, `centre_weight` of the place in the tile."""


def no_candidates() -> Candidates:
    """Return an empty set."""
    return Candidates(
        boxes=torch.zeros(0, 6), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64), weights=torch.zeros(0)
    )


@dataclass(frozen=True)
class Merging:
    """How the boxes of tiles, mirrors and models become the boxes of the volume.

    The defaults are nnDetection's before its sweep. `dataclasses.asdict` makes JSON of it, `Merging(**json)` takes it.
    How many boxes an object should get is no setting: it is the number of sets, one per model and mirroring. So what
    suits the 8 mirrorings of one model holds for the 40 sets of five.

    Raises:
        ValueError: a value of another kind or out of its range.
    """

    pool: int = 1000
    """Best boxes that are considered per model and mirroring, over its tiles."""
    tile_nms: TileNms = "weighted"
    """What decides between the boxes of different tiles: the score times the weight of the place in the tile, after
    which all boxes weigh the same, or the plain score; then the weights count when models and mirrors are merged."""
    tile_iou: float = 0.1
    """Overlap above which boxes of different tiles are one."""
    score_threshold: float = 0.0
    """A box of a tile is considered if its score is greater."""
    min_side: float = 0.01
    """Smallest side in voxels, after clipping to the volume, where what lies outside becomes flat."""
    ensemble_iou: float = 0.5
    """Overlap above which boxes of different models and mirrors are one."""
    ensemble_score_threshold: float = 0.0
    """A box of the volume stays if its score is greater."""
    max_detections: int = 100
    """Boxes kept per model and mirroring, and per volume."""

    def __post_init__(self) -> None:
        for name in ("pool", "max_detections"):
            value = getattr(self, name)
            if not _is_number(value) or isinstance(value, float) or not 1 <= value <= LARGEST:
                raise ValueError(f"{name} is {_short(value)}, wanted an integer of 1 or more, at most {LARGEST}")
        for name in ("tile_iou", "ensemble_iou"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value <= 1:
                raise ValueError(f"{name} is {_short(value)}, wanted a number in 0..1")
        for name in ("score_threshold", "ensemble_score_threshold"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value < 1:
                raise ValueError(f"{name} is {_short(value)}, wanted a number of at least 0 and less than 1")
        if not _is_number(self.min_side) or not 0 < self.min_side <= LARGEST:
            raise ValueError(f"min_side is {_short(self.min_side)}, wanted a number greater than 0, at most {LARGEST}")
        if self.tile_nms not in get_args(TileNms):
            raise ValueError(f"tile_nms is {_short(self.tile_nms)}, wanted one of {', '.join(get_args(TileNms))}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: object) -> str:
    return reprlib.repr(value)


MERGING = Merging()


def merge(candidates: Sequence[Candidates], shape_zyx: tuple[int, int, int], merging: Merging = MERGING) -> Detections:
    """Return the detections of a volume, as numpy, from the candidates of every model and mirroring.

    An object is expected in each of them. One set alone keeps its boxes to the bit, unless `ensemble_iou` is less than
    `tile_iou`, which clusters what the tiles left apart.

    Raises:
        ValueError: no candidates at all: wanted one set, maybe an empty one, per model and mirroring; a set that is not
            as `Candidates` says, named with its row; another number of sides than three.
    """
    if len(shape_zyx) != 3:
        raise ValueError(f"shape_zyx is {tuple(shape_zyx)}, wanted the voxels along (z, y, x)")
    check_sets(candidates)
    return merge_sets([merge_tiles(one, shape_zyx, merging) for one in candidates], merging)


def check_sets(sets: Sequence[Candidates]) -> None:
    """Check the candidates of a volume.

    Raises:
        ValueError: none at all, or columns of other shapes or kinds, or a row with a number that is not finite, a
            negative side, a negative score or a weight that is not greater than 0; set and row are named.
    """
    if not sets:
        raise ValueError("no candidates to merge, wanted one set, maybe an empty one, per model and mirroring")
    for n, one in enumerate(sets):
        try:
            check_weighted(**one)
        except ValueError as error:
            raise ValueError(f"set {n + 1} of {len(sets)}, {error}") from error


def merge_tiles(candidates: Candidates, shape_zyx: tuple[int, int, int], merging: Merging) -> Candidates:
    """Return what one model in one mirroring found in the volume; `weights` are those for `merge_sets`."""
    pool = best(candidates, merging.pool)
    pool["boxes"] = clip(pool["boxes"], shape_zyx)
    pool = take(pool, wider_than(pool["boxes"], merging.min_side) & (pool["scores"] > merging.score_threshold))
    boxes, scores, labels, weights = pool["boxes"], pool["scores"], pool["labels"], pool["weights"]
    if merging.tile_nms == "plain":
        return take(pool, class_nms(boxes, scores, labels, merging.tile_iou, merging.max_detections))
    pool["weights"] = torch.ones_like(weights)
    return take(pool, weighted_nms(boxes, scores, labels, weights, merging.tile_iou, merging.max_detections))


def merge_sets(sets: Sequence[Candidates], merging: Merging) -> Detections:
    """Return the detections, as numpy, that the models and mirrorings agree on; each is one of `merge_tiles`.

    All of them take part. nnDetection 0.1 goes on with the best 1000: enough for the 8 sets of 100 of one model, but of
    40 it would drop boxes that everybody saw, and with them, as `expected` counts the sets, what all agree on.
    """
    pool = join(sets)
    found = weighted_box_clustering(
        pool["boxes"],
        pool["scores"],
        pool["labels"],
        pool["weights"],
        merging.ensemble_iou,
        expected=len(sets),
        score_threshold=merging.ensemble_score_threshold,
    )
    boxes, scores, labels = (part[: merging.max_detections].numpy() for part in found)
    return {"boxes": boxes, "scores": scores, "labels": labels}


def join(pools: Sequence[Candidates]) -> Candidates:
    """Return all candidates of several pools in one."""
    return Candidates(
        boxes=torch.cat([pool["boxes"] for pool in pools]),
        scores=torch.cat([pool["scores"] for pool in pools]),
        labels=torch.cat([pool["labels"] for pool in pools]),
        weights=torch.cat([pool["weights"] for pool in pools]),
    )


def best(pool: Candidates, n: int) -> Candidates:
    """Return the n highest scores; ties keep the order of arrival, so cutting batch by batch equals cutting once."""
    return take(pool, pool["scores"].argsort(descending=True, stable=True)[:n])


def take(pool: Candidates, index: Tensor) -> Candidates:
    """Return the candidates that an index or a mask selects."""
    return Candidates(
        boxes=pool["boxes"][index],
        scores=pool["scores"][index],
        labels=pool["labels"][index],
        weights=pool["weights"][index],
    )
