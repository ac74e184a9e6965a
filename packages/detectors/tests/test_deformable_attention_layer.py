"""The layer of deformable attention: where it looks, what it learns, and that no axis is turned twice or never."""

import inspect
import math

import jaxtyping
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from girih_detectors import DeformableAttention3D, zyx_to_grid
from girih_detectors.deformable_attention import head_directions_zyx
from girih_detectors.ops.deformable_attention_reference import sampling_locations

SHAPES = ((3, 5, 7), (2, 3, 4))
VOXELS = 105 + 24


def layer(heads=8, points=4, dim=16, **settings) -> DeformableAttention3D:
    return DeformableAttention3D(dim, heads, len(SHAPES), points, **settings)


def inputs(queries=5, entries=3, batch=2, dim=16, dtype=torch.float32):
    """query, reference points, memory, shapes."""
    places = torch.rand(batch, queries, entries, dtype=torch.promote_types(dtype, torch.float32))
    return torch.randn(batch, queries, dim, dtype=dtype), places, torch.randn(batch, VOXELS, dim, dtype=dtype), SHAPES


def transparent(level: int, **settings) -> DeformableAttention3D:
    """A layer that looks only at its reference points on one level and changes nothing."""
    found = layer(**settings)
    with torch.no_grad():
        for projection in (found.value_proj, found.output_proj):
            projection.weight.copy_(torch.eye(found.dim))
        found.sampling_offsets.bias.zero_()
        weights = found.attention_weights.bias.view(found.heads, found.levels, found.points)
        weights.fill_(-torch.inf)
        weights[:, level] = 0
    return found


@pytest.mark.parametrize("entries", [3, 6])
@pytest.mark.parametrize(("level", "voxel"), [(0, (2, 1, 5)), (0, (0, 4, 0)), (1, (1, 0, 3)), (1, (0, 2, 1))])
def test_a_reference_point_sees_its_own_voxel(level, voxel, entries) -> None:
    """On levels of three different sides: whoever turns an axis looks elsewhere or outside."""
    memory = torch.zeros(1, VOXELS, 16)
    maps = [part.view(1, *shape, 16) for part, shape in zip(memory.split([105, 24], 1), SHAPES, strict=True)]
    maps[level][0, *voxel] = torch.arange(1.0, 17)
    extent = torch.tensor(SHAPES[level])
    centres = (torch.cartesian_prod(*map(torch.arange, SHAPES[level])) + 0.5) / extent
    sides = torch.rand(len(centres), 3)[:, : entries - 3]
    points = torch.cat([centres, sides], 1)[None]
    found = transparent(level)(torch.randn(1, len(centres), 16), points, memory, SHAPES)
    want = torch.zeros(1, *SHAPES[level], 16)
    want[0, *voxel] = torch.arange(1.0, 17)
    torch.testing.assert_close(found, want.flatten(1, 3), rtol=1e-5, atol=1e-4)


@given(st.lists(st.floats(-2, 2, width=32), min_size=6, max_size=6))
def test_turning_twice_is_not_turning(numbers) -> None:
    box = torch.tensor(numbers)
    assert zyx_to_grid(box).tolist() == [numbers[i] for i in (2, 1, 0, 5, 4, 3)]
    assert torch.equal(zyx_to_grid(zyx_to_grid(box)), box)
    assert zyx_to_grid(box[:3]).tolist() == numbers[2::-1]


def test_turning_takes_places_and_boxes_only() -> None:
    assert zyx_to_grid(torch.empty(0, 4, 6)).shape == (0, 4, 6)
    for shape in ((2, 4), (3, 2), ()):
        with pytest.raises(ValueError, match="wanted"):
            inspect.unwrap(zyx_to_grid)(torch.zeros(shape))


@pytest.mark.parametrize("heads", range(1, 27))
@pytest.mark.parametrize("kind", ["auto", "nndetection"])
def test_every_head_has_a_direction_of_length_one(heads, kind) -> None:
    found = head_directions_zyx(heads, kind)
    assert found.shape == (heads, 3)
    torch.testing.assert_close(found.abs().amax(-1), torch.ones(heads))


@pytest.mark.parametrize("heads", range(2, 33))
def test_heads_look_everywhere(heads) -> None:
    """No two look the same way, and together they look nowhere in particular."""
    found = torch.nn.functional.normalize(head_directions_zyx(heads), dim=-1)
    apart = torch.pdist(found)
    assert apart.min() > 1.5 / math.sqrt(heads)  # spheres of equal share have a diameter of about 3.5 / sqrt(heads)
    assert found.mean(0).norm() < 1 / math.sqrt(heads)


def test_directions_of_eight_and_six_heads() -> None:
    eight, six = head_directions_zyx(8), head_directions_zyx(6)
    assert {tuple(row) for row in eight.tolist()} == {(z, y, x) for z in (-1, 1) for y in (-1, 1) for x in (-1, 1)}
    assert sorted(map(tuple, six.tolist())) == sorted(
        [*map(tuple, torch.eye(3).tolist()), *map(tuple, (-torch.eye(3)).tolist())]
    )


def test_directions_of_nndetection() -> None:  # (sin t cos t, sin^2 t, cos t) at t = 0, 90, 180, 270 degrees
    want = torch.tensor([[0.0, 0, 1], [0, 1, 0], [0, 0, -1], [0, 1, 0]])
    torch.testing.assert_close(head_directions_zyx(4, "nndetection"), want, rtol=0, atol=1e-6)


def start(found: DeformableAttention3D, points_zyx):
    """Where it looks at first, (x, y, z)."""
    offsets = found.sampling_offsets.bias.view(1, 1, found.heads, found.levels, found.points, 3)
    return sampling_locations(zyx_to_grid(points_zyx), offsets, SHAPES)[0, 0].detach()


def test_points_start_one_voxel_apart() -> None:
    centre = torch.tensor([[[0.5, 0.4, 0.3]]])
    found = start(layer(heads=8, points=3), centre)
    for head, direction in enumerate(head_directions_zyx(8)):
        for level, extent in enumerate(SHAPES):
            for point in range(3):
                want = centre[0, 0] + direction * (point + 1) / torch.tensor(extent)
                torch.testing.assert_close(found[head, level, point], want.flip(-1))


def test_the_last_points_of_eight_heads_are_the_corners_of_the_box() -> None:
    box = torch.tensor([[[0.5, 0.4, 0.3, 0.2, 0.1, 0.4]]])
    found = start(layer(heads=8, points=4), box)[:, :, -1]
    corners = [(0.3 + x, 0.4 + y, 0.5 + z) for z in (-0.1, 0.1) for y in (-0.05, 0.05) for x in (-0.2, 0.2)]
    torch.testing.assert_close(found, torch.tensor(corners)[:, None].expand(-1, 2, -1))


def test_it_starts_with_equal_weights_whatever_the_query() -> None:
    found = layer()
    query, *rest = inputs()
    assert not found.attention_weights.weight.any()
    assert not found.attention_weights.bias.any()
    assert torch.equal(found(query, *rest), found(torch.zeros_like(query), *rest))


@pytest.mark.parametrize("entries", [3, 6])
def test_gradients_reach_everything(entries) -> None:
    found = layer()
    torch.nn.init.normal_(found.sampling_offsets.weight, std=0.1)
    torch.nn.init.normal_(found.attention_weights.weight, std=0.1)
    query, points, memory, shapes = inputs(entries=entries)
    leaves = [part.requires_grad_() for part in (query, points, memory)]
    found(*leaves, shapes).square().sum().backward()
    for name, part in [*found.named_parameters(), *zip(("query", "points", "memory"), leaves, strict=True)]:
        assert part.grad is not None, name
        assert part.grad.any(), name
    assert all(points.grad.flatten(0, 1).any(0))


def test_the_state_has_the_names_it_promises() -> None:
    shapes = {name: tuple(part.shape) for name, part in layer(heads=8, points=4).state_dict().items()}
    assert shapes == {
        "sampling_offsets.weight": (192, 16), "sampling_offsets.bias": (192,),
        "attention_weights.weight": (64, 16), "attention_weights.bias": (64,),
        "value_proj.weight": (16, 16), "value_proj.bias": (16,),
        "output_proj.weight": (16, 16), "output_proj.bias": (16,),
    }  # fmt: skip


def test_padding_is_zero_after_the_projection() -> None:
    found = layer()
    torch.nn.init.ones_(found.value_proj.bias)
    query, points, memory, shapes = inputs()
    valid = torch.rand(2, VOXELS) > 0.5
    masked = found(query, points, memory, shapes, valid)
    memory[~valid] = torch.nan
    memory.requires_grad_()
    again = found(query, points, memory, shapes, valid)
    assert torch.equal(again, masked)
    again.sum().backward()
    assert all(part.grad.isfinite().all() for part in (memory, *found.parameters()))
    assert not memory.grad[~valid].any()
    memory = memory.detach().nan_to_num()
    nothing = found(query, points, memory, shapes, torch.zeros_like(valid))
    assert torch.equal(nothing, found.output_proj.bias.expand(2, 5, 16))
    assert torch.equal(found(query, points, memory, shapes), found(query, points, memory, shapes, valid | True))


def test_bfloat16_autocast_is_near_float32() -> None:
    found = layer()
    torch.nn.init.normal_(found.sampling_offsets.weight, std=0.1)
    case = inputs()
    exact = found(*case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = found(*case)
    assert low.dtype == torch.bfloat16
    assert (low - exact).norm() < 0.03 * exact.norm()
    low.sum().backward()
    assert all(part.grad.dtype == torch.float32 for part in found.parameters())


def test_double_precision_stays_double() -> None:
    assert layer().double()(*inputs(dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_compiler_takes_it_in_one_graph(dynamic, monkeypatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # torch.compile cannot trace the checks
    torch.compiler.reset()
    found = layer()
    compiled = torch.compile(found, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for entries, valid in ((3, None), (6, torch.rand(2, VOXELS) > 0.5)):
        case = inputs(entries=entries)
        want = torch.autograd.grad(found(*case, valid).square().sum(), list(found.parameters()))
        got = torch.autograd.grad(compiled(*case, valid).square().sum(), list(found.parameters()))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("sizes", [{"queries": 0}, {"batch": 0}])
def test_nothing_in_nothing_out(sizes) -> None:
    assert layer()(*inputs(**sizes)).shape == (sizes.get("batch", 2), sizes.get("queries", 5), 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 20}, "dim is 20, wanted a multiple of the 8 heads"),
        ({"heads": 0}, "heads is 0, wanted 1 or more"),
        ({"points": 0}, "points is 0, wanted 1 or more"),
        ({"directions": "sphere"}, "directions is 'sphere', wanted one of auto, nndetection"),
        ({"backend": "cuda"}, "backend is 'cuda', wanted one of auto, triton, torch"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message, monkeypatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # whose messages come first
    with pytest.raises(ValueError, match=message):
        layer(**settings)


def test_inputs_that_do_not_fit_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    query, points, memory, shapes = inputs()
    valid = torch.ones(2, VOXELS, dtype=torch.bool)
    for case, message in (
        ((query[..., :8], points, memory, shapes), r"query has shape \(2, 5, 8\), wanted \(batch, queries, 16\)"),
        ((query, points, memory[:1], shapes), r"memory has shape \(1, 129, 16\), wanted \(2, voxels, 16\)"),
        ((query, points, memory, shapes[:1]), "spatial_shapes has 1 levels, the layer has 2"),
        ((query, points, memory, ((3, 5, 7), (2, 3, 5))), r"value has 129 voxels, its levels .* have 135"),
        ((query, points[..., :2], memory, shapes), r"places have shape \(2, 5, 2\), wanted"),
        ((query, points[:, :4], memory, shapes), r"reference_points has shape \(2, 4, 3\), wanted \(2, 5, 3\)"),
        ((query, points.bfloat16(), memory, shapes), "reference_points is torch.bfloat16, wanted torch.float32"),
        ((query, points, memory, shapes, valid[:, :5]), r"of shape \(2, 5\), wanted torch.bool of shape \(2, 129\)"),
        ((query, points, memory, shapes, valid.float()), "valid is torch.float32 of shape .*, wanted torch.bool"),
    ):
        with pytest.raises(ValueError, match=message):
            layer()(*case)
