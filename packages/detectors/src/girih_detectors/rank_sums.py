"""Sums over the ranks of a distributed run, so that N processes train exactly like one with the joined batch.

DistributedDataParallel averages the gradients of the ranks. A loss that divides its local sum by the *mean over ranks*
of the normaliser therefore equals the loss of the joined batch. Outside a distributed run these are the identity.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of ranks, 1 outside a distributed run."""
    return dist.get_world_size() if _running() else 1


def mean_over_ranks(x: Tensor) -> Tensor:
    """Return the mean over ranks of `x`, without gradient. Every rank has to call it."""
    if not _running():
        return x.detach()
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def sum_over_ranks(x: Tensor) -> Tensor:
    """Return the sum over ranks of `x`; the gradient is summed over ranks as well. Every rank has to call it."""
    return _AllReduceSum.apply(x) if _running() else x  # type: ignore[no-untyped-call]


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


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()
