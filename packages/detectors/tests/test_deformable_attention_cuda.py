"""The Triton kernels of deformable attention on a GPU."""

import importlib.util
import math
import runpy
import sys
from pathlib import Path

import pytest
import torch

from girih_detectors.ops import deformable_attention

TRITON = importlib.util.find_spec("triton") is not None
pytestmark = [
    pytest.mark.skipif(not TRITON, reason=f"Triton is not installed (platform {sys.platform})"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DEFINITIONS = runpy.run_path(str(Path(__file__).with_name("attention_cases.py")))
draw, shuffled, check = (DEFINITIONS[name] for name in ("draw", "shuffled", "check"))
COMPARABLE = DEFINITIONS["COMPARABLE"]
ON_GPU = {  # of the output and of the gradients, whose atomics have no order; and the root mean square error of both
    torch.float64: ((1e-12, 1e-11), 1e-11),
    torch.float32: ((1e-5, 1e-4), 1e-4),
    torch.bfloat16: ((2e-2, 2e-2), 5e-3),
    torch.float16: ((3e-3, 3e-3), 1e-3),
}

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
    limits, rmse = ON_GPU[case["value"].dtype]
    check(found, case, limits=limits, rmse=rmse)


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


@pytest.mark.parametrize(("batch", "shape"), [(1, (257, 256, 256)), (3, (64, 512, 256))], ids=["one item", "three"])
def test_cuda_counts_more_numbers_than_32_bits_can(batch, shape) -> None:
    """At opposite corners of the last item; the corner of a volume keeps an eighth of its voxel."""
    free, wanted = torch.cuda.mem_get_info()[0], 8 * 2 * 64 * batch * math.prod(shape) + 2**30
    if free < wanted:
        pytest.skip(f"{free / 2**30:.0f} GB are free on the device, wanted {wanted / 2**30:.0f}")
    value = torch.zeros(batch, math.prod(shape), 2, 64, dtype=torch.float16, device="cuda")
    assert value.numel() > 2**31
    value[-1, 0], value[-1, -1] = 3, 5
    places = torch.tensor([0.0, 1.0], device="cuda").view(1, 2, 1, 1, 1, 1).expand(batch, 2, 2, 1, 1, 3)
    weights = torch.ones(batch, 2, 2, 1, 1, dtype=torch.float16, device="cuda")
    out = deformable_attention(value, (shape,), places, weights, backend="triton")
    assert (out[-1, 0] == 3 / 8).all()
    assert (out[-1, 1] == 5 / 8).all()
    assert not out[:-1].any()
    leaf = value.requires_grad_()
    deformable_attention(leaf, (shape,), places, weights, backend="triton").sum().backward()
    for corner in (0, -1):
        assert (leaf.grad[:, corner] == 1 / 8).all()
    assert leaf.grad.count_nonzero() == batch * 2 * 128
