"""The operators of deformable attention on the CPU: gradients, types, layouts and what they promise."""

import inspect
import itertools
import runpy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import deterministic as torch_deterministic

from girih_detectors.ops import deformable_attention, fused_deformable_attention
from girih_detectors.ops.deformable_attention_reference import fused_deformable_attention_reference

INPUTS = runpy.run_path(str(Path(__file__).with_name("attention_inputs.py")))
CASES, SHAPES, plain = (INPUTS[name] for name in ("CASES", "SHAPES", "plain"))
every_case = pytest.mark.parametrize(("make", "op", "reference"), CASES.values(), ids=CASES)


@every_case
def test_every_subset_of_gradients_is_that_of_the_reference(make, op, reference) -> None:
    inputs = make()
    upstream = torch.randn(2, 3, 6, dtype=torch.float64)
    leaves = [part.clone().requires_grad_() for part in inputs]
    out = reference(leaves[0], SHAPES, *leaves[1:])
    want = torch.autograd.grad(out, leaves, upstream)
    for needs in itertools.product((False, True), repeat=len(inputs)):
        parts = [part.clone().requires_grad_(needed) for part, needed in zip(inputs, needs, strict=True)]
        found = op(parts[0], SHAPES, *parts[1:])
        torch.testing.assert_close(found, out)
        assert found.requires_grad == any(needs)
        if any(needs):
            found.backward(upstream)
        for part, needed, gradient in zip(parts, needs, want, strict=True):
            if needed:
                torch.testing.assert_close(part.grad, gradient)
            else:
                assert part.grad is None


@every_case
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_places_that_are_no_numbers_have_no_gradients(make, op, reference, bad) -> None:
    inputs = make()
    for number, part in enumerate(inputs[1:-1]):
        part.view(6, -1, part.shape[-1])[number, :, number] = bad
    found, want = ([part.clone().requires_grad_() for part in inputs] for _ in range(2))
    torch.testing.assert_close(op(found[0], SHAPES, *found[1:]), reference(want[0], SHAPES, *want[1:]))
    op(found[0], SHAPES, *found[1:]).sum().backward()
    reference(want[0], SHAPES, *want[1:]).sum().backward()
    for a, b in zip(found, want, strict=True):
        assert torch.isfinite(a.grad).all()
        torch.testing.assert_close(a.grad, b.grad)


@every_case
def test_gradients_are_right(make, op, reference) -> None:
    value, *others = (part.requires_grad_() for part in make(batch=1))
    assert torch.autograd.gradcheck(lambda v, *rest: op(v, SHAPES, *rest), (value, *others), fast_mode=True)


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(-3, 3), st.floats(-3, 3))
def test_it_is_linear_in_values_and_in_weights(seed, a, b) -> None:
    torch.manual_seed(seed)
    (value, places, weights), (other_value, _, other_weights) = plain(), plain()

    def attend(value, weights):
        return deformable_attention(value, SHAPES, places, weights)

    of_values = a * attend(value, weights) + b * attend(other_value, weights)
    torch.testing.assert_close(attend(a * value + b * other_value, weights), of_values)
    of_weights = a * attend(value, weights) + b * attend(value, other_weights)
    torch.testing.assert_close(attend(value, a * weights + b * other_weights), of_weights)


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_the_gradient_of_the_values_sums_to_what_lies_inside(seed) -> None:
    """Of a location's weight a voxel keeps what is not shared with voxels outside, along each axis at most one."""
    torch.manual_seed(seed)
    value, places, weights = plain()
    upstream = torch.randn(2, 3, 2, 3, dtype=torch.float64)
    leaf = value.requires_grad_()
    deformable_attention(leaf, SHAPES, places, weights).backward(upstream.flatten(2))
    extents = torch.tensor(SHAPES, dtype=torch.float64).flip(-1)[:, None]
    u = places * extents - 0.5
    inside = torch.minimum(1 + u, extents - u).clamp(0, 1).prod(-1)
    want = torch.einsum("bqhlp,bqhc->bhc", weights * inside, upstream)
    torch.testing.assert_close(leaf.grad.sum(1), want)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_out_and_gradients_have_the_types_of_the_inputs(make, op, reference, dtype) -> None:
    inputs = [part.requires_grad_() for part in make(dtype)]
    wide = [part.detach().double().requires_grad_() for part in inputs]
    out, want = op(inputs[0], SHAPES, *inputs[1:]), reference(wide[0], SHAPES, *wide[1:])
    assert out.dtype == dtype
    out.backward(torch.ones_like(out))
    want.backward(torch.ones_like(want))
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for found, exact in [(out, want), *((a.grad, b.grad) for a, b in zip(inputs, wide, strict=True))]:
        assert (found.double() - exact).abs().max() <= tolerance * exact.abs().max()
    assert all(part.grad.dtype == part.dtype for part in inputs)


@every_case
def test_layout_does_not_matter(make, op, reference) -> None:
    inputs = make()
    bases = [part.movedim(1, -1).contiguous().requires_grad_() for part in inputs]
    turned = [base.movedim(-1, 1) for base in bases]
    want = [part.clone().requires_grad_() for part in inputs]
    out = op(turned[0], SHAPES, *turned[1:])
    assert torch.equal(out, op(inputs[0], SHAPES, *inputs[1:]))
    out.sum().backward()  # an expanded gradient
    reference(want[0], SHAPES, *want[1:]).sum().backward()
    for base, part in zip(bases, want, strict=True):
        torch.testing.assert_close(base.grad.movedim(-1, 1), part.grad)
    alone = [part[:1].clone().requires_grad_() for part in inputs]
    many = [part.expand(3, *part.shape[1:]) for part in alone]
    op(many[0], SHAPES, *many[1:]).sum().backward()
    for part, once in zip(alone, want, strict=True):
        torch.testing.assert_close(part.grad, 3 * once.grad[:1])


@every_case
@pytest.mark.parametrize("sizes", [{"batch": 0}, {"queries": 0}, {"batch": 0, "queries": 0}])
def test_nothing_in_nothing_out(make, op, reference, sizes) -> None:
    inputs = [part.requires_grad_() for part in make(**sizes)]
    out = op(inputs[0], SHAPES, *inputs[1:])
    assert out.shape == (sizes.get("batch", 2), sizes.get("queries", 3), 6)
    out.sum().backward()
    assert not any(part.grad.any() for part in inputs)
    assert all(part.grad.shape == part.shape for part in inputs)


@every_case
def test_only_the_inputs_are_kept(make, op, reference) -> None:
    inputs = [part.requires_grad_() for part in make(queries=40)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda part: kept.append(part.data_ptr()) or part, lambda part: part):
        out = op(inputs[0], SHAPES, *inputs[1:])
    assert set(kept) == {part.data_ptr() for part in inputs}
    out.sum().backward()


@every_case
def test_no_memory_is_read_that_nobody_wrote(make, op, reference, monkeypatch) -> None:
    monkeypatch.setattr(torch_deterministic, "fill_uninitialized_memory", True)  # with NaN, in deterministic mode
    inputs = [part.requires_grad_() for part in make()]
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1).isnan()
        out = op(inputs[0], SHAPES, *inputs[1:])
        out.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.isfinite(part).all() for part in (out, *(leaf.grad for leaf in inputs)))


@every_case
def test_there_is_no_second_derivative(make, op, reference) -> None:
    inputs = [part.requires_grad_() for part in make()]
    out = op(inputs[0], SHAPES, *inputs[1:]).square().sum()
    first = torch.autograd.grad(out, inputs, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        sum(part.sum() for part in first).backward()


@every_case
def test_autocast_leaves_places_alone(make, op, reference) -> None:
    inputs = [part.requires_grad_() for part in make(torch.float32)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = op(inputs[0], SHAPES, *inputs[1:])
        with pytest.raises(ValueError, match=r"is torch\.bfloat16, wanted torch\.float32"):
            inspect.unwrap(op)(inputs[0], SHAPES, inputs[1].bfloat16(), *inputs[2:])
    places = 1 if len(inputs) == 3 else 2  # locations, or reference points and offsets
    low = [part.detach() if 1 <= i <= places else part.detach().bfloat16() for i, part in enumerate(inputs)]
    assert torch.equal(out, op(low[0], SHAPES, *low[1:]))
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert all(part.grad.dtype == torch.float32 and part.grad.any() for part in inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        double = make()
        assert op(double[0], SHAPES, *double[1:]).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_offsets_may_be_float32_beside_any_value(dtype) -> None:
    value, points, offsets, logits = CASES["fused, boxes"][0](dtype)
    single = (offsets.float() + 0.01).requires_grad_()  # what 16 bits would round away
    found = fused_deformable_attention(value, SHAPES, points, single, logits)
    exact = fused_deformable_attention_reference(value.double(), SHAPES, points, single.double(), logits.double())
    tolerance = {torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}[dtype]
    assert (found - exact).abs().max() <= tolerance * exact.abs().max()
    found.sum().backward()
    assert single.grad.dtype == torch.float32
    assert single.grad.any()


@every_case
def test_single_places_serve_double_values(make, op, reference) -> None:
    value, places, *others = make()
    single = places.float().requires_grad_()
    out = op(value, SHAPES, single, *others)
    torch.testing.assert_close(out, reference(value, SHAPES, single.double(), *others), rtol=1e-12, atol=1e-12)
    out.sum().backward()
    assert single.grad.dtype == torch.float32
