"""Masked instance normalisation against a float64 one that gathers the visible cells, sample by sample."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from girih_ssl.masked_norm import Cells, masked_instance_norm


def cells_of(shown):
    return Cells.of(shown.bool())


def make(shape=(3, 4, 4, 6, 5), share=0.4, offset=0.0, seed=0):
    """Maps, cells with another number of visible ones in every sample, weight, bias and a gradient."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) + offset
    shown = torch.rand(shape[0], *shape[2:], generator=generator) < share
    weight, bias = torch.randn(2, shape[1], generator=generator)
    return x, cells_of(shown), weight, bias, torch.randn(shape, generator=generator)


def gathered(x, cells, weight, bias, eps=1e-5):
    """F.instance_norm in float64 of the visible cells alone."""
    rows = []
    for sample, shown in zip(x, cells.shown[:, 0].bool(), strict=True):
        values = sample[:, shown]  # (c, n)
        if values.shape[1] > 1:
            values = F.instance_norm(values[None], None, None, weight, bias, eps=eps)[0]
        else:  # PyTorch refuses a single value, which is its own mean
            values = bias[:, None].expand_as(values)
        rows.append(torch.zeros_like(sample).masked_scatter(shown.expand_as(sample), values))
    return torch.stack(rows)


def values_and_gradients(function, x, cells, weight, bias, gradient):
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    y = function(leaves[0], cells, leaves[1], leaves[2])
    y.backward(gradient.to(y.dtype))
    return [y.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("offset", [0.0, 1.0, 100.0])  # of the mean, in standard deviations
def test_it_is_instance_norm_of_the_gathered_cells(offset):
    x, cells, weight, bias, gradient = make(offset=offset)
    assert len(set(cells.count.flatten().tolist())) == 3
    found = values_and_gradients(masked_instance_norm, x, cells, weight, bias, gradient)
    wanted = values_and_gradients(gathered, x.double(), cells, weight.double(), bias.double(), gradient)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-5 * max(1, offset), rtol=1e-5)


def test_a_mean_of_ten_thousand_deviations_costs_no_more_than_in_the_dense_norm():
    x, cells, weight, bias, gradient = make((2, 3, 8, 8, 8), offset=1e4)
    everything = cells_of(torch.ones(2, 8, 8, 8))
    off = []
    for visible in (cells, everything):
        found = values_and_gradients(masked_instance_norm, x, visible, weight, bias, gradient)
        wanted = values_and_gradients(gathered, x.double(), visible, weight.double(), bias.double(), gradient)
        off.append([float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True)])
    # x itself is rounded by 6e-8 * 1e4 = 6e-4 of a deviation; the sums of squares would be off by 6e-8 * 1e8 = 6
    assert all(masked < 4e-3 for masked in off[0]), off
    assert all(dense < 4e-3 for dense in off[1]), off


def test_with_everything_visible_it_is_pytorch_bit_for_bit():
    x, _, weight, bias, gradient = make((2, 5, 6, 7, 8))
    everything = cells_of(torch.ones(2, 6, 7, 8))
    found = values_and_gradients(masked_instance_norm, x, everything, weight, bias, gradient)
    wanted = values_and_gradients(
        lambda x, _, w, b: F.instance_norm(x, None, None, w, b), x, None, weight, bias, gradient
    )
    assert torch.equal(found[0], wanted[0])
    for a, b in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_what_stands_in_hidden_cells_does_not_matter():
    x, cells, weight, bias, gradient = make()
    other = torch.where(cells.hidden.bool(), 1e6, x)
    other_gradient = torch.where(cells.hidden.bool(), -7.0, gradient)
    first = values_and_gradients(masked_instance_norm, x, cells, weight, bias, gradient)
    second = values_and_gradients(masked_instance_norm, other, cells, weight, bias, other_gradient)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for hidden in (first[0], first[1]):  # the output, and the gradient of the input
        assert not (hidden * cells.hidden).any()


def test_constant_visible_cells_become_the_bias():
    x, cells, weight, bias, _ = make()
    constant = torch.where(cells.shown.bool(), torch.tensor([1.5, -2.0, 0.0, 0.1]).view(1, 4, 1, 1, 1), x)
    y = masked_instance_norm(constant, cells, weight, bias)
    # eps multiplies what rounding leaves of x - mean by 316
    torch.testing.assert_close(y, bias.view(1, 4, 1, 1, 1) * cells.shown, atol=3e-4, rtol=0)


def test_a_large_constant_in_one_of_216_blocks_becomes_the_bias():
    constant = 100 + 10 * torch.rand(16, generator=torch.Generator().manual_seed(0))
    x = constant.view(1, 16, 1, 1, 1).expand(1, 16, 48, 48, 48)
    shown = torch.zeros(1, 48, 48, 48)
    shown[:, :8, :8, :8] = 1
    assert float(masked_instance_norm(x, cells_of(shown)).abs().max()) < 2e-2  # found: 7e-3, and 2e-3 if dense


def test_a_sample_with_nothing_or_one_cell_visible_is_defined():
    x, _, weight, bias, gradient = make((3, 4, 2, 2, 2))
    shown = torch.zeros(3, 2, 2, 2)
    shown[1, 0, 1, 0] = 1
    shown[2] = 1
    y, x_grad, weight_grad, bias_grad = values_and_gradients(
        masked_instance_norm, x, cells_of(shown), weight, bias, gradient
    )
    assert not y[0].any()
    torch.testing.assert_close(y[1, :, 0, 1, 0], bias, atol=3e-4, rtol=0)
    assert torch.equal(y[2:], F.instance_norm(x[2:], None, None, weight, bias))
    assert not x_grad[0].any()
    torch.testing.assert_close(x_grad[1], torch.zeros_like(x_grad[1]), atol=1e-3, rtol=0)  # 316 (g - g), rounded
    torch.testing.assert_close(bias_grad, gradient[1, :, 0, 1, 0] + gradient[2].sum((1, 2, 3)))
    assert weight_grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    x, cells, weight, bias, gradient = make(offset=30.0)
    low = [tensor.bfloat16() for tensor in (x, gradient)]
    found = values_and_gradients(masked_instance_norm, low[0], cells, weight, bias, low[1])
    wanted = values_and_gradients(masked_instance_norm, low[0].float(), cells, weight, bias, low[1].float())
    assert [a.dtype for a in found] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(found, wanted, strict=True))


def test_channels_last_and_other_strides():
    x, cells, weight, bias, gradient = make()
    wanted = values_and_gradients(masked_instance_norm, x, cells, weight, bias, gradient)
    for other in (
        x.contiguous(memory_format=torch.channels_last_3d),
        x.flip(2).flip(2),
        x.transpose(2, 4).transpose(2, 4),
    ):
        found = values_and_gradients(masked_instance_norm, other, cells, weight, bias, gradient)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_its_gradient_is_that_of_finite_differences():
    x, cells, weight, bias, _ = make((2, 2, 2, 3, 2), share=0.6)
    inputs = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    assert torch.autograd.gradcheck(lambda x, w, b: masked_instance_norm(x, cells, w, b), inputs)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(2, 4)),
    share=st.floats(0, 1),
    seed=st.integers(0, 100),
)
def test_any_shape_and_share(shape, share, seed):
    x, cells, weight, bias, _ = make(shape, share, seed=seed)
    y = masked_instance_norm(x, cells, weight, bias, 1e-3)
    wanted = gathered(x.double(), cells, weight.double(), bias.double(), 1e-3)
    torch.testing.assert_close(y.double(), wanted, atol=1e-5, rtol=1e-5)
