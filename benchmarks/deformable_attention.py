"""Speed and memory of 3D deformable attention against `grid_sample` per level, eager and compiled.

    python benchmarks/deformable_attention.py          # on a GPU all of it; else what plain torch does on the CPU
    python benchmarks/deformable_attention.py --tiny   # everything once, small; without a GPU in Triton's interpreter

Before anything is timed, outputs and all gradients have to agree with `grid_sample` in float64 on that very input;
otherwise the run stops. Times are medians in milliseconds, on a GPU those of `triton.testing.do_bench`, which empties
the L2 cache before each call. "both" is forward and backward together, MB its peak over what the inputs take (on the
CPU: in a process of its own, Linux).
bfloat16 is held against `grid_sample` as autocast runs it (values in bfloat16, sampled in float32). The gather rate is
what eight corners of every point weigh over the forward time; the device's copy rate stands beside it.

On a GPU, Markdown, CSV and a plot go to benchmarks/results; what follows "## Log" in the Markdown there stays.
"""

import argparse
import csv
import gc
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from girih_detectors import DeformableAttention3D, zyx_to_grid
from girih_detectors.deformable_attention import head_directions_zyx
from girih_detectors.ops import deformable_attention, fused_deformable_attention
from girih_detectors.ops.deformable_attention_reference import (
    centre_and_step,
    deformable_attention_reference,
    softmax,
    wide_dtype,
)

RESULTS = Path(__file__).with_name("results")
LOG = "\n## Log\n"
MARGIN = 0.1  # locations stay as far from where the derivative jumps, in voxels: float32 and float64 take the same side
# of the largest entry, out and gradients; float32 sums of atomics have no fixed order
TOLERANCE = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (2e-2, 2e-2)}
RMSE = {torch.float32: 1e-5, torch.bfloat16: 5e-3}  # of the whole, relative
Shapes = tuple[tuple[int, int, int], ...]


def cubes(*edges: int) -> Shapes:
    return tuple((edge,) * 3 for edge in edges)


@dataclass(frozen=True)
class Case:
    """What attends to what: the voxels of all levels to themselves (encoder), or a few queries to them (decoder)."""

    name: str
    shapes: Shapes
    queries: int | None = None
    batch: int = 2
    heads: int = 8
    points: int = 4


ENCODERS = (
    Case("encoder, 128^3, strides 8-32", cubes(16, 8, 4)),
    Case("encoder, 128^3, strides 4-32", cubes(32, 16, 8, 4)),
    Case("encoder, 192^3, strides 4-32", cubes(48, 24, 12, 6)),
)
DECODERS = (
    Case("decoder, 128^3, strides 8-32", cubes(16, 8, 4), 300),
    Case("decoder, 128^3, strides 4-32", cubes(32, 16, 8, 4), 300),
)
ON_CPU = (Case(ENCODERS[0].name, ENCODERS[0].shapes, batch=1), Case(DECODERS[0].name, DECODERS[0].shapes, 300, batch=1))
TINY = (
    Case("encoder, tiny", ((2, 3, 4), (1, 2, 2)), batch=1, heads=2, points=1),
    Case("decoder, tiny", ((2, 3, 4), (1, 2, 2)), 3, batch=1, heads=2, points=1),
)


@dataclass(frozen=True)
class Row:
    """One side's numbers on one input."""

    case: str
    tokens: int
    queries: int
    dim: int
    dtype: str
    op: str
    side: str
    forward_ms: float
    backward_ms: float
    both_ms: float
    megabytes: float
    gather_gb_per_s: float


def inputs(case: Case, dim: int, dtype: torch.dtype, device: str) -> dict[str, list[Tensor]]:
    """{op: its tensors}; offsets: those a layer starts with plus N(0, 1) voxels, so neighbours share corners."""
    generator = torch.Generator().manual_seed(0)
    tokens, levels = sum(map(math.prod, case.shapes)), len(case.shapes)
    if case.queries is None:
        centres = [(torch.cartesian_prod(*map(torch.arange, s)) + 0.5) / torch.tensor(s) for s in case.shapes]
        points_zyx = torch.cat(centres).expand(case.batch, -1, 3)
    else:
        points_zyx = torch.rand(case.batch, case.queries, 3, generator=generator)
    points = zyx_to_grid(points_zyx).contiguous()[:, :, None, None, None]
    rows = (case.batch, points.shape[1], case.heads, levels, case.points)
    directions = zyx_to_grid(head_directions_zyx(case.heads))[:, None, None]
    steps = torch.arange(1, case.points + 1)[:, None]
    extents = torch.tensor([shape[::-1] for shape in case.shapes], dtype=torch.float32)[:, None]
    u = points * extents - 0.5 + directions * steps + torch.randn(*rows, 3, generator=generator)
    u = u.floor() + u.frac().abs().clamp(MARGIN, 1 - MARGIN)
    offsets = u + 0.5 - points * extents
    value = torch.randn(case.batch, tokens, case.heads, dim // case.heads, generator=generator)
    logits = torch.randn(rows, generator=generator)
    weights = logits.flatten(-2).softmax(-1).view(rows)
    found = {
        "plain": [value.to(dtype), (u + 0.5) / extents, weights.to(dtype)],
        "fused": [value.to(dtype), points.flatten(1, 4), offsets.to(dtype), logits.to(dtype)],
    }
    return {op: [part.to(device).requires_grad_() for part in parts] for op, parts in found.items()}


Side = Callable[..., Tensor]


def sides(op: str, case: Case, backend: str, compiled: bool) -> dict[str, Side]:
    """{name: function of the op's tensors}, the baseline first."""
    ours = deformable_attention if op == "plain" else fused_deformable_attention

    def baseline(value: Tensor, *others: Tensor) -> Tensor:
        return (deformable_attention_reference if op == "plain" else unfused)(value, case.shapes, *others)

    found: dict[str, Side] = {"grid_sample": baseline}
    if compiled:
        found["grid_sample, compiled"] = torch.compile(baseline, fullgraph=True, dynamic=False)
    found["girih"] = lambda value, *others: ours(value, case.shapes, *others, backend=backend)
    return found


def unfused(value: Tensor, shapes: Shapes, points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    """Locations and weights as one writes them down, then grid_sample.

    The tests' reference also masks what is not finite, which nobody else does and which would make this side slower.
    """
    centre, step = centre_and_step(points, shapes, offsets.shape[-2])
    return deformable_attention_reference(value, shapes, centre + offsets * step, softmax(logits, wide_dtype(value)))


def gate(op: str, case: Case, works: dict[str, Side], parts: list[Tensor]) -> None:
    """The same output and gradients as float64's, or nothing is timed; a side without memory enough is not judged."""
    dtype = parts[0].dtype
    shape = (*parts[-1].shape[:2], math.prod(parts[0].shape[2:]))
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(parts[0].device, dtype)
    want = exact(works["grid_sample"], parts, upstream)
    names = ["output", *(f"gradient {i}" for i in range(len(parts)))]
    for side, work in works.items():
        try:
            out = work(*parts)
            found = [out.detach(), *torch.autograd.grad(out, parts, upstream)]
        except torch.OutOfMemoryError:
            continue  # `measure` notes it
        for name, a, b in zip(names, found, want, strict=True):
            error = (a.double() - b).abs().max() / b.abs().max()
            rmse = (a.double() - b).norm() / b.norm()
            limit = TOLERANCE[dtype][name != "output"]
            if not (error <= limit and rmse <= RMSE[dtype]):
                raise SystemExit(
                    f"{case.name}, {op}, {dtype}: the {name} of {side} differs from float64's by {error:.1e} of its "
                    f"largest entry (up to {limit:.0e}), {rmse:.1e} in all (up to {RMSE[dtype]:.0e}); nothing is timed"
                )


def exact(work: Side, parts: list[Tensor], upstream: Tensor) -> list[Tensor]:
    """Output and gradients in float64, on the host if the device has not the memory."""
    try:
        wide = [part.detach().double().requires_grad_() for part in parts]
        out = work(*wide)
        return [out.detach(), *torch.autograd.grad(out, wide, upstream.double())]
    except torch.OutOfMemoryError:
        if parts[0].device.type == "cpu":
            raise
    found = exact(work, [part.detach().cpu() for part in parts], upstream.cpu())
    return [part.to(upstream.device) for part in found]


def milliseconds(work: Callable[[], object], device: str, rounds: int) -> float:
    """The median."""
    if device == "cuda":
        from triton.testing import do_bench

        return float(do_bench(work, warmup=50, rep=200, return_mode="median"))
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times)


def megabytes(work: Callable[[], object]) -> float:
    """Peak of allocated memory on the GPU, over what is held before the call."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - held) / 1e6


def megabytes_of_a_process(case: Case, dim: int, op: str, side: str) -> float:
    """The same on the CPU, where freed memory stays with the process: of a new one."""
    command = [sys.executable, __file__, "--peak", case.name, str(dim), op, side]
    # larger allocations are given back when they are freed
    env = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout)


def print_peak(name: str, dim: int, op: str, side: str) -> None:
    small, case = TINY[0], next(case for case in ON_CPU if case.name == name)
    for wanted, width in ((small, 16), (case, dim)):
        parts = inputs(wanted, width, torch.float32, "cpu")[op]
        work = sides(op, wanted, "torch", compiled=False)[side]
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
        held = memory_kb("VmRSS")
        torch.autograd.grad(work(*parts).sum(), parts)  # the small one brings what a first call brings with it
    print((memory_kb("VmHWM") - held) / 1e3)


def memory_kb(entry: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{entry}:")[1].split()[0])


def measure(case: Case, dim: int, dtype: torch.dtype, device: str, settings: argparse.Namespace) -> Iterator[Row]:
    """A row for each op and side; the gate comes first."""
    backend = "triton" if device == "cuda" or settings.tiny else "torch"
    for op, parts in inputs(case, dim, dtype, device).items():
        works = sides(op, case, backend, compiled=device == "cuda")
        gate(op, case, works, parts)
        size = parts[-1].numel() * (dim // case.heads) * parts[0].element_size() * 8  # corners
        for side, work in works.items():
            try:
                numbers = passes(work, parts, device, settings.rounds)
            except torch.OutOfMemoryError:
                numbers = (math.nan,) * 4
            if device == "cpu" and not settings.tiny:
                numbers = (*numbers[:3], megabytes_of_a_process(case, dim, op, side))
            rate = size / numbers[0] / 1e6
            tokens, queries = parts[0].shape[1], parts[-1].shape[1]
            kind = str(dtype).removeprefix("torch.")
            yield Row(case.name, tokens, queries, dim, kind, op, side, *numbers, rate)


def passes(work: Side, parts: list[Tensor], device: str, rounds: int) -> tuple[float, float, float, float]:
    """Milliseconds of forward, backward and both, and MB of both."""

    def forward() -> Tensor:
        with torch.no_grad():
            return work(*parts)

    def both() -> object:
        return torch.autograd.grad(work(*parts), parts, upstream)

    upstream = torch.randn_like(forward())
    times = [milliseconds(forward, device, rounds), backward_ms(work, parts, upstream, device, rounds)]
    times.append(milliseconds(both, device, rounds))
    return times[0], times[1], times[2], megabytes(both) if device == "cuda" else math.nan


def backward_ms(work: Side, parts: list[Tensor], upstream: Tensor, device: str, rounds: int) -> float:
    """Of one graph that is kept, and let go with this function."""
    out = work(*parts)
    return milliseconds(lambda: torch.autograd.grad(out, parts, upstream, retain_graph=True), device, rounds)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown, line by line; the ratios are grid_sample's forward and both over this side's, and MB over its MB."""
    yield "| input | tokens, queries | d | type | op | who | forward | backward | both | MB | GB/s | ratios |"
    yield "|---|---|---:|---|---|---|---:|---:|---:|---:|---:|---|"
    for row in rows:
        base = baseline_of(row, rows)
        ratios = f"{base.forward_ms / row.forward_ms:.2f}x, {base.both_ms / row.both_ms:.2f}x, "
        ratios += f"{row.megabytes / base.megabytes:.2f}"
        sizes = f"{row.tokens:,}, {row.queries:,}"
        numbers = f"{row.forward_ms:.3f} | {row.backward_ms:.3f} | {row.both_ms:.3f} | {row.megabytes:.1f}"
        yield (
            f"| {row.case} | {sizes} | {row.dim} | {row.dtype} | {row.op} | {row.side} | {numbers} "
            f"| {row.gather_gb_per_s:.1f} | {ratios} |"
        )


def baseline_of(row: Row, rows: Sequence[Row], side: str = "grid_sample") -> Row:
    key = (row.case, row.dim, row.dtype, row.op, side)
    return next(r for r in rows if (r.case, r.dim, r.dtype, r.op, r.side) == key)


def aims(rows: Sequence[Row]) -> Iterator[str]:
    """What is aimed at on an H100, and the worst and best that was found; layers use the fused operator.

    A side that ran out of memory has no ratio.
    """
    yield "| aim | wanted | fused: worst | best | plain: worst | best |\n|---|---|---:|---:|---:|---:|"
    found = {
        op: ratios([row for row in rows if row.side == "girih" and row.op == op], rows) for op in ("fused", "plain")
    }
    for name, wanted in AIMS.items():
        ends = []
        for op in ("fused", "plain"):
            numbers = sorted((x for x in found[op][name] if math.isfinite(x)), reverse=wanted.startswith("<"))
            ends += [f"{numbers[0]:.2f}", f"{numbers[-1]:.2f}"] if numbers else ["-", "-"]
        if ends != ["-"] * 4:
            yield f"| {name} | {wanted} | {' | '.join(ends)} |"


AIMS = {
    "encoder forward over grid_sample": ">= 6",
    "encoder both over grid_sample": ">= 4",
    "encoder both over it compiled": ">= 3",
    "decoder both over grid_sample": ">= 2",
    "encoder's extra memory, of it": "<= 0.25",
    "strides 4-32 forward, TB/s": ">= 2",
}


def ratios(mine: Sequence[Row], rows: Sequence[Row]) -> dict[str, list[float]]:
    """{aim: its ratio on every input}."""
    encoder, decoder = ([row for row in mine if row.case.startswith(word)] for word in ("encoder", "decoder"))
    compiled = "grid_sample, compiled"
    lists = (
        [baseline_of(r, rows).forward_ms / r.forward_ms for r in encoder],
        [baseline_of(r, rows).both_ms / r.both_ms for r in encoder],
        [baseline_of(r, rows, compiled).both_ms / r.both_ms for r in encoder],
        [baseline_of(r, rows).both_ms / r.both_ms for r in decoder],
        [r.megabytes / baseline_of(r, rows).megabytes for r in encoder],
        [r.gather_gb_per_s / 1e3 for r in encoder if "4-32" in r.case],
    )
    return dict(zip(AIMS, lists, strict=True))


class Layer(nn.Module):
    """One encoder layer of Deformable DETR, its attention by ours or by grid_sample under autograd."""

    def __init__(self, dim: int, case: Case, ours: bool) -> None:
        super().__init__()
        self.attention = DeformableAttention3D(dim, case.heads, len(case.shapes), case.points)
        self.feed = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.case, self.ours = case, ours

    def forward(self, tokens: Tensor, points_zyx: Tensor) -> Tensor:
        tokens = self.norms[0](tokens + self.attend(tokens, points_zyx))
        return self.norms[1](tokens + self.feed(tokens))

    def attend(self, tokens: Tensor, points_zyx: Tensor) -> Tensor:
        layer, shapes = self.attention, self.case.shapes
        if self.ours:
            return layer(tokens, points_zyx, tokens, shapes)
        rows = (*tokens.shape[:2], layer.heads, layer.levels, layer.points)
        value = layer.value_proj(tokens).view(*tokens.shape[:2], layer.heads, -1)
        offsets, logits = layer.sampling_offsets(tokens).view(*rows, 3), layer.attention_weights(tokens).view(rows)
        return layer.output_proj(unfused(value, shapes, zyx_to_grid(points_zyx), offsets, logits))


def training_gigabytes(case: Case, dim: int = 256, layers: int = 6) -> Iterator[str]:
    """The peak of a whole encoder in training, bfloat16 autocast."""
    points = torch.cat([(torch.cartesian_prod(*map(torch.arange, s)) + 0.5) / torch.tensor(s) for s in case.shapes])
    points = points.expand(case.batch, -1, 3).cuda()
    yield "| training step | who | GB |\n|---|---|---:|"
    for side in ("grid_sample", "girih"):
        torch.cuda.empty_cache()
        encoder = nn.ModuleList([Layer(dim, case, side == "girih") for _ in range(layers)]).cuda()

        def step(encoder: nn.ModuleList = encoder) -> None:
            tokens = torch.randn(*points.shape[:2], dim, device="cuda")
            with torch.autocast("cuda", dtype=torch.bfloat16):
                for layer in encoder:
                    tokens = layer(tokens, points)
            tokens.float().square().mean().backward()

        try:
            step()
            found = f"{megabytes(step) / 1e3:.1f}"
        except torch.OutOfMemoryError:
            found = "out of memory"
        yield f"| {layers} layers, {case.name}, batch {case.batch}, d {dim} | {side} | {found} |"
        del encoder, step  # which holds it too


def copy_gb_per_s() -> float:
    """Bytes read and written by a copy on the device, over its time."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / milliseconds(lambda: target.copy_(source), "cuda", 1) / 1e6


def machine(device: str) -> str:
    found = [f"Python {platform.python_version()}"]
    for name in ("girih-detectors", "torch", "triton"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    if device != "cuda":
        return f"{', '.join(found)}; {platform.machine()}, one thread"
    found.append(torch.cuda.get_device_name())
    if (tool := shutil.which("nvidia-smi")) is not None:
        query = "--query-gpu=driver_version,clocks.sm,clocks.mem"
        done = subprocess.run([tool, query, "--format=csv,noheader"], capture_output=True, text=True)
        found.append("driver, clocks: " + done.stdout.strip().splitlines()[0] if done.returncode == 0 else "")
    return f"{', '.join(found)}; a copy moves {copy_gb_per_s():,.0f} GB/s"


def plot(rows: Sequence[Row], file: Path) -> None:
    """Times of both passes over eager grid_sample's, a panel for each type and width."""
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((row.dtype, row.dim) for row in rows))
    cases = list(dict.fromkeys(row.case for row in rows))
    bars = [(op, side) for op in ("plain", "fused") for side in ("grid_sample, compiled", "girih")]
    figure = Figure(figsize=(6 * len(panels), 4.5), layout="constrained")
    for axes, (dtype, dim) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, (op, side) in enumerate(bars):
            chosen = {r.case: r for r in rows if (r.dtype, r.dim, r.op, r.side) == (dtype, dim, op, side)}
            heights = [baseline_of(chosen[c], rows).both_ms / chosen[c].both_ms if c in chosen else 0 for c in cases]
            places = [i + 0.2 * (number - 1.5) for i in range(len(cases))]
            axes.bar(places, heights, 0.18, label=f"{side}, {op}")
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xticks(range(len(cases)), [case.replace(", ", "\n") for case in cases], fontsize=7)
        axes.set_title(f"{dtype}, d = {dim}")
        axes.set_ylabel("forward + backward, times as fast as grid_sample")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(bars))
    figure.savefig(file)


def write_table(rows: Sequence[Row], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "deformable_attention.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, asdict(rows[0]))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def write_page(text: str, page: Path) -> None:
    log = page.read_text().partition(LOG)[2] if page.is_file() else ""
    page.write_text(f"# Deformable attention\n\n`python benchmarks/deformable_attention.py`\n\n{text}{LOG}{log}")


def choose(settings: argparse.Namespace, device: str) -> list[tuple[Case, int, torch.dtype]]:
    if settings.tiny:
        return [(TINY[0], 16, torch.float32), (TINY[1], 16, torch.bfloat16)]
    cases = (*ENCODERS, *DECODERS) if device == "cuda" else ON_CPU
    wanted = [case for case in cases if settings.only in case.name]
    if not wanted:
        raise SystemExit(f"--only {settings.only}: no case has this in its name, there are {[c.name for c in cases]}")
    dtypes = (torch.float32, torch.bfloat16) if device == "cuda" else (torch.float32,)
    return list(product(wanted, (128, 256), dtypes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small inputs")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with this in their name")
    parser.add_argument("--out", type=Path, help="folder of the results (with a GPU: benchmarks/results, unless tiny)")
    parser.add_argument("--peak", nargs=4, metavar=("CASE", "DIM", "OP", "SIDE"), help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.peak:
        name, dim, op, side = settings.peak
        print_peak(name, int(dim), op, side)
        return
    settings.rounds = 1 if settings.tiny else 5
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)
        if settings.tiny:
            os.environ["TRITON_INTERPRET"] = "1"  # obeyed when triton is imported, which nobody has done yet
    else:
        from torch._functorch import config

        config.donated_buffer = False  # a compiled backward pass is to run more than once
    print(run(settings, device), end="")


def run(settings: argparse.Namespace, device: str) -> str:
    header = machine(device)
    rows: list[Row] = []
    folder = settings.out or (RESULTS if device == "cuda" and not settings.tiny and not settings.only else None)
    for choice in choose(settings, device):
        rows += measure(*choice, device, settings)
        torch.compiler.reset()
        if folder is not None:  # as they come: a run that stops has not been for nothing
            write_table(rows, folder)
    parts = [header, "\n".join(table(rows))]
    if device == "cuda" and not settings.tiny:
        parts.append("\n".join(aims(rows)))
        if settings.only in ENCODERS[-1].name:
            parts.append("\n".join(training_gigabytes(ENCODERS[-1])))
    elif device == "cpu":
        what = "Triton's interpreter: these times say nothing" if settings.tiny else "plain torch only"
        parts.append(f"No CUDA device: {what}.")
    text = "\n\n".join(parts) + "\n"
    if folder is not None:
        write_page(text, folder / "deformable_attention.md")
        plot(rows, folder / "deformable_attention.svg")
    return text


if __name__ == "__main__":
    main()
