"""What the ranks of a distributed run have to know of each other to train exactly like one with the joined batch.

DistributedDataParallel averages the gradients of the ranks. A loss that divides its local sum by the *mean over ranks*
of the normaliser therefore equals the loss of the joined batch. Outside a distributed run there is one rank, this one.
Every rank has to call each of these functions.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Int64
from torch import Tensor

from .lowest import lowest


def world_size() -> int:
    """Return the number of ranks, 1 outside a distributed run."""
    return dist.get_world_size() if _running() else 1


def mean_over_ranks(x: Tensor) -> Tensor:
    """Return the mean over ranks of `x`, without gradient."""
    if not _running():
        return x.detach()
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def sum_over_ranks(x: Tensor) -> Tensor:
    """Return the sum over ranks of `x`; the gradient is summed over ranks as well."""
    return _AllReduceSum.apply(x) if _running() else x  # type: ignore[no-untyped-call]


@torch.no_grad()
def lowest_over_ranks(k: int, *keys: Tensor) -> Int64[Tensor, " kept"]:
    """Return which of this rank's rows are among the `k` lowest of all ranks; all, if there are not more.

    Rows compare by the first key, then by the next, then by rank and by row. The answer is in that order.

    Args:
        k: rows wanted of all ranks together.
        keys: each (n,), without NaN; n may differ from rank to rank.
    """
    mine = lowest(k, *keys)
    if not _running():
        return mine
    lengths = _gather(torch.tensor([len(mine)], device=mine.device))
    every = [torch.cat(_gather_padded(key[mine], [int(n) for n in lengths])) for key in keys]
    start = int(torch.cat(lengths)[: dist.get_rank()].sum())
    chosen = lowest(k, *every)
    return mine[chosen[(chosen >= start) & (chosen < start + len(mine))] - start]


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total


def _gather(x: Tensor) -> list[Tensor]:
    found = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(found, x.contiguous())
    return found


def _gather_padded(x: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    padded = torch.cat([x, x.new_zeros(max(lengths) - len(x))])
    return [found[:n] for found, n in zip(_gather(padded), lengths, strict=True)]


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()
