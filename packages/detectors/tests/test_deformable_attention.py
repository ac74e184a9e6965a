"""The operators of deformable attention: gradients, types, tracing, backends and bad input, on the CPU."""

import importlib.util
import inspect
import itertools
import os
import subprocess
import sys
import warnings
from types import ModuleType

import jaxtyping
import pytest
import torch
from torch.utils import deterministic as torch_deterministic

from girih_detectors.ops import backends, deformable_attention, fused_deformable_attention
from girih_detectors.ops import deformable_attention_torch as plain_torch
from girih_detectors.ops.deformable_attention_reference import (
    deformable_attention_reference,
    fused_deformable_attention_reference,
)

TRITON = importlib.util.find_spec("triton") is not None
SHAPES = ((3, 4, 5), (2, 1, 3))
VOXELS = 66


def plain(dtype=torch.float64, batch=2, queries=3, heads=2, channels=3, points=2):
    """value, locations, weights."""
    places = torch.promote_types(dtype, torch.float32)
    rows = (batch, queries, heads, len(SHAPES), points)
    value = torch.randn(batch, VOXELS, heads, channels, dtype=dtype)
    return value, 1.4 * torch.rand(*rows, 3, dtype=places) - 0.2, torch.randn(rows, dtype=dtype)


def fused(dtype=torch.float64, entries=3, **sizes):
    """value, reference points, offsets, logits."""
    value, places, logits = plain(dtype, **sizes)
    points = torch.rand(*places.shape[:2], entries, dtype=places.dtype)
    return value, points, 2 * torch.randn(places.shape, dtype=dtype), logits


CASES = {
    "plain": (plain, deformable_attention, deformable_attention_reference),
    "fused, points": (fused, fused_deformable_attention, fused_deformable_attention_reference),
    "fused, boxes": (
        lambda *a, **k: fused(*a, entries=6, **k),
        fused_deformable_attention,
        fused_deformable_attention_reference,
    ),
}
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
        with pytest.raises(ValueError, match=r"is torch\.bfloat16, wanted float32"):
            inspect.unwrap(op)(inputs[0], SHAPES, inputs[1].bfloat16(), *inputs[2:])
    low = [part.detach().bfloat16() for part in inputs]
    low[1] = inputs[1].detach()
    assert torch.equal(out, op(low[0], SHAPES, *low[1:]))
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert all(part.grad.dtype == torch.float32 and part.grad.any() for part in inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        double = make()
        assert op(double[0], SHAPES, *double[1:]).dtype == torch.float64


@every_case
def test_single_places_serve_double_values(make, op, reference) -> None:
    value, places, *others = make()
    single = places.float().requires_grad_()
    out = op(value, SHAPES, single, *others)
    torch.testing.assert_close(out, reference(value, SHAPES, single.double(), *others), rtol=1e-12, atol=1e-12)
    out.sum().backward()
    assert single.grad.dtype == torch.float32


# tracing


@pytest.fixture
def no_run_time_types(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # torch.compile cannot trace the checks
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@every_case
@pytest.mark.usefixtures("no_run_time_types")
def test_the_compiler_takes_it_in_one_graph(make, op, reference) -> None:
    inputs = [part.requires_grad_() for part in make()]
    compiled = torch.compile(lambda v, *rest: op(v, SHAPES, *rest).sin(), fullgraph=True, backend="aot_eager")
    eager = torch.autograd.grad(op(inputs[0], SHAPES, *inputs[1:]).sin().sum(), inputs)
    for found, want in zip(torch.autograd.grad(compiled(*inputs).sum(), inputs), eager, strict=True):
        torch.testing.assert_close(found, want)


@pytest.mark.usefixtures("no_run_time_types")
def test_the_compiler_takes_sizes_that_change_once() -> None:
    def attend(maps, places, weights):
        value = torch.cat([part.flatten(2).transpose(1, 2) for part in maps], 1)[:, :, None]
        return deformable_attention(value, [tuple(part.shape[2:]) for part in maps], places, weights)

    seen = []

    def count(graph, inputs):
        seen.append(graph)
        return graph.forward

    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend=count)
    for d, queries in ((5, 11), (6, 13), (8, 17)):  # no two sizes are equal by chance
        maps = [torch.randn(2, 3, d, d + 1, d + 2), torch.randn(2, 3, d - 1, d, d + 4)]
        places, weights = torch.rand(2, queries, 1, 2, 2, 3), torch.rand(2, queries, 1, 2, 2)
        torch.testing.assert_close(compiled(maps, places, weights), attend(maps, places, weights))
    assert len(seen) == 1


class Attend(torch.nn.Module):
    def __init__(self, op):
        super().__init__()
        self.op = op

    def forward(self, value, *others):
        return self.op(value, SHAPES, *others)


@every_case
@pytest.mark.usefixtures("no_run_time_types")
def test_export_keeps_one_node(make, op, reference) -> None:
    inputs = make(torch.float32)
    program = torch.export.export(Attend(op), inputs)
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert calls == [f"girih_detectors.{op.__name__}.default"]
    assert torch.equal(program.module()(*inputs), op(inputs[0], SHAPES, *inputs[1:]))


@every_case
@pytest.mark.usefixtures("no_run_time_types")
def test_the_operators_keep_torchs_rules(make, op, reference) -> None:
    extents = [extent for shape in SHAPES for extent in shape]
    value, *others = (part.requires_grad_() for part in make())
    operators = torch.ops.girih_detectors
    forward = getattr(operators, op.__name__).default
    torch.library.opcheck(forward, (value, extents, *others, "auto"))
    backward = getattr(operators, f"{op.__name__}_backward").default
    inputs = [part.detach() for part in (value, *others)]
    needs = [True, False, *[True] * (len(others) - 1)]
    upstream = torch.randn(2, 3, 6, dtype=torch.float64)
    torch.library.opcheck(backward, (upstream, inputs[0], extents, *inputs[1:], needs, "auto"))


@every_case
def test_a_device_without_memory_gives_shapes(make, op, reference) -> None:
    inputs = [part.to("meta").requires_grad_() for part in make()]
    out = op(inputs[0], SHAPES, *inputs[1:])
    assert out.shape == (2, 3, 6)
    out.sum().backward()
    assert all(part.grad.shape == part.shape for part in inputs)


# backends


class Recorder(ModuleType):
    """Launchers that note how they are called and let plain torch do the work."""

    def __init__(self):
        super().__init__("recorder")
        self.calls, self.INTERPRETED = [], True

    def __getattr__(self, name):
        work = getattr(plain_torch, name)

        def launch(*arguments, **settings):
            tensors = [part for part in arguments if isinstance(part, torch.Tensor)]
            self.calls.append((name, settings, all(part.is_contiguous() for part in tensors)))
            return work(*arguments, **settings)

        return launch


@pytest.fixture
def recorder(monkeypatch):
    kernels = Recorder()
    monkeypatch.setitem(sys.modules, "girih_detectors.ops.deformable_attention_triton", kernels)
    return kernels


@every_case
def test_triton_is_asked_for_what_is_needed(make, op, reference, recorder) -> None:
    inputs = make()
    inputs = [inputs[0].transpose(0, 1).contiguous().transpose(0, 1).requires_grad_(), *inputs[1:]]
    prefix = "fused_" if "fused" in op.__name__ else ""
    needs = (True, *[False] * (len(inputs) - 1))
    for deterministic in (False, True):
        recorder.calls.clear()
        torch.use_deterministic_algorithms(deterministic)
        try:
            op(inputs[0], SHAPES, *inputs[1:], backend="triton").sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)
        assert recorder.calls == [
            (f"{prefix}forward", {}, True),
            (f"{prefix}backward", {"needs": needs, "deterministic": deterministic}, True),
        ]


def test_auto_is_torch_on_the_cpu_and_triton_on_cuda(recorder) -> None:
    name = "deformable_attention_triton"
    assert backends.triton_module(name, "auto", torch.device("cpu")) is None
    assert backends.triton_module(name, "torch", torch.device("cuda")) is None
    assert backends.triton_module(name, "auto", torch.device("cuda")) is recorder
    assert backends.triton_module(name, "triton", torch.device("cpu")) is recorder
    recorder.INTERPRETED = False
    assert backends.triton_module(name, "triton", torch.device("cuda")) is recorder
    with pytest.raises(ValueError, match="wants tensors on a CUDA device, these are on cpu"):
        deformable_attention(plain()[0], SHAPES, *plain()[1:], backend="triton")


def test_without_triton_auto_says_so_once_and_triton_fails(monkeypatch) -> None:
    name = "deformable_attention_triton"
    monkeypatch.setitem(sys.modules, f"girih_detectors.ops.{name}", None)
    backends._warn_once.cache_clear()
    with pytest.warns(
        UserWarning, match=r"deformable_attention cannot be had.*pip install 'girih-detectors\[triton\]'"
    ):
        assert backends.triton_module(name, "auto", torch.device("cuda")) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.triton_module(name, "auto", torch.device("cuda")) is None
    with pytest.raises(ImportError, match="Triton for deformable_attention cannot be had"):
        deformable_attention(plain()[0], SHAPES, *plain()[1:], backend="triton")
    assert deformable_attention(plain()[0], SHAPES, *plain()[1:]).shape == (2, 3, 6)


def test_neither_the_package_nor_the_cpu_imports_triton() -> None:  # torch does so itself, at an operator's first call
    code = (
        "import sys, torch; from girih_detectors.ops import deformable_attention; one = torch.ones(1, 1, 1, 1, 1)\n"
        "assert 'triton' not in sys.modules\n"
        "deformable_attention(one[0], [(1, 1, 1)], one[..., None].expand(1, 1, 1, 1, 1, 3), one)\n"
        "assert 'girih_detectors.ops.deformable_attention_triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


INTERPRETED = """
import torch
from girih_detectors import DeformableAttention3D
from girih_detectors.ops import deformable_attention, fused_deformable_attention

torch.set_num_threads(1)
torch.manual_seed(0)
double = {"dtype": torch.float64, "requires_grad": True}
value, logits = torch.randn(1, 6, 1, 2, **double), torch.randn(1, 2, 1, 1, 1, **double)
shapes, extents, rows = ((2, 3, 1),), [2, 3, 1], (1, 2, 1, 1, 1, 3)
cases = {
    deformable_attention: (value, torch.rand(*rows, **double), logits),
    fused_deformable_attention: (value, torch.rand(1, 2, 6, **double), torch.randn(*rows, **double), logits),
}
for op, parts in cases.items():
    on_triton = lambda v, *others: op(v, shapes, *others, backend="triton")
    compiled = torch.compile(on_triton, fullgraph=True, backend="aot_eager")
    want = torch.autograd.grad(op(value, shapes, *parts[1:], backend="torch").square().sum(), parts)
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        for run in (on_triton, compiled):
            found = torch.autograd.grad(run(*parts).square().sum(), parts)
            torch.testing.assert_close(found, want, rtol=1e-7, atol=1e-9)
    torch.use_deterministic_algorithms(False)
    assert torch.autograd.gradcheck(on_triton, parts, fast_mode=True)
    operator = getattr(torch.ops.girih_detectors, op.__name__).default
    torch.library.opcheck(operator, (value, extents, *parts[1:], "triton"))

layer = DeformableAttention3D(8, 2, 1, 1, backend="triton")
twin = DeformableAttention3D(8, 2, 1, 1, backend="torch")
twin.load_state_dict(layer.state_dict())
case = torch.randn(1, 2, 8), torch.rand(1, 2, 6), torch.randn(1, 6, 8), shapes
with torch.autocast("cpu", dtype=torch.bfloat16):
    found, want = layer(*case), twin(*case)
torch.testing.assert_close(found, want, rtol=2e-2, atol=1e-2)
found.sum().backward()
assert all(part.grad is not None for part in layer.parameters())
print("all agree")
"""


@pytest.mark.skipif(not TRITON, reason=f"Triton is not installed (platform {sys.platform})")
def test_the_operators_and_the_layer_run_on_the_kernels() -> None:  # in Triton's interpreter
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "all agree", done.stderr


on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@on_cuda
@every_case
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_cuda_waits_for_nothing(make, op, reference, backend) -> None:
    inputs = [part.cuda().requires_grad_() for part in make(torch.float32)]
    upstream = torch.randn(2, 3, 6, device="cuda")

    def both():
        return torch.autograd.grad(op(inputs[0], SHAPES, *inputs[1:], backend=backend), inputs, upstream)

    want = both()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = both()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@on_cuda
@every_case
@pytest.mark.usefixtures("no_run_time_types")
def test_inductor_takes_it_on_cuda(make, op, reference) -> None:
    inputs = [part.cuda().requires_grad_() for part in make(torch.float32)]
    compiled = torch.compile(lambda v, *rest: op(v, SHAPES, *rest).sin(), fullgraph=True)
    want = torch.autograd.grad(op(inputs[0], SHAPES, *inputs[1:]).sin().sum(), inputs)
    for found, eager in zip(torch.autograd.grad(compiled(*inputs).sum(), inputs), want, strict=True):
        torch.testing.assert_close(found, eager, rtol=1e-4, atol=1e-5)


@on_cuda
@every_case
def test_deterministic_cuda_is_triton_or_an_error(make, op, reference) -> None:
    inputs = [part.cuda().requires_grad_() for part in make(torch.float32)]
    torch.use_deterministic_algorithms(True)
    try:
        op(inputs[0], SHAPES, *inputs[1:], backend="triton").sum().backward()
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            op(inputs[0], SHAPES, *inputs[1:], backend="torch").sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


# bad input


def refused(op, match, value, shapes, *others, **settings) -> None:
    with pytest.raises(ValueError, match=match):
        inspect.unwrap(op)(value, shapes, *others, **settings)


def test_what_does_not_fit_is_refused_with_both_sides_named() -> None:
    value, places, weights = plain(torch.float32)
    op = deformable_attention
    refused(op, "backend is 'cuda', wanted one of auto, triton, torch", value, SHAPES, places, weights, backend="cuda")
    refused(op, r"value has 66 voxels, its levels .* have 60", value, SHAPES[:1], places, weights)
    refused(
        op,
        r"value has shape \(2, 66, 6\), wanted \(batch, voxels, heads, channels\)",
        value.flatten(2),
        SHAPES,
        places,
        weights,
    )
    refused(op, r"value is torch.int64, wanted one of torch.float32", value.long(), SHAPES, places, weights)
    refused(op, "spatial_shapes is a tensor", value, torch.tensor(SHAPES), places, weights)
    refused(op, r"spatial_shapes is \[\]", value, [], places, weights)
    refused(op, r"wanted one \(D, H, W\) or more", value, [(3, 4), (2, 3)], places, weights)
    refused(op, "each at least 1", value, [(3, 4, 5), (2, 3, 1), (0, 1, 1)], places, weights)
    wanted = r"sampling_locations has shape .*, wanted \(2, any, 2, 2, any, 3\)"
    refused(op, wanted, value, SHAPES, places[..., :2], weights)
    refused(op, wanted, value, SHAPES, places[:1], weights)
    refused(op, wanted, value, SHAPES, places[:, :, :, :1], weights)
    refused(op, wanted, value, SHAPES, places[:, :, 0], weights)
    refused(
        op,
        r"attention_weights has shape \(2, 3, 2, 2, 1\), wanted \(2, 3, 2, 2, 2\)",
        value,
        SHAPES,
        places,
        weights[..., :1],
    )
    refused(op, "sampling_locations is torch.float16, wanted float32", value, SHAPES, places.half(), weights)
    refused(op, "float64 only with float64 values; value is torch.float32", value, SHAPES, places.double(), weights)
    refused(
        op,
        "attention_weights is torch.float64, wanted torch.float32, which value is",
        value,
        SHAPES,
        places,
        weights.double(),
    )
    refused(op, "attention_weights is on meta, wanted cpu", value, SHAPES, places, weights.to("meta"))
    refused(op, "sampling_locations is on meta, wanted cpu", value, SHAPES, places.to("meta"), weights)


def test_what_does_not_fit_the_fused_one_is_refused_too() -> None:
    value, points, offsets, logits = fused(torch.float32)
    op = fused_deformable_attention
    refused(
        op,
        r"reference_points has shape \(2, 3, 4\), wanted \(2, 3, 3\)",
        value,
        SHAPES,
        points.new_ones(2, 3, 4),
        offsets,
        logits,
    )
    refused(op, r"reference_points has shape \(\), wanted \(2, 3, 3\)", value, SHAPES, points.sum(), offsets, logits)
    refused(op, "reference_points is torch.bfloat16, wanted float32", value, SHAPES, points.bfloat16(), offsets, logits)
    refused(
        op, r"offsets has shape .*, wanted \(2, any, 2, 2, any, 3\)", value, SHAPES, points, offsets[..., :2], logits
    )
    refused(
        op,
        r"logits has shape \(2, 2, 2, 2, 2\), wanted \(2, 3, 2, 2, 2\)",
        value,
        SHAPES,
        points,
        offsets,
        logits[:, :2],
    )
    refused(op, "offsets is torch.float64, wanted torch.float32", value, SHAPES, points, offsets.double(), logits)
    refused(op, "logits is on meta, wanted cpu", value, SHAPES, points, offsets, logits.to("meta"))
