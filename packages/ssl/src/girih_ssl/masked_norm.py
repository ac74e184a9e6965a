"""Instance normalisation of maps with hidden cells: the statistics are those of the visible cells."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from girih_ssl.visible_cells import Cells


def masked_instance_norm(
    x: Float[Tensor, "b c z y x"],
    cells: Cells,
    weight: Float[Tensor, " c"] | None = None,
    bias: Float[Tensor, " c"] | None = None,
    eps: float = 1e-5,
) -> Float[Tensor, "b c z y x"]:
    r"""Normalise every map over its visible cells, as if it had no others; 0 elsewhere.

        y = s ((x - mean) / sqrt(var + eps) weight + bias),   mean = sum s x / n,   var = sum s (x - mean)^2 / n

    with s = 1 for the visible cells of a sample and n = sum s, which may differ between samples. Computed in float32
    (float64 for such x) with tensors of fixed shapes, returned in the dtype of x. What stands in hidden cells has no
    influence, unless it is not finite. A sample without a visible cell gives 0, a single visible cell `bias`.

    How: hidden cells are filled with the mean and all are multiplied by sqrt(N / n), N the cells of the map. The
    variance over all cells is then the variance over the visible ones, so that PyTorch's own batch normalisation can
    do the rest, without a difference of large sums. With everything visible nothing is filled, the factor is 1, and
    on the CPU the result is that of `F.instance_norm`, bit for bit.

    Args:
        x: maps.
        cells: the visible ones.
        weight: factor of each channel; None is 1.
        bias: summand of each channel; None is 0.
        eps: added to the variance.
    """
    weight = cells.count.new_ones(x.shape[1]) if weight is None else weight
    bias = cells.count.new_zeros(x.shape[1]) if bias is None else bias
    y: Tensor = _MaskedInstanceNorm.apply(x, weight, bias, cells.shown, cells.hidden, cells.count, eps)
    return y


class _MaskedInstanceNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        shown: Tensor,
        hidden: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        scale = (shown[0].numel() / count.clamp(min=1)).sqrt()
        filled = (x * shown).contiguous().mul_(scale)
        mean = filled.sum((2, 3, 4), keepdim=True) / count.clamp(min=1)
        filled.addcmul_(mean, hidden)
        y, row_mean, invstd = torch.native_batch_norm(
            _rows(filled),
            (_column(weight).to(mean.dtype) / scale).flatten(),
            _column(bias).to(mean.dtype).expand_as(mean).flatten(),
            None,
            None,
            True,
            0.0,
            eps,
        )
        # In half precision it is the input that is kept, half as large, to be filled again.
        kept, kept_mean = (filled, None) if x.dtype == filled.dtype else (x, mean)
        ctx.save_for_backward(kept, kept_mean, weight, shown, hidden, count, scale, row_mean, invstd)
        ctx.eps = eps
        # No view, which an activation in place could not change.
        return torch.ops.aten._unsafe_view(y, x.shape).mul_(shown).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, mean, weight, shown, hidden, count, scale, row_mean, invstd = ctx.saved_tensors
        filled = kept if mean is None else (kept * shown).contiguous().mul_(scale).addcmul_(mean, hidden)
        x_grad, products, total = torch.ops.aten.native_batch_norm_backward(
            _rows(grad.to(filled.dtype).contiguous()),
            _rows(filled),
            None,
            None,
            None,
            row_mean,
            invstd,
            True,
            ctx.eps,
            [True, True, True],
        )
        # The hidden cells lie at the mean, so of what came back to them only the sum has entered, as a constant in
        # every visible cell. It is what keeps these from adding up to zero, as the gradient of a normalisation must.
        x_grad = x_grad.view(filled.shape).mul_(shown)
        excess = x_grad.sum((2, 3, 4), keepdim=True) / count.clamp(min=1)
        x_grad.addcmul_(excess, shown, value=-1).mul_(_column(weight))
        weight_grad = (products.view_as(excess) / scale).sum((0, 2, 3, 4))
        visible_total = count * (excess / invstd.view_as(excess) + total.view_as(excess) / shown[0].numel())
        return x_grad.to(grad.dtype), weight_grad, visible_total.sum((0, 2, 3, 4)), None, None, None, None


def _rows(x: Tensor) -> Tensor:
    """Return (1, b c, z, y, x): batch normalisation of such a tensor is instance normalisation."""
    return x.view(1, -1, *x.shape[2:])


def _column(channels: Tensor) -> Tensor:
    return channels.view(1, -1, 1, 1, 1)
