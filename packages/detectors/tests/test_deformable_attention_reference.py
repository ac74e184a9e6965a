"""The reference of deformable attention against its definition, voxel by voxel."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from girih_detectors.ops.deformable_attention_reference import (
    deformable_attention_reference,
    fused_deformable_attention_reference,
    sampling_locations,
)


def definition(value, shapes, locations, weights):
    """Every query, head, level, point and corner in loops, in float64."""
    batch, _, heads, channels = value.shape
    out = torch.zeros(batch, locations.shape[1], heads, channels, dtype=torch.float64)
    value, starts = value.double(), [0]
    for d, h, w in shapes:
        starts.append(starts[-1] + d * h * w)
    for b, q, head, level, point in product(*map(range, locations.shape[:5])):
        d, h, w = shapes[level]
        where = locations[b, q, head, level, point].double().tolist()
        if not all(map(math.isfinite, where)):
            continue
        u = [share * extent - 0.5 for share, extent in zip(where, (w, h, d), strict=True)]
        low = [math.floor(x) for x in u]
        for corner in product((0, 1), repeat=3):
            x, y, z = (i + bit for i, bit in zip(low, corner, strict=True))
            if 0 <= x < w and 0 <= y < h and 0 <= z < d:
                share = math.prod((t - i) if bit else 1 - (t - i) for t, i, bit in zip(u, low, corner, strict=True))
                voxel = value[b, starts[level] + (z * h + y) * w + x, head]
                out[b, q, head] += weights[b, q, head, level, point].double() * share * voxel
    return out.flatten(2)


def inputs(shapes, batch=1, queries=3, heads=2, channels=3, points=2, seed=0, dtype=torch.float64):
    """Values, locations in [-0.3, 1.3] and weights of any sign."""
    g = torch.Generator().manual_seed(seed)
    voxels = sum(math.prod(shape) for shape in shapes)
    value = torch.randn(batch, voxels, heads, channels, generator=g, dtype=torch.float64)
    places = torch.rand(batch, queries, heads, len(shapes), points, 3, generator=g, dtype=torch.float64) * 1.6 - 0.3
    weights = torch.randn(batch, queries, heads, len(shapes), points, generator=g, dtype=torch.float64)
    return (
        value.to(dtype),
        shapes,
        places.to(torch.promote_types(dtype, torch.float32)),
        weights.to(dtype),
    )


SHAPE = st.tuples(*[st.integers(1, 5)] * 3)


@settings(max_examples=25)
@given(st.lists(SHAPE, min_size=1, max_size=3), st.integers(1, 2), st.integers(1, 3), st.integers(0, 1000))
def test_equals_its_definition(shapes, batch, points, seed) -> None:
    case = inputs(shapes, batch=batch, queries=2, points=points, seed=seed)
    torch.testing.assert_close(deformable_attention_reference(*case), definition(*case), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
def test_other_types_differ_by_their_rounding(dtype, tolerance) -> None:
    case = inputs([(3, 4, 5), (2, 1, 3)], dtype=dtype)
    found, want = deformable_attention_reference(*case), definition(*case)
    assert found.dtype == dtype
    assert (found.double() - want).abs().max() <= tolerance * want.abs().max()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_last_axis_of_a_location_is_x_y_z(axis) -> None:
    shape = (3, 5, 7)
    ramp = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij"))[2 - axis].flatten().double()
    places = torch.tensor([[0.5, 0.3, 0.6], [0.2, 0.5, 0.4]], dtype=torch.float64)
    case = (ramp[None, :, None, None], [shape], places[None, :, None, None, None], torch.ones(1, 2, 1, 1, 1).double())
    want = places[:, axis] * (7, 5, 3)[axis] - 0.5
    torch.testing.assert_close(deformable_attention_reference(*case)[0, :, 0], want)


def test_the_centre_of_a_voxel_gives_it_back_exactly() -> None:
    shape = (2, 4, 8)  # powers of two: centres are exact in float32
    value = torch.randn(1, 64, 1, 3)
    z, y, x = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, shape), indexing="ij"))
    places = torch.stack([(x + 0.5) / 8, (y + 0.5) / 4, (z + 0.5) / 2], dim=-1)
    found = deformable_attention_reference(
        value, [shape], places[None, :, None, None, None], torch.ones(1, 64, 1, 1, 1)
    )
    assert torch.equal(found, value[:, :, 0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30, 3.4e38, 7.0, -2.0])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_location_outside_adds_nothing_and_has_no_gradient(bad, axis) -> None:
    value, shapes, places, weights = inputs([(3, 4, 5), (2, 1, 3)], dtype=torch.float32)
    places[0, 1, 0, :, 1, axis] = bad
    leaves = [part.clone().requires_grad_() for part in (value, places, weights)]
    out = deformable_attention_reference(leaves[0], shapes, leaves[1], leaves[2])
    gradients = torch.autograd.grad(out.square().sum(), leaves)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert not gradients[1][0, 1, 0, :, 1].any()
    assert not gradients[2][0, 1, 0, :, 1].any()
    weights[0, 1, 0, :, 1] = 0
    near = torch.where(places.abs() < 1.5, places, 0.5)
    assert torch.equal(out, deformable_attention_reference(value, shapes, near, weights))


def test_gradients_are_right() -> None:
    value, shapes, places, weights = inputs([(3, 4, 5), (2, 1, 3)])
    leaves = [part.requires_grad_() for part in (value, places, weights)]
    assert torch.autograd.gradcheck(
        lambda v, p, w: deformable_attention_reference(v, shapes, p, w), leaves, fast_mode=True
    )


@pytest.mark.parametrize("empty", ["batch", "queries"])
def test_nothing_in_nothing_out(empty) -> None:
    sizes = {"batch": 2, "queries": 3, empty: 0}
    case = inputs([(3, 4, 5)], **sizes)
    assert deformable_attention_reference(*case).shape == (sizes["batch"], sizes["queries"], 6)


def points_and_offsets(shapes, size, seed=0):
    value, _, places, logits = inputs(shapes, queries=2, seed=seed)
    g = torch.Generator().manual_seed(seed)
    offsets = 2 * torch.randn(places.shape, generator=g, dtype=torch.float64)
    return value, shapes, torch.rand(1, 2, size, generator=g, dtype=torch.float64), offsets, logits


def test_offsets_are_voxels_of_their_level() -> None:
    shapes = [(3, 4, 5), (2, 1, 3)]
    _, _, points, offsets, _ = points_and_offsets(shapes, 3)
    found = sampling_locations(points, offsets, shapes)
    for q, head, level, point in product(range(2), range(2), range(2), range(2)):
        d, h, w = shapes[level]
        for axis, extent in enumerate((w, h, d)):
            want = points[0, q, axis] + offsets[0, q, head, level, point, axis] / extent
            torch.testing.assert_close(found[0, q, head, level, point, axis], want)


def test_offsets_are_shares_of_half_a_size() -> None:
    shapes = [(3, 4, 5), (2, 1, 3)]
    _, _, points, offsets, _ = points_and_offsets(shapes, 6)
    found = sampling_locations(points, offsets, shapes)
    for q, level, point, axis in product(range(2), range(2), range(2), range(3)):
        want = points[0, q, axis] + offsets[0, q, 1, level, point, axis] / 2 * points[0, q, 3 + axis] * 0.5
        torch.testing.assert_close(found[0, q, 1, level, point, axis], want)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("what", "entry"), [(0, 1), (0, 4), (1, 1)])
def test_what_leads_to_no_finite_location_adds_nothing_and_has_no_gradient(what, entry, bad) -> None:
    value, shapes, points, offsets, logits = points_and_offsets([(3, 4, 5), (2, 1, 3)], 6)
    parts = [points, offsets]
    parts[what][0, 0, ..., entry] = bad
    leaves = [part.requires_grad_() for part in (value, points, offsets, logits)]
    out = fused_deformable_attention_reference(value, shapes, *leaves[1:])
    gradients = torch.autograd.grad(out.sum(), leaves)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert not out[0, 0].any()
    assert not any(gradient[0, 0].any() for gradient in gradients[1:])
    assert out[0, 1].any()


@pytest.mark.parametrize("size", [3, 6])
def test_the_fused_one_is_softmax_and_the_plain_one(size) -> None:
    value, shapes, points, offsets, logits = points_and_offsets([(3, 4, 5), (2, 1, 3)], size)
    logits[0, 0, 0, 0, 0], logits[0, 1, 0, 0, 0], logits[0, 1, 1, 1, 1] = 80, -80, -math.inf
    exponent = (logits - logits.amax((-1, -2), keepdim=True)).exp()
    weights = exponent / exponent.sum((-1, -2), keepdim=True)
    want = definition(value, shapes, sampling_locations(points, offsets, shapes), weights)
    found = fused_deformable_attention_reference(value, shapes, points, offsets, logits)
    torch.testing.assert_close(found, want, rtol=1e-11, atol=1e-12)
