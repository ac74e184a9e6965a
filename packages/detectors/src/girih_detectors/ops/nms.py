"""Class-wise greedy non-maximum suppression of 3D boxes: plain torch on any device, Triton on CUDA, one answer.

Both decide by the same float32 numbers, IoU = shared / max(volume_a + volume_b - shared, TINY) with every step rounded
to nearest, as `boxes.iou` does. So the kept boxes agree to the bit, whatever the backend, the device or the block size.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, Integer
from torch import Tensor

from .backends import Backend, check_backend, triton_module
from .boxes import TINY, volume

BLOCK = 128  # boxes resolved at once; larger blocks waste comparisons, smaller ones wait for Python
COLUMNS = 1024  # compared with a block at once on the CPU: three float32 arrays of 128 x 1024 stay in its cache


@torch.no_grad()
def class_nms(
    boxes: Float[Tensor, "n 6"],
    scores: Float[Tensor, " n"],
    labels: Integer[Tensor, " n"],
    iou_threshold: float,
    max_keep: int | None = None,
    *,
    backend: Backend = "auto",
) -> Int64[Tensor, " kept"]:
    """Return the indices of the boxes that stay, by descending score; ties by index.

    A box falls if a box of its class that stays and stands before it overlaps it by IoU > `iou_threshold`. Classes are
    compared by label (no shifting of coordinates, which costs digits). Boxes without volume and boxes with a NaN
    suppress nothing and stay. The IoU is a float32 one, for boxes of any type.

    Args:
        boxes: in any unit, no negative side.
        scores: what ranks the boxes; any number, NaN ranks as -infinity.
        labels: class of each box.
        iou_threshold: in [0, 1].
        max_keep: stop after this many; they are the first of the full answer.
        backend: "auto" is "triton" for CUDA tensors and "torch" for others; where Triton cannot be imported it is
            "torch" with a warning, once. "triton" never falls back; it runs on the CPU only if TRITON_INTERPRET=1 was
            set before triton was imported. Triton compiles at the first call, for which it needs a C compiler (gcc,
            clang, or what CC names); without one its error comes through, and "torch" is the way out.

    Raises:
        ValueError: the boxes are no (n, 6) tensor, scores or labels no (n,) ones, the threshold is outside [0, 1],
            `max_keep` is negative, the backend is unknown or does not run on the boxes' device, or takes fewer boxes
            (Triton: 2**26 - 1).
        ImportError: `backend="triton"` and Triton cannot be imported.
    """
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold is {iou_threshold}, wanted 0..1")
    if max_keep is not None and max_keep < 0:
        raise ValueError(f"max_keep is {max_keep}, wanted 0 or more, or None for all")
    if not isinstance(boxes, Tensor) or boxes.ndim != 2 or boxes.shape[1] != 6:
        found = tuple(getattr(boxes, "shape", ()))
        raise ValueError(f"boxes are {type(boxes).__name__} of shape {found}, wanted a tensor (n, 6)")
    if not (len(boxes),) == scores.shape == labels.shape:
        raise ValueError(
            f"{len(boxes)} boxes, scores {tuple(scores.shape)} and labels {tuple(labels.shape)}; "
            "wanted (n,), as many of each"
        )
    check_backend(backend)
    kernels = triton_module("nms_triton", backend, boxes.device)
    # torch sorts NaN before all numbers
    order = scores.masked_fill(scores.isnan(), -torch.inf).argsort(descending=True, stable=True)
    corners = boxes[order].to(torch.float32).T.contiguous()  # (n, 6) -> (6, n): each coordinate in one piece
    threshold = float(np.float32(iou_threshold))
    if kernels is None:
        ranks = _greedy(corners, labels[order], threshold, max_keep)
    else:
        ranks = kernels.greedy_stays(corners, labels[order].to(torch.int64), threshold).nonzero()[:, 0][:max_keep]
    return order[ranks]


@torch.no_grad()
def weighted_nms(
    boxes: Float[Tensor, "n 6"],
    scores: Float[Tensor, " n"],
    labels: Integer[Tensor, " n"],
    weights: Float[Tensor, " n"],
    iou_threshold: float,
    max_keep: int | None = None,
    *,
    backend: Backend = "auto",
) -> Int64[Tensor, " kept"]:
    """Return the indices of the boxes that stay, by descending score * weight; ties by index.

    `class_nms` in which a box counts as much as it is trusted: of two tiles that show an object, the one that has it
    nearer to its middle gives the box. A box keeps its own score. Arguments and errors are those of `class_nms`.

    Raises:
        ValueError: also if the weights are not of the shape of the scores.
    """
    if weights.shape != scores.shape:
        raise ValueError(f"scores {tuple(scores.shape)} and weights {tuple(weights.shape)}, wanted as many of each")
    return class_nms(boxes, scores * weights, labels, iou_threshold, max_keep, backend=backend)


@torch.no_grad()
def suppressor(
    boxes: Float[Tensor, "n 6"], labels: Integer[Tensor, " n"], kept: Int64[Tensor, " kept"], iou_threshold: float
) -> Int64[Tensor, " n"]:
    """Return for every box the row of `kept`, an answer of `class_nms`, by which it fell; its own if it stayed."""
    row = torch.zeros_like(labels, dtype=torch.int64)
    row[kept] = torch.arange(len(kept), device=row.device)
    fallen = torch.ones_like(labels, dtype=torch.bool).index_fill_(0, kept, False).nonzero()[:, 0]
    threshold = float(np.float32(iou_threshold))
    corners = boxes.to(torch.float32).T.contiguous()
    table = torch.cat([corners, volume(corners.T)[None]])
    for start in range(0, len(fallen), BLOCK):
        some = fallen[start : start + BLOCK]
        row[some] = _suppresses(table, labels, kept, some, threshold).to(torch.uint8).argmax(0)  # the first of equals
    return row


def _greedy(
    corners: Float32[Tensor, "6 n"], labels: Integer[Tensor, " n"], threshold: float, max_keep: int | None
) -> Int64[Tensor, " kept"]:
    """Ranks that stay. Each block is resolved in itself, then what it keeps is held against all that rank after it."""
    table = torch.cat([corners, volume(corners.T)[None]])
    rest = torch.arange(len(labels), device=corners.device)
    wanted = len(labels) if max_keep is None else max_keep
    kept: list[Tensor] = []
    while len(rest) > 0 and wanted > 0:
        block, rest = rest[:BLOCK], rest[BLOCK:]
        stays = _resolve(_suppresses(table, labels, slice(BLOCK), slice(BLOCK), threshold))
        kept.append(block[stays][:wanted])
        wanted -= len(kept[-1])
        if len(rest) == 0 or wanted <= 0:
            break
        keepers = stays.nonzero()[:, 0]
        width = COLUMNS if table.device.type == "cpu" else len(rest)
        falls = [
            _suppresses(table, labels, keepers, slice(start, start + width), threshold).any(0)
            for start in range(BLOCK, len(labels), width)
        ]
        free = (~torch.cat(falls)).nonzero()[:, 0]
        rest, table, labels = rest[free], table[:, BLOCK + free], labels[BLOCK + free]
    return torch.cat(kept) if kept else rest[:0]


def _suppresses(
    table: Tensor, labels: Tensor, rows: slice | Tensor, columns: slice | Tensor, threshold: float
) -> Bool[Tensor, "rows columns"]:
    """IoU > threshold within a class, as `boxes.iou` rounds it, in three buffers that are written over."""
    row, column = table[:, rows, None], table[:, None, columns]
    shared = torch.minimum(row[3], column[3]).sub_(torch.maximum(row[0], column[0])).clamp_(min=0)
    side, low = torch.empty_like(shared), torch.empty_like(shared)
    for axis in (1, 2):
        torch.minimum(row[axis + 3], column[axis + 3], out=side)
        torch.maximum(row[axis], column[axis], out=low)
        shared.mul_(side.sub_(low).clamp_(min=0))
    union = torch.add(row[6], column[6], out=side).sub_(shared).clamp_(min=TINY)
    return (shared.div_(union) > threshold).logical_and_(labels[rows, None] == labels[None, columns])


def _resolve(suppresses: Bool[Tensor, "n n"]) -> Bool[Tensor, " n"]:
    """Greedy answer inside one sorted block: a row is a number of n bits, so that a box costs one `or` at most.

    A fixed point by tensor operations takes as many rounds as boxes if each one touches the next.
    """
    packed = np.packbits(suppresses.triu(1).cpu().numpy(), axis=1, bitorder="little")
    fallen = 0
    for i, row in enumerate(packed):
        if not fallen >> i & 1:
            fallen |= int.from_bytes(row.tobytes(), "little")
    stays = [not fallen >> i & 1 for i in range(len(packed))]
    return torch.tensor(stays, dtype=torch.bool, device=suppresses.device)
