"""From the raw output of one tile to its detections."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .anchors import AnchorGrid, Triple
from .coder import decode
from .interfaces import Detections
from .lowest import lowest
from .ops.backends import BACKENDS, Backend
from .ops.boxes import clip, wider_than
from .ops.nms import class_nms


@dataclass(frozen=True)
class PostProcessing:
    """What is kept of the raw output of one tile; the defaults are nnDetection's.

    Raises:
        ValueError: a number that makes no sense, or an unknown backend.
    """

    max_candidates: int = 10_000
    """Best (anchor, class) pairs that are decoded at all."""
    score_threshold: float = 0.0
    """A pair stays if its score is greater."""
    nms_iou: float = 0.6
    """Overlap above which the lower of two boxes of a class falls."""
    max_detections: int = 100
    """Boxes kept per tile."""
    min_side: float = 0.01
    """Smallest side in voxels, after clipping to the tile."""
    nms_backend: Backend = "auto"
    """As in `class_nms`: "torch" on a machine with CUDA but without a C compiler, which Triton needs."""

    def __post_init__(self) -> None:
        if self.max_candidates < 1:
            raise ValueError(f"max_candidates is {self.max_candidates}, wanted 1 or more")
        if not 0 <= self.score_threshold < 1:
            raise ValueError(f"score_threshold is {self.score_threshold}, wanted at least 0 and less than 1")
        if not 0 <= self.nms_iou <= 1:
            raise ValueError(f"nms_iou is {self.nms_iou}, wanted 0..1")
        if self.max_detections < 1:
            raise ValueError(f"max_detections is {self.max_detections}, wanted 1 or more")
        if not 0 <= self.min_side < torch.inf:
            raise ValueError(f"min_side is {self.min_side}, wanted a number of 0 or more")
        if self.nms_backend not in BACKENDS:
            raise ValueError(f"nms_backend is {self.nms_backend!r}, wanted one of {', '.join(BACKENDS)}")


@torch.no_grad()
def select_detections(
    logits: Float[Tensor, "n classes"],
    deltas: Float[Tensor, "n 6"],
    grid: AnchorGrid,
    image_zyx: Triple,
    settings: PostProcessing,
) -> Detections:
    """Return the detections of one image.

    Sigmoid, the best pairs of anchor and class, decode, clip, drop slivers, class-wise NMS. Equal scores rank by flat
    (anchor, class) index, so that the result does not depend on device or library.

    Raises:
        ValueError: the network's output is not finite.
    """
    scores = torch.sigmoid(logits.float()).flatten()
    if not bool(torch.isfinite(scores).all()):
        raise ValueError(f"{int((~torch.isfinite(scores)).sum())} of {len(scores)} class scores are not finite")
    pairs = lowest(settings.max_candidates, -scores)
    pairs = pairs[scores[pairs] > settings.score_threshold]
    anchors, labels = pairs // logits.shape[1], pairs % logits.shape[1]
    boxes = decode(deltas[anchors].float(), grid.boxes(anchors))
    if not bool(torch.isfinite(boxes).all()):
        raise ValueError(f"{int((~torch.isfinite(boxes)).any(1).sum())} of {len(boxes)} decoded boxes are not finite")
    boxes = clip(boxes, image_zyx)
    wide = wider_than(boxes, settings.min_side)
    boxes, scores, labels = boxes[wide], scores[pairs[wide]], labels[wide]
    kept = class_nms(boxes, scores, labels, settings.nms_iou, settings.max_detections, backend=settings.nms_backend)
    return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}
