"""The Triton kernels of deformable attention on a GPU."""

import importlib.util
import runpy
import sys
from pathlib import Path

import pytest
import torch

TRITON = importlib.util.find_spec("triton") is not None
pytestmark = [
    pytest.mark.skipif(not TRITON, reason=f"Triton is not installed (platform {sys.platform})"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DEFINITIONS = runpy.run_path(str(Path(__file__).with_name("attention_cases.py")))
draw, shuffled, check = (DEFINITIONS[name] for name in ("draw", "shuffled", "check"))
TOLERANCES = DEFINITIONS["TOLERANCES"]

torch.manual_seed(0)
SPANNING = DEFINITIONS["spanning"]()

ON_GPU = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.fixture
def on_gpu():
    """(launch, case on the GPU) for a case and a device."""
    names: dict = {}
    exec(DEFINITIONS["LAUNCH"], names)

    def launch(case, device="cuda"):
        return names["launchers"]({key: to(part, device) for key, part in case.items()})

    return launch


def to(part, device):
    return part.to(device) if isinstance(part, torch.Tensor) else part


@pytest.mark.parametrize("device", range(torch.cuda.device_count()))
@pytest.mark.parametrize("name", SPANNING)
def test_cuda_agrees_with_plain_torch_in_float64(name, device, on_gpu) -> None:
    case = SPANNING[name]
    forward, backward = on_gpu(case, f"cuda:{device}")
    every = (True,) * (3 if case["reference"] is None else 4)
    found = {"out": forward()}
    for kind, mode in (("grads", False), ("fixed", True)):
        found[kind] = backward(needs=every, deterministic=mode)
    dtype = case["value"].dtype
    check(found, case, scale=ON_GPU[dtype] / TOLERANCES[dtype])


def test_cuda_gives_the_same_bits_twice_if_told_to(on_gpu) -> None:
    case = draw(torch.float32, 0, 2, 4000, 8, 32, 3, 4)
    first, shuffled_ = on_gpu(case), on_gpu(shuffled(case))
    needs = (True, False, False)
    want = first[1](needs=needs, deterministic=True)[0]
    for _ in range(3):
        assert torch.equal(first[1](needs=needs, deterministic=True)[0], want)
    assert torch.equal(shuffled_[1](needs=needs, deterministic=True)[0], want)


@pytest.mark.parametrize("form", [0, 6])
@pytest.mark.parametrize("deterministic", [False, True])
def test_cuda_graphs_capture_the_launches_and_nothing_goes_through_the_host(form, deterministic, on_gpu) -> None:
    case = draw(torch.float32, form, 1, 50, 2, 16, 2, 4)
    forward, backward = on_gpu(case)
    needs = (True,) * (3 if form == 0 else 4)

    def both():
        return [forward(), *backward(needs=needs, deterministic=deterministic)]

    want = both()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        both()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = both()
    graph.replay()
    for got, expected in zip(found, want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
