"""The first k of rows in sorted order, with defined ties."""

import torch
from jaxtyping import Int64
from torch import Tensor


def lowest(k: int, *keys: Tensor) -> Int64[Tensor, " kept"]:
    """Return the `k` lowest rows in order; all, if there are not more.

    Rows compare by the first key, then by the next, then by index. What ties with the last of them is sorted too, since
    torch.topk leaves ties open.

    Args:
        k: rows wanted, 0 or more.
        keys: each (n,), without NaN.
    """
    first = keys[0]
    if 0 < k < len(first):
        rows = (first <= first.topk(k, largest=False).values.max()).nonzero()[:, 0]
    else:
        rows = torch.arange(len(first), device=first.device)
    for key in reversed(keys):
        rows = rows[key[rows].argsort(stable=True)]
    return rows[:k]
