"""The operators of deformable attention under torch.compile, torch.export and without memory."""

import runpy
from pathlib import Path

import jaxtyping
import pytest
import torch

from girih_detectors.ops import deformable_attention

INPUTS = runpy.run_path(str(Path(__file__).with_name("attention_inputs.py")))
CASES, SHAPES = (INPUTS[name] for name in ("CASES", "SHAPES"))
every_case = pytest.mark.parametrize(("make", "op", "reference"), CASES.values(), ids=CASES)


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_case
@pytest.mark.usefixtures("no_run_time_types")
def test_inductor_takes_it_on_cuda(make, op, reference) -> None:
    inputs = [part.cuda().requires_grad_() for part in make(torch.float32)]
    compiled = torch.compile(lambda v, *rest: op(v, SHAPES, *rest).sin(), fullgraph=True)
    want = torch.autograd.grad(op(inputs[0], SHAPES, *inputs[1:]).sin().sum(), inputs)
    for found, eager in zip(torch.autograd.grad(compiled(*inputs).sum(), inputs), want, strict=True):
        torch.testing.assert_close(found, eager, rtol=1e-4, atol=1e-5)
