"""The Triton kernels of deformable attention compiled for an A100 (sm_80) and an H100 (sm_90), without either.

The launchers go all the way up to the launch, on tensors of the CPU and a driver that only knows its target.
"""

import ast
import importlib.util
import itertools
import runpy
import sys
from pathlib import Path

import pytest

TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not TRITON, reason=f"Triton is not installed (platform {sys.platform})")

run = runpy.run_path(str(Path(__file__).with_name("attention_cases.py")))["run"]

COMPILE = """
import ast, pathlib, re, subprocess, sys, tempfile
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from girih_detectors.ops import deformable_attention_triton as ops

TOOLS = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

class Gpu:  # a driver that knows what to compile for
    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, device):
        return 0

class Compiler:  # stands for a kernel: compiles what would be launched
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.asm = self.kernel.warmup(*arguments, grid=grid, **options).asm
        return launch

ops.attend, ops.attend_backward = Compiler(ops.attend), Compiler(ops.attend_backward)
settings = ops.settings

def compile(name, dtype, channels, levels, points, form, index, capability):
    driver.set_active(Gpu(capability))
    ops.settings = lambda *arguments: settings(*arguments) | {"index": getattr(triton.language, index)}
    dtype = getattr(torch, dtype)
    places = torch.zeros(1, 1, 8, levels, points, 3, dtype=dtype if form else torch.float32)
    points = [torch.zeros(1, 1, form)] if form else []
    inputs = [torch.zeros(1, 8 * levels, 8, channels, dtype=dtype), ((2, 2, 2),) * levels, *points, places]
    inputs.append(places[..., 0].to(dtype))
    if name == "forward":
        (ops.fused_forward if form else ops.forward)(*inputs)
        return ops.attend.asm
    backward = ops.fused_backward if form else ops.backward
    needs = (True,) * (4 if form else 3)
    backward(torch.zeros(1, 1, 8 * channels, dtype=dtype), *inputs, needs=needs, deterministic=name == "deterministic")
    return ops.attend_backward.asm

def output(tool, *arguments):
    return subprocess.run([TOOLS / tool, *arguments], check=True, capture_output=True, text=True).stdout

for variant in ast.literal_eval(sys.argv[1]):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        built = compile(*variant)
        file.write(built["cubin"])
        file.flush()
        usage = dict(re.findall(r"(REG|STACK):(\\d+)", output("cuobjdump", "--dump-resource-usage", file.name)))
        code = output("nvdisasm", "-c", file.name)
    words = ["LDL", "STL", "CAS", "LDG.E.128", "RED.E.ADD", "REDG.E.ADD.F32x4", "REDG.E.ADD.F64", "E.ADD.64"]
    counted = {key: int(number) for key, number in usage.items()} | {word: code.count(word) for word in words}
    counted["CONVERTED"] = len(re.findall("^ {8,}.*convert_layout", built["ttgir"], re.M))  # in the loop over points
    print({"variant": variant} | counted)
"""


def compiled(variants, cache) -> list[dict]:
    """What registers and instructions each (kernel, dtype, channels, levels, points, form, index, capability) takes."""
    lines = run(COMPILE, repr(variants), TRITON_CACHE_DIR=str(cache)).splitlines()
    return [ast.literal_eval(line) for line in lines]


def check_compiled(found) -> None:
    kernel, dtype, channels, *_, capability = found["variant"]
    wide = dtype == "float64"
    assert found["REG"] <= (128 if not wide else 168 if kernel == "forward" else 255), found
    assert found["STACK"] == found["LDL"] == found["STL"] == found["CAS"] == 0, found
    assert found["CONVERTED"] == 0 or channels < 16, found  # a tile of 8 channels has one warp, which shuffles
    if kernel == "forward":
        assert found["LDG.E.128"] >= 8 or channels % 8, found
    else:
        vector = "REDG.E.ADD.F64" if wide else "REDG.E.ADD.F32x4"
        words = {("backward", 90): vector, ("backward", 80): "RED.E.ADD"}
        assert found[words.get((kernel, capability), "E.ADD.64")] >= 8 or channels < 16, found


SUITE = [
    (kernel, dtype, 32, 3, 4, form, "int32", capability)
    for capability in (80, 90)
    for kernel, dtype, form in [
        ("forward", "bfloat16", 0),
        ("forward", "bfloat16", 6),
        ("backward", "bfloat16", 0),
        ("backward", "bfloat16", 6),
        ("deterministic", "bfloat16", 0),
    ]
]


@needs_triton
def test_kernels_compile_for_two_gpus_without_spills(tmp_path) -> None:
    found = compiled(SUITE, tmp_path)
    assert [each["variant"] for each in found] == SUITE
    for each in found:
        check_compiled(each)


@needs_triton
@pytest.mark.long
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kernel", ["forward", "backward", "deterministic"])
def test_every_shipped_configuration_compiles_without_spills(kernel, capability, tmp_path) -> None:
    every = list(itertools.product((8, 12, 16, 32, 64), (0, 3, 6)))
    rows = [(dtype, *each, "int32") for dtype in ("float32", "bfloat16") for each in every]
    rows += [("float64", *each, "int32") for each in every[2::3]]  # all channels, with boxes
    rows += [("float64", 32, 0, "int32"), ("float16", 16, 3, "int32")]
    rows += [("float16", 64, 6, "int64"), ("float32", 32, 0, "int64"), ("bfloat16", 32, 6, "int64")]
    variants = [(kernel, dtype, channels, 4, 4, form, index, capability) for dtype, channels, form, index in rows]
    found = compiled(variants, tmp_path)
    assert len(found) == len(variants)
    for each in found:
        check_compiled(each)
