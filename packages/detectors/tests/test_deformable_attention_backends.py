"""What the operators of deformable attention run on, and that it is the same."""

import importlib.util
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch

from girih_detectors.ops import backends, deformable_attention
from girih_detectors.ops import deformable_attention_torch as plain_torch

TRITON = importlib.util.find_spec("triton") is not None
INPUTS = runpy.run_path(str(Path(__file__).with_name("attention_inputs.py")))
CASES, SHAPES, plain = (INPUTS[name] for name in ("CASES", "SHAPES", "plain"))
every_case = pytest.mark.parametrize(("make", "op", "reference"), CASES.values(), ids=CASES)


class Recorder(ModuleType):
    """Launchers that note how they are called and let plain torch do the work."""

    def __init__(self):
        super().__init__("recorder")
        self.calls, self.INTERPRETED = [], True

    def __getattr__(self, name):
        work = getattr(plain_torch, name)

        def launch(*arguments, **settings):
            self.calls.append((name, settings))
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
    inputs = [inputs[0].requires_grad_(), *inputs[1:]]
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
            (f"{prefix}forward", {}),
            (f"{prefix}backward", {"needs": needs, "deterministic": deterministic}),
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
def test_deterministic_cuda_is_triton_or_an_error(make, op, reference) -> None:
    inputs = [part.cuda().requires_grad_() for part in make(torch.float32)]
    torch.use_deterministic_algorithms(True)
    try:
        op(inputs[0], SHAPES, *inputs[1:], backend="triton").sum().backward()
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            op(inputs[0], SHAPES, *inputs[1:], backend="torch").sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
