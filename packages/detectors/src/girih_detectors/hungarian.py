"""Which query answers for which object: the matching of least total cost (Carion et al. 2020, "DETR", section 3.1).

Costs are of all layers at once: `q` counts the queries of one layer after the other's.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from .centre_boxes import centre_to_edges
from .ops import giou
from .uncompiled import uncompiled

TINY_PROBABILITY = 1e-8  # Deformable DETR: keeps the logarithms of the cost finite


@torch.no_grad()
def matching_costs(
    logits: Float[Tensor, "b q classes"],
    boxes: Float[Tensor, "b q 6"],
    objects: Float[Tensor, "b n 6"],
    labels: Int64[Tensor, "b n"],
    *,
    classification: float,
    l1: float,
    giou_weight: float,
    gamma: float,
    alpha: float,
) -> Float[Tensor, "b n q"]:
    """Return what it costs to let each query answer for each object, float32 (Zhu et al. 2021, appendix A.4).

    classification * (focal loss of the object's class as a positive - as a negative) + l1 * |box - object|
    - giou_weight * GIoU. Boxes and objects are (z, y, x, dz, dy, dx), centre and sides in units of the patch. A query
    of which any logit, of whatever class, or any number of its box is not finite costs NaN for all objects.
    """
    boxes, objects = boxes.float(), objects.float()
    p = logits.float().sigmoid()
    positive = alpha * (1 - p) ** gamma * -torch.log(p + TINY_PROBABILITY)
    negative = (1 - alpha) * p**gamma * -torch.log(1 - p + TINY_PROBABILITY)
    # (b, q, classes) -> (b, n, q): row j is the class of object j
    focal = (positive - negative).mT.gather(1, labels[:, :, None].expand(-1, -1, boxes.shape[1]))
    costs = classification * focal + l1 * torch.cdist(objects, boxes, p=1)
    costs -= giou_weight * giou(centre_to_edges(objects)[:, :, None], centre_to_edges(boxes)[:, None])
    finite = logits.isfinite().all(-1) & boxes.isfinite().all(-1)
    return costs.masked_fill_(~finite[:, None], torch.nan)


@uncompiled  # scipy's part cannot be traced
@torch.no_grad()
def match_hungarian(
    costs: Float[Tensor, "b n q"],
    objects: Sequence[int],
    queries: Sequence[int],
    usable: Bool[Tensor, "b q"] | None = None,
    names: Sequence[str] | None = None,
) -> Int64[Tensor, "3 p"]:
    """Return (image, query, object) of each pair, on the host: by layer, then image, then object.

    In every layer of every image the pairs have the least total cost; each object has a query of its own, each query
    one object at most. If there are more objects than queries, those objects go without that cost the most in total.
    However many layers and images there are, one copy goes to the host.

    Args:
        costs: compared in float32; rows of an image from its number of objects on are padding.
        objects: of each image.
        queries: of each layer; they add up to q.
        usable: False where a query takes no part, whatever it costs.
        names: of the images, for the error.

    Raises:
        ValueError: a cost is NaN or infinite; the message names the image and the layer.
    """
    most = costs.shape[1]
    if most == 0:
        return torch.empty(3, 0, dtype=torch.int64)
    costs = costs.float()
    broken = ~costs.isfinite().all(1)
    if usable is not None:
        broken &= usable
        costs = costs.masked_fill(~usable[:, None], torch.inf)
    # There is a matching of least cost in which each of n objects has one of its n cheapest queries: the n - 1 others
    # cannot have taken them all, and to change to a free one costs no more. So n x n costs tell what n x 37,440 would.
    # Of queries that tie for the last place any will do: the total is the same.
    values, rows = [], []
    for layer, start in zip(torch.split(costs, list(queries), dim=2), _starts(queries), strict=True):
        cheapest = layer.topk(min(most, layer.shape[2]), dim=2, largest=False)
        values.append(cheapest.values)
        rows.append(cheapest.indices + start)
    faults = torch.stack([layer.any(1) for layer in torch.split(broken, list(queries), dim=1)], dim=1)
    fault, cost, row = _to_host(faults, torch.cat(values, dim=2), torch.cat(rows, dim=2))
    if fault.any():
        image, layer_number = (int(number) for number in np.argwhere(fault)[0])
        name = f"image {image}" if names is None else names[image]
        raise ValueError(
            f"{name}, layer {layer_number}: a matching cost is NaN or infinite: the network's logits or boxes are "
            "not finite"
        )
    pairs = [np.empty((3, 0), np.int64)]
    widths = [layer.shape[2] for layer in values]
    for layer_costs, layer_rows in zip(_split(cost, widths), _split(row, widths), strict=True):
        for image, n in enumerate(objects):
            query, chosen = _assign(layer_costs[image, :n, :n], layer_rows[image, :n, :n])
            pairs.append(np.stack([np.full_like(query, image), query, chosen]))
    return torch.from_numpy(np.concatenate(pairs, axis=1))


def _assign(costs: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solve for the objects of one image, of which each has the queries `rows` (n, k) at `costs` (n, k)."""
    from scipy.optimize import linear_sum_assignment  # 0.3 s to import, and only training needs it

    queries, column = np.unique(rows, return_inverse=True)
    matrix = np.full((len(rows), len(queries)), np.inf)
    np.put_along_axis(matrix, column.reshape(rows.shape), costs, axis=1)
    usable = np.isfinite(matrix).any(0)  # a column that is forbidden to all is infeasible to scipy
    chosen, picked = linear_sum_assignment(matrix[:, usable])
    return queries[usable][picked].astype(np.int64), chosen


def _to_host(faults: Tensor, costs: Tensor, rows: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Copy all of them at once: bool, float32 and integers below 2^31."""
    parts = (faults.int(), costs.contiguous().view(torch.int32), rows.int())
    packed = torch.cat([part.flatten() for part in parts]).numpy(force=True)
    fault, cost, row = np.split(packed, np.cumsum([part.numel() for part in parts[:2]]))
    return (
        fault.reshape(faults.shape).astype(bool),
        cost.view(np.float32).reshape(costs.shape),
        row.reshape(rows.shape),
    )


def _starts(lengths: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(lengths)[:-1].tolist()]


def _split(x: np.ndarray, widths: Sequence[int]) -> list[np.ndarray]:
    return np.split(x, np.cumsum(widths)[:-1], axis=2)
