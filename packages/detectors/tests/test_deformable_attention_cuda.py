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
TOLERANCES, COMPARABLE = DEFINITIONS["TOLERANCES"], DEFINITIONS["COMPARABLE"]
ON_GPU = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}

torch.manual_seed(0)
SPECIAL = DEFINITIONS["special"]()
CASES = DEFINITIONS["spanning"]() | {name: SPECIAL[name] for name in COMPARABLE}


def launchers(case, device="cuda"):
    """Forward and backward of a case whose tensors go to the device first."""
    names: dict = {}
    exec(DEFINITIONS["LAUNCH"], names)
    moved = {key: part.to(device) if isinstance(part, torch.Tensor) else part for key, part in case.items()}
    return names["launchers"](moved)


@pytest.mark.parametrize("device", range(torch.cuda.device_count()))
@pytest.mark.parametrize("name", CASES)
def test_cuda_agrees_with_plain_torch_in_float64(name, device) -> None:
    case = CASES[name]
    forward, backward = launchers(case, f"cuda:{device}")
    every = (True,) * (3 if case["reference"] is None else 4)
    found = {"out": forward()}
    for kind, deterministic in (("grads", False), ("fixed", True)):
        found[kind] = backward(needs=every, deterministic=deterministic)
    dtype = case["value"].dtype
    check(found, case, scale=ON_GPU[dtype] / TOLERANCES[dtype])


def test_cuda_gives_the_same_bits_twice_if_told_to() -> None:
    case = draw(torch.float32, 0, 2, 4000, 8, 32, 3, 4)
    backwards = [launchers(each)[1] for each in (case, case, shuffled(case))]
    first, *others = (each(needs=(True, False, False), deterministic=True)[0] for each in backwards)
    for other in others:
        assert torch.equal(other, first)


@pytest.mark.parametrize("form", [0, 6])
@pytest.mark.parametrize("deterministic", [False, True])
def test_cuda_graphs_capture_the_launches_and_nothing_goes_through_the_host(form, deterministic) -> None:
    case = draw(torch.float32, form, 1, 50, 2, 16, 2, 4)
    forward, backward = launchers(case)
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
