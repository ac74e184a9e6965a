"""The Triton kernels of deformable attention compiled for an A100 (sm_80) and an H100 (sm_90), without either."""

import ast
import importlib.util
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
from triton.compiler import ASTSource
from girih_detectors.ops import deformable_attention_kernels as kernels
from girih_detectors.ops import deformable_attention_triton as ops

TOOLS = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

def output(tool, *arguments):
    return subprocess.run([TOOLS / tool, *arguments], check=True, capture_output=True, text=True).stdout

def compile(name, dtype, channels, levels, points, form, cells, capability):
    kernel = kernels.attend if name == "forward" else kernels.attend_backward
    constants = ops.settings(name, getattr(torch, dtype), cells, 8, channels, levels, points, form)
    options = {key: constants.pop(key) for key in ("num_warps", "maxnreg", "enable_fp_fusion")}
    short = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"}[dtype]
    types = dict.fromkeys(constants, "constexpr") | dict.fromkeys(["queries", "cells"], "i32")
    types |= {"sizes": ("fp32",) * (3 * levels), "grad_value": "*fp32", "scale": "constexpr"}
    if name == "deterministic":
        types |= {"grad_value": "*i64", "scale": "*fp32"}
    types |= dict.fromkeys(["reference", "grad_reference"], "*fp32" if form else "constexpr")
    types |= dict.fromkeys(["places", "grad_places"], short if form else "*fp32")
    signature = {key: types.get(key, short) for key in kernel.arg_names}
    constants |= {key: None for key in signature if signature[key] == "constexpr" and key not in constants}
    aligned = {(i,): [["tt.divisibility", 16]] for i, key in enumerate(kernel.arg_names) if signature[key][0] == "*"}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm

for variant in ast.literal_eval(sys.argv[1]):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        built = compile(*variant)
        file.write(built["cubin"])
        file.flush()
        usage = dict(re.findall(r"(REG|STACK):(\\d+)", output("cuobjdump", "--dump-resource-usage", file.name)))
        code = output("nvdisasm", "-c", file.name)
    words = ["LDL", "STL", "CAS", "LDG.E.128", "RED.E.ADD", "REDG.E.ADD.F32x4", "E.ADD.64"]
    counted = {key: int(number) for key, number in usage.items()} | {word: code.count(word) for word in words}
    counted["CONVERTED"] = len(re.findall("^ {8,}.*convert_layout", built["ttgir"], re.M))  # in the loop over points
    print({"variant": variant} | counted)
"""


def compiled(variants, cache) -> list[dict]:
    """What registers and instructions each (kernel, dtype, channels, levels, points, form, cells, capability) takes."""
    lines = run(COMPILE, repr(variants), TRITON_CACHE_DIR=str(cache)).splitlines()
    return [ast.literal_eval(line) for line in lines]


def check_compiled(found) -> None:
    kernel, _, channels, *_, capability = found["variant"]
    assert found["REG"] <= 128, found
    assert found["STACK"] == found["LDL"] == found["STL"] == found["CAS"] == found["CONVERTED"] == 0, found
    if kernel == "forward":
        assert found["LDG.E.128"] >= 8 or channels % 8, found
    else:
        words = {("backward", 90): "REDG.E.ADD.F32x4", ("backward", 80): "RED.E.ADD"}
        assert found[words.get((kernel, capability), "E.ADD.64")] >= 8 or channels < 16, found


SUITE = [
    (kernel, dtype, 32, 3, 4, form, 4672, capability)
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
    variants = [
        (kernel, dtype, channels, levels, 4, form, cells, capability)
        for dtype in ("float32", "bfloat16", "float16")
        for channels in (8, 12, 16, 32, 64)
        for levels in (3, 4)
        for form in (0, 3, 6)
        for cells in (4672, 2**31)
        if cells == 4672 or (channels, levels) == (32, 4)
    ]
    found = compiled(variants, tmp_path)
    assert len(found) == len(variants)
    for each in found:
        check_compiled(each)
