"""From the boxes of tiles, mirrors and models to the boxes of a volume."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from ..interfaces import Detections
from ..ops.boxes import clip, wider_than
from ..ops.nms import class_nms


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


NO_CANDIDATES = Candidates(
    boxes=torch.zeros(0, 6), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64), weights=torch.zeros(0)
)


@dataclass(frozen=True)
class Merging:
    """How the boxes of tiles and mirrors become the boxes of the volume; nnDetection's state before its sweep."""

    pool: int = 1000
    """Best boxes kept per mirror while tiles come in."""
    score_threshold: float = 0.0
    """A box stays if its score is greater."""
    tile_iou: float = 0.1
    """Overlap above which boxes of different tiles are one; the box nearer to the middle of its tile is favoured."""
    mirror_iou: float = 0.5
    """Overlap above which boxes of different mirrors are one; the higher score stays."""
    min_side: float = 0.01
    """Smallest side in voxels, after clipping to the volume."""
    max_detections: int = 100
    """Boxes kept per volume."""


MERGING = Merging()


def merge(candidates: Sequence[Candidates], shape_zyx: tuple[int, int, int], merging: Merging = MERGING) -> Detections:
    """Return the detections of a volume, as numpy, from the candidates of every model and mirroring."""
    merged = []
    for pool in candidates:
        pool = Candidates(
            boxes=clip(pool["boxes"], shape_zyx),
            scores=pool["scores"],
            labels=pool["labels"],
            weights=pool["weights"],
        )
        pool = take(pool, wider_than(pool["boxes"], merging.min_side) & (pool["scores"] > merging.score_threshold))
        rank = pool["scores"] * pool["weights"]
        kept = class_nms(pool["boxes"], rank, pool["labels"], merging.tile_iou, merging.max_detections)
        merged.append(take(pool, kept))
    final = join(merged)
    kept = class_nms(final["boxes"], final["scores"], final["labels"], merging.mirror_iou, merging.max_detections)
    final = take(final, kept)
    return {"boxes": final["boxes"].numpy(), "scores": final["scores"].numpy(), "labels": final["labels"].numpy()}


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
