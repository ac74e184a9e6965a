"""The Triton NMS: the very kernels run in its interpreter, and are compiled for two GPUs without one.

Triton obeys TRITON_INTERPRET as it stands when the kernels are imported, so both happen in processes of their own.
"""

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from girih_detectors import class_nms
from girih_detectors.ops import backends

TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not TRITON, reason=f"Triton is not installed (platform {sys.platform})")


DEFINITIONS = runpy.run_path(str(Path(__file__).with_name("definitions.py")))


def crowd(n, spread, classes=2):
    return DEFINITIONS["crowd"](n, 0, spread, classes)


def thirds(n):
    """Pairs that overlap by exactly one third, of all sizes, one class each: one rounding too many and some fall."""
    side = torch.rand(n, 3) * 100
    first = torch.cat([torch.zeros(n, 3), side], dim=1)
    second = first + torch.nn.functional.pad(side[:, :1] / 2, (0, 2)).repeat(1, 2)
    labels = torch.arange(n)
    return torch.cat([first, second]), torch.ones(2 * n), labels.repeat(2)


def cases():
    """{name: (boxes, scores, labels, threshold, words per panel)}; a word is 64 boxes."""
    torch.manual_seed(0)
    chain = torch.tensor([[0.0, 0, 0, 4, 4, 4], [0, 0, 2, 4, 4, 6], [0, 0, 4, 4, 4, 8]])
    odd = crowd(80, 10.0)
    odd[0][::7, 4], odd[0][3::7, 3], odd[0][5::7, :3] = torch.nan, torch.inf, -torch.inf
    odd[1][::5] = torch.nan
    flat = crowd(70, 6.0)
    flat[0][::2, 4] = flat[0][::2, 1]
    few, *rest = crowd(60, 6.0)
    found = {
        "none": (*crowd(0, 4.0), 0.1, 32),
        "one": (*crowd(1, 4.0), 0.1, 32),
        "a chain of three": (chain, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64), 0.1, 32),
        "all the same": (torch.ones(70, 6).cumsum(1), torch.zeros(70), torch.zeros(70, dtype=torch.int64), 0.5, 1),
        "flat boxes": (*flat, 0.0, 32),
        "NaN and infinity": (*odd, 0.1, 1),
        "exactly one third": (*thirds(60), 1 / 3, 1),
        "half precision": (few.bfloat16(), *rest, 0.2, 32),
        "large numbers": (few + 1e6, *rest, 0.2, 32),
        "one word": (*crowd(64, 8.0), 0.1, 32),
        "one word and a box": (*crowd(65, 8.0), 0.1, 32),
        "threshold 1": (*crowd(60, 10.0), 1.0, 32),
    }
    for panel_words in (1, 2):
        found[f"{panel_words} words a panel"] = (*crowd(140, 12.0, classes=3), 0.2, panel_words)
    return found


CASES = cases()


def run(code, *arguments, **environment) -> str:
    """Run Python code in a process of its own, without the interpreter unless the environment asks for it."""
    plain = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=plain | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


INTERPRET = """
import sys, torch
from girih_detectors import class_nms
from girih_detectors.ops import nms_triton

torch.set_num_threads(1)
found = {}
greedy = nms_triton.greedy_stays
for name, (*case, panel_words) in torch.load(sys.argv[1]).items():
    nms_triton.greedy_stays = lambda *args: greedy(*args, panel_words=panel_words)
    found[name] = class_nms(*case, backend="triton")
found["first three"] = class_nms(*case, 3, backend="triton")
torch.save(found, sys.argv[2])
"""


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """{name of the case: kept indices} of the Triton kernels."""
    folder = tmp_path_factory.mktemp("interpreted")
    torch.save(CASES, folder / "cases.pt")
    run(INTERPRET, folder / "cases.pt", folder / "found.pt", TRITON_INTERPRET="1")
    return torch.load(folder / "found.pt")


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_the_kernels_keep_what_torch_keeps(name, interpreted) -> None:
    *case, _ = CASES[name]
    want = class_nms(*case, backend="torch")
    assert interpreted[name].tolist() == want.tolist()
    if torch.isfinite(case[0]).all():
        assert want.tolist() == DEFINITIONS["greedy_nms"](*case).tolist()


@needs_triton
def test_max_keep_is_the_head_of_the_answer(interpreted) -> None:
    last = list(CASES)[-1]
    assert interpreted["first three"].tolist() == interpreted[last].tolist()[:3]


PLAIN = """
import pathlib, subprocess, tempfile
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from girih_detectors import class_nms
from girih_detectors.ops import nms_triton as ops
from girih_detectors.ops.boxes import TINY

COUNTS = ("n", "words", "first_word", "steps", "behind")
TYPES = {"corners": "*fp32", "threshold": "fp32"} | dict.fromkeys(COUNTS, "i32")
CONSTANTS = {
    "_compare": ({"tiny": TINY, "rows": ops.ROWS}, 4),
    "_decide": ({"panel_words": ops.PANEL_WORDS}, 1),
    "_spread": ({"width": ops.WIDTH}, 1),
}
TOOLS = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

def output(tool, *arguments):
    return subprocess.run([TOOLS / tool, *arguments], check=True, capture_output=True, text=True).stdout

def compile(name, capability):
    kernel, (constants, warps) = getattr(ops, name), CONSTANTS[name]
    types = TYPES | dict.fromkeys(constants, "constexpr")
    signature = {key: types.get(key, "*i64") for key in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, key in enumerate(kernel.arg_names) if signature[key][0] == "*"}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": warps, "enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm

for capability in (80, 90):
    for name in CONSTANTS:
        built = compile(name, capability)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(built["cubin"])
            file.flush()
            usage = output("cuobjdump", "--dump-resource-usage", file.name).splitlines()
            code = output("nvdisasm", "-c", file.name)
        spilled, ptx = code.count("LDL") + code.count("STL"), built["ptx"]
        print(f"{name}@{capability}", *(line for line in usage if "REG:" in line), f"SPILLED:{spilled}", end=" ")
        print(f"FUSED:{ptx.count('fma.rn.f32')} DIVIDED:{ptx.count('div.rn.f32')} FLUSHED:{ptx.count('.ftz')}")
try:
    class_nms(torch.zeros(1, 6), torch.zeros(1), torch.zeros(1, dtype=torch.int64), 0.1, backend="triton")
except ValueError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> list[str]:
    """Lines printed by a process without the interpreter."""
    return run(PLAIN, TRITON_CACHE_DIR=str(tmp_path_factory.mktemp("cache"))).splitlines()


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_without_spills_or_fused_rounding(capability, plain) -> None:
    mine = [line for line in plain if line.split()[0].endswith(f"@{capability}")]
    found = {line.split("@")[0]: {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", line)} for line in mine}
    assert set(found) == {"_compare", "_decide", "_spread"}
    for numbers in found.values():
        assert numbers["REG"] <= 96  # 52 to 72 were seen
        assert numbers["STACK"] == numbers["SPILLED"] == numbers["FUSED"] == numbers["FLUSHED"] == 0
    assert found["_compare"]["DIVIDED"] > 0


@needs_triton
def test_explicit_triton_does_not_fall_back_on_the_cpu(plain) -> None:
    assert "'triton' of nms wants tensors on a CUDA device, these are on cpu" in plain[-1]


@needs_triton
def test_more_boxes_than_the_kernels_can_count_are_refused() -> None:
    from girih_detectors.ops.nms_triton import LIMIT, greedy_stays

    corners, labels = torch.empty(6, LIMIT, device="meta"), torch.empty(LIMIT, dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match="67108864 boxes, the Triton NMS takes fewer than 67108864"):
        greedy_stays(corners, labels, 0.5)


@pytest.fixture(params=["not installed", "broken"])
def no_triton(request, monkeypatch, tmp_path):
    if request.param == "broken":
        (tmp_path / "triton.py").write_text("raise ImportError('libcuda.so.1 cannot be opened')")
        monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "triton"]:
        monkeypatch.delitem(sys.modules, name)
    if request.param == "not installed":
        monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "girih_detectors.ops.nms_triton", raising=False)
    backends._warn_once.cache_clear()


@pytest.mark.usefixtures("no_triton")
def test_without_triton_auto_says_so_once_and_triton_fails() -> None:
    assert backends.triton_module("nms_triton", "auto", torch.device("cpu")) is None
    with pytest.warns(UserWarning, match=r"pip install 'girih-detectors\[triton\]'"):
        assert backends.triton_module("nms_triton", "auto", torch.device("cuda")) is None
    assert backends.triton_module("nms_triton", "auto", torch.device("cuda")) is None  # a second warning is an error
    with pytest.raises(ImportError, match="Triton for nms cannot be had"):
        class_nms(*crowd(2, 4.0), 0.1, backend="triton")
    assert len(class_nms(*crowd(2, 4.0), 0.1)) > 0


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_keeps_what_the_cpu_keeps() -> None:
    for *case, _ in [*CASES.values(), (*crowd(10_000, 100.0), 0.2, 32)]:
        want = class_nms(*case, backend="torch")
        on_gpu = [part.cuda() if isinstance(part, torch.Tensor) else part for part in case]
        assert class_nms(*on_gpu).tolist() == class_nms(*on_gpu, backend="torch").tolist() == want.tolist()


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_nothing_goes_through_the_host() -> None:
    from girih_detectors.ops.nms_triton import greedy_stays

    boxes, _, labels = (part.cuda() for part in crowd(5000, 50.0))
    corners = boxes.T.contiguous()
    want = greedy_stays(corners, labels, 0.25)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = greedy_stays(corners, labels, 0.25)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found, want)
