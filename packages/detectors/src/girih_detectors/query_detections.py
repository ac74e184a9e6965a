"""From what the queries of one image say to its detections."""

import torch
from jaxtyping import Float
from torch import Tensor

from .anchors import Triple
from .centre_boxes import centre_to_edges
from .interfaces import Detections
from .lowest import lowest
from .ops.boxes import clip, wider_than

MIN_SIDE = 0.01  # voxels, after clipping; as `PostProcessing` has it


@torch.no_grad()
def select_queries(
    logits: Float[Tensor, "q classes"],
    boxes: Float[Tensor, "q 6"],
    image_zyx: Triple,
    *,
    max_detections: int = 100,
) -> Detections:
    """Return the detections of one image.

    Sigmoid, the best pairs of query and class, voxel edges, clip, drop what has a side below 0.01 voxels; no NMS, since
    queries have learnt to differ. Equal scores rank by flat (query, class) index.

    Args:
        logits: of every query and class.
        boxes: by centre and sides in units of the image.
        image_zyx: its voxels.
        max_detections: pairs that are kept.

    Raises:
        ValueError: the network's output is not finite.
    """
    scores = torch.sigmoid(logits.float()).flatten()
    if not bool(torch.isfinite(scores).all()):
        raise ValueError(f"{int((~torch.isfinite(scores)).sum())} of {len(scores)} class scores are not finite")
    pairs = lowest(max_detections, -scores)
    edges = centre_to_edges(boxes[pairs // logits.shape[1]].float(), image_zyx)
    if not bool(torch.isfinite(edges).all()):
        raise ValueError(f"{int((~torch.isfinite(edges)).any(1).sum())} of {len(edges)} boxes are not finite")
    edges = clip(edges, image_zyx)
    wide = wider_than(edges, MIN_SIDE)
    return {"boxes": edges[wide], "scores": scores[pairs[wide]], "labels": (pairs % logits.shape[1])[wide]}
