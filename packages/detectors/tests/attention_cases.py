"""Cases of deformable attention, their answers in float64 and what runs the Triton kernels on them; see `test_*.py`."""

import os
import subprocess
import sys

import torch

from girih_detectors.ops.deformable_attention_reference import (
    deformable_attention_reference,
    fused_deformable_attention_reference,
)

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}  # of the largest
PYRAMID = ((5, 6, 7), (3, 3, 4), (2, 1, 3), (1, 1, 1))


def draw(dtype, form, batch, queries, heads, channels, levels, points, *, tile=64):
    """One random case; form 0 is locations and weights, 3 or 6 is the length of reference points."""
    shapes = PYRAMID[:levels]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    many = (batch, queries, heads, levels, points)
    return {
        "shapes": shapes,
        "value": torch.randn(batch, sum(d * h * w for d, h, w in shapes), heads, channels).to(dtype),
        "reference": torch.rand(batch, queries, form, dtype=wide) * 1.2 - 0.1 if form else None,
        "places": torch.randn(*many, 3).to(dtype) if form else torch.rand(*many, 3, dtype=wide) * 1.4 - 0.2,
        "scores": (torch.randn(many) * 3).to(dtype) if form else torch.rand(many).to(dtype) - 0.3,
        "gradient": torch.randn(batch, queries, heads * channels).to(dtype),
        "tile": tile,
    }


def shuffled(case):
    order = torch.randperm(case["places"].shape[1])
    return case | {name: case[name][:, order] for name in ("places", "scores", "gradient")}


def spanning():
    """{name: case}: every dtype with every form; channels, levels, points and batches spread over them."""
    rows = {
        ("float32", 0): (2, 5, 2, 8, 2, 1),
        ("float32", 3): (1, 7, 1, 12, 1, 4),
        ("float32", 6): (2, 3, 1, 16, 3, 1),
        ("float64", 0): (1, 5, 1, 32, 1, 4),
        ("float64", 3): (1, 4, 1, 8, 4, 1),
        ("float64", 6): (1, 6, 1, 12, 2, 3),
        ("bfloat16", 0): (1, 9, 1, 64, 4, 1),
        ("bfloat16", 3): (1, 5, 2, 16, 2, 1),
        ("bfloat16", 6): (1, 3, 1, 32, 1, 4),
        ("float16", 0): (1, 6, 1, 12, 1, 4),
        ("float16", 3): (1, 4, 1, 64, 3, 1),
        ("float16", 6): (1, 5, 2, 8, 1, 1),
    }
    return {f"{name} {form}": draw(DTYPES[name], form, *row) for (name, form), row in rows.items()}


def special():
    """{name: case} of hard inputs; those in `COMPARABLE` have an answer in float64."""
    far = draw(torch.float32, 0, 1, 6, 1, 8, 2, 2)
    far["places"] = torch.tensor([-0.3, 1.4, torch.nan, torch.inf, -torch.inf, 1e30, -3e38]).repeat(11)[: 6 * 4 * 3]
    far["places"] = far["places"].view(1, 6, 1, 2, 2, 3)
    some = draw(torch.float32, 0, 1, 6, 1, 8, 2, 2)
    some["places"].view(-1)[::5] = torch.nan
    some["places"].view(-1)[3::7] = torch.inf
    offsets = draw(torch.float32, 6, 1, 6, 1, 8, 1, 2)
    offsets["places"].view(-1)[::5] = torch.nan
    offsets["reference"][0, 1, 4] = torch.inf
    logits = draw(torch.float32, 3, 1, 6, 1, 8, 2, 2)
    logits["scores"] = torch.tensor([80.0, -80.0, -torch.inf, 0.0, 79.0]).repeat(5)[:24].view(1, 6, 1, 2, 2)
    strided = draw(torch.float32, 0, 2, 5, 1, 8, 1, 2)
    strided["value"] = strided["value"].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    strided["places"] = strided["places"][:1].expand(2, -1, -1, -1, -1, -1)
    strided["scores"] = strided["scores"].transpose(1, 4).contiguous().transpose(1, 4)
    strided["gradient"] = torch.ones(()).expand(2, 5, 8)
    tail = draw(torch.float32, 6, 1, 10, 1, 12, 1, 1, tile=4)
    centres = draw(torch.float32, 0, 1, 64, 1, 8, 1, 1)
    cells = torch.cartesian_prod(torch.arange(4), torch.arange(2), torch.arange(8))
    centres |= {"shapes": ((4, 2, 8),), "value": torch.randn(1, 64, 1, 8), "scores": torch.ones(1, 64, 1, 1, 1)}
    centres["places"] = ((cells + 0.5) / torch.tensor([4, 2, 8])).flip(-1).view(1, 64, 1, 1, 1, 3)
    ramp = draw(torch.float32, 0, 1, 40, 1, 3, 1, 1)
    z, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in (3, 5, 7)), indexing="ij")
    ramp |= {"shapes": ((3, 5, 7),), "value": torch.stack([x, y, z], -1).view(1, 105, 1, 3)}
    ramp["scores"] = torch.ones(1, 40, 1, 1, 1)
    ramp["places"] = (torch.rand(1, 40, 1, 1, 1, 3) * torch.tensor([6.0, 4, 2]) + 0.5) / torch.tensor([7.0, 5, 3])
    crowd = draw(torch.float32, 0, 1, 64, 1, 8, 1, 4)
    crowd["places"] = (torch.tensor([3.1, 3.1, 2.1]) + 0.5).div(torch.tensor([7.0, 6, 5])).expand(1, 64, 1, 1, 4, 3)
    crowd |= {"gradient": torch.ones(1, 64, 8), "scores": torch.full((1, 64, 1, 1, 4), 0.99)}
    unlike = draw(torch.float32, 0, 3, 5, 1, 8, 1, 1)  # batch items
    unlike["gradient"] *= torch.tensor([1e-20, 1, 1e20]).view(3, 1, 1)
    unlike["scores"] *= torch.tensor([1e-5, 1, 1e5]).view(3, 1, 1, 1, 1)
    huge, tiny = (draw(torch.float64, 0, 1, 5, 1, 8, 1, 1) for _ in range(2))
    huge["gradient"] *= 1e60
    tiny["gradient"] *= 1e-60
    broken = draw(torch.float32, 3, 2, 6, 1, 8, 1, 1)
    broken["reference"][:], broken["places"][:], broken["gradient"][0, 2, 3] = 0.5, 0.1, torch.nan
    blown = draw(torch.float32, 3, 2, 6, 1, 8, 1, 2)
    blown["reference"][:], blown["places"][:], blown["scores"][0, 3, 0, 0, 1] = 0.5, 0.1, torch.inf
    found = {
        "all far away": far,
        "some are no numbers": some,
        "offsets that are no numbers": offsets,
        "large logits": logits,
        "strided and expanded": strided,
        "a tail of queries": tail,
        "centres": centres,
        "ramp": ramp,
        "all in one cell": crowd,
        "unlike items": unlike,
        "huge gradients": huge,
        "tiny gradients": tiny,
        "in order": draw(torch.float32, 0, 1, 40, 1, 8, 1, 2),
        "a gradient is NaN": broken,
        "a logit is infinite": blown,
        "subsets 0": draw(torch.float32, 0, 1, 3, 1, 4, 1, 1),
        "subsets 6": draw(torch.float32, 6, 1, 3, 1, 4, 1, 1),
        "no queries": draw(torch.float32, 0, 1, 0, 2, 8, 2, 2),
        "no batch": draw(torch.bfloat16, 6, 0, 3, 1, 8, 1, 1),
    }
    return found | {"shuffled": shuffled(found["in order"])}


COMPARABLE = {  # and how much more of a rounding error they may have
    "some are no numbers": 1,
    "large logits": 1,
    "strided and expanded": 1,
    "a tail of queries": 1,
    "in order": 1,
    "all in one cell": 10,  # 256 roundings in a row
    "huge gradients": 1,
    "tiny gradients": 1,
}


def oracle(case):
    """Output and gradients in float64."""
    names = ["value", "places", "scores"] if case["reference"] is None else ["value", "reference", "places", "scores"]
    inputs = [case[name].double().clone().requires_grad_() for name in names]
    attend = deformable_attention_reference if len(inputs) == 3 else fused_deformable_attention_reference
    out = attend(inputs[0], case["shapes"], *inputs[1:])
    return out.detach(), torch.autograd.grad(out, inputs, case["gradient"].double())


def check(found, case, scale=1.0, limits=None, rmse=1.0):
    """Everything within its limit of the largest number of its kind, and of the input's dtype.

    The limits are of the output and of the gradients, by default the dtype's tolerance times `scale`; `rmse` is that of
    the root mean square error over the root mean square.
    """
    out, grads = oracle(case)
    of_out, of_grads = limits or (TOLERANCES[case["value"].dtype] * scale,) * 2
    inputs = [case[name] for name in ("value", "reference", "places", "scores") if case[name] is not None]
    rows = [(found["out"], out, case["value"], of_out)]
    for kind in ("grads", "fixed"):
        rows += zip(found[kind], grads, inputs, [of_grads] * len(grads), strict=True)
    for got, want, like, limit in rows:
        assert got.dtype == like.dtype
        assert got.shape == want.shape
        got = got.double().cpu()
        torch.testing.assert_close(got, want, rtol=0, atol=limit * want.abs().max().item())
        assert (got - want).norm() <= rmse * want.norm()


LAUNCH = """
import functools, itertools, sys, torch
from girih_detectors.ops import deformable_attention_triton as ops

def launchers(case):
    inputs = [case[key] for key in ("value", "shapes", "reference", "places", "scores") if case[key] is not None]
    forward, backward = (ops.forward, ops.backward) if len(inputs) == 4 else (ops.fused_forward, ops.fused_backward)
    return functools.partial(forward, *inputs), functools.partial(backward, case["gradient"], *inputs)

def launch(case):
    forward, backward = launchers(case)
    every = (True,) * (3 if case["reference"] is None else 4)
    grads, fixed = (list(backward(needs=every, deterministic=mode)) for mode in (False, True))
    return {"out": forward(), "grads": grads, "fixed": fixed}

def subsets(case):
    every = list(itertools.product([False, True], repeat=3 if case["reference"] is None else 4))
    chosen = every[: len(every) // 2 + 2]  # none of the value's, and two with it
    return {needs: list(launchers(case)[1](needs=needs, deterministic=False)) for needs in chosen}
"""


def run(code, *arguments, **environment) -> str:
    """Run Python code in a process of its own, without the interpreter unless the environment asks for it."""
    plain = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=plain | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout
