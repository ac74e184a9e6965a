"""Speed and memory of girih_detectors: ATSS against its definition, NMS against MONAI, the share of a training step.

    python benchmarks/detection.py             # prints Markdown; some minutes on two cores
    python benchmarks/detection.py --tiny      # everything once on small inputs, in a minute
    python benchmarks/detection.py --gpu-only  # the rows that need CUDA

Before anything is timed both sides must give the same answer. CPU seconds are the best of several interleaved rounds.
Extra memory is the peak of a process of its own over what it held before the call (Linux). With a GPU: NMS in Triton,
and training steps in bfloat16, images per second and allocated memory.
"""

import argparse
import os
import platform
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from girih_backbones import UFPN, FeaturePyramid, make_encoder, preset
from girih_detectors import (
    AnchorGrid,
    Flavour,
    FocalL1,
    HnmGiou,
    RetinaUNet,
    Target,
    anchor_grid,
    anchor_truth,
    class_nms,
    match_atss,
    sample_anchors,
)
from girih_detectors.targets import check_images, check_targets

try:
    from monai.data.box_utils import non_max_suppression
except ImportError:  # the rows say so
    non_max_suppression = None

ANCHORS = list(product((4.0, 8.0, 16.0), repeat=3))  # 27 per cell, sides in voxels on the finest detection level
TESTS = Path(__file__).parents[1] / "packages" / "detectors" / "tests"
DEFINITIONS = runpy.run_path(str(TESTS / "definitions.py"))  # what the tests hold the package against
STRIDES = tuple((s, s, s) for s in (4, 8, 16, 32))
NMS_IOU = 0.5


def grid_of(edge: int) -> AnchorGrid:
    return anchor_grid((edge, edge, edge), STRIDES, torch.tensor(ANCHORS))


def objects(n: int, edge: int, seed: int = 0) -> Tensor:
    """Boxes of 6 to 40 voxels (a third of the image at most) somewhere in the image."""
    generator = torch.Generator().manual_seed(seed)
    side = 6 + (min(40, edge / 3) - 6) * torch.rand(n, 3, generator=generator)
    low = (edge - side) * torch.rand(n, 3, generator=generator)
    return torch.cat([low, low + side], dim=1)


def clustered(n: int, clusters: int = 300) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes of one class in clusters in 512^3 voxels; of 10,000 about 6,200 stay at IoU 0.5.

    Each cluster has a centre and sides of 8 to 32 voxels; its boxes are shifted by 0.2 sides and scaled by exp(0.2),
    normally distributed on each axis.
    """
    generator = torch.Generator().manual_seed(0)
    centre = 512 * torch.rand(clusters, 1, 3, generator=generator)
    side = 8 + 24 * torch.rand(clusters, 1, 3, generator=generator)
    each = -(-n // clusters)
    centres = centre + 0.2 * side * torch.randn(clusters, each, 3, generator=generator)
    half = 0.5 * side * torch.exp(0.2 * torch.randn(clusters, each, 3, generator=generator))
    boxes = torch.cat([centres - half, centres + half], dim=-1).flatten(0, 1)[:n]
    return boxes, torch.rand(n, generator=generator), torch.zeros(n, dtype=torch.int64)


def cpu_seconds(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The least CPU time of each, measured in turns, after a round that does not count."""
    best = dict.fromkeys(works, float("inf"))
    for turn in range(rounds + 1):
        for name in list(works)[:: 1 if turn % 2 else -1]:
            start = time.process_time()
            works[name]()
            if turn:
                best[name] = min(best[name], time.process_time() - start)
    return best


def atss_works(n: int, edge: int) -> dict[str, Callable[[], object]]:
    boxes, grid = objects(n, edge), grid_of(edge)
    anchors = grid.all_boxes()
    return {
        "definition": partial(DEFINITIONS["atss"], boxes, grid, anchors),
        "girih": partial(match_atss, boxes, grid),
    }


def nms_works(n: int) -> dict[str, Callable[[], object]]:
    boxes, scores, labels = clustered(n)
    works: dict[str, Callable[[], object]] = {
        "greedy loop": partial(DEFINITIONS["greedy_nms"], boxes, scores, labels, NMS_IOU),
        "girih": partial(class_nms, boxes, scores, labels, NMS_IOU, backend="torch"),
    }
    if non_max_suppression is not None:
        works["MONAI"] = partial(non_max_suppression, boxes, scores, NMS_IOU)
    return works


def gate(n_objects: Sequence[int], n_boxes: int, edge: int) -> None:
    """The same answers, or nothing is timed."""
    for n in n_objects:
        works = atss_works(n, edge)
        for wanted, found in zip(works["definition"](), works["girih"](), strict=True):
            if not torch.equal(wanted, found):
                raise SystemExit(f"ATSS differs from its definition for {n} objects; nothing is timed")
    wanted = None
    for name, work in nms_works(n_boxes).items():
        found = torch.as_tensor(work())
        wanted = found if wanted is None else wanted
        if not torch.equal(wanted, found):
            raise SystemExit(f"NMS of {name} keeps {len(found)} boxes, the greedy loop {len(wanted)}, or others")


def extra_megabytes(what: str, size: int, edge: int) -> float:
    """Peak of a new process that does only this, over what it held before."""
    command = [sys.executable, __file__, "--peak", what, str(size), str(edge)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return float(done.stdout)


def print_peak(what: str, size: int, edge: int) -> None:
    subject, side = what.split(":")
    warm, work = (atss_works(1, 32), atss_works(size, edge)) if subject == "atss" else (nms_works(300), nms_works(size))
    warm[side]()  # what a first call brings with it
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
    held = memory_kb("VmRSS")
    work[side]()
    print((memory_kb("VmHWM") - held) / 1e3)


def memory_kb(entry: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{entry}:")[1].split()[0])


def table(title: str, first: str, works: dict[str, Callable[[], object]], subject: str, size: int, edge: int) -> None:
    rounds = 3
    seconds = cpu_seconds(works, rounds)
    for name, value in seconds.items():
        memory = extra_megabytes(f"{subject}:{name}", size, edge)
        ratio = seconds[first] / value
        print(f"| {title} | {name} | {value:.4f} | {memory:.0f} | {ratio:.1f}x |", flush=True)


def network(name: str, width: int = 1, loss: Flavour | None = None) -> RetinaUNet:
    """Retina U-Net as nnDetection builds it; `width` divides all channels."""
    description = preset(name)
    description["kwargs"]["channels"] = [c // width for c in description["kwargs"]["channels"]]
    encoder = make_encoder(description, 1)
    pyramid = FeaturePyramid(encoder, UFPN(encoder.channels, encoder.strides, out_channels=128 // width))
    return RetinaUNet(
        pyramid, classes=["object"], anchors_zyx=ANCHORS, head_channels=128 // width, loss=loss or FocalL1()
    )


def batch_of(n: int, edge: int, device: str = "cpu") -> tuple[Tensor, list[Target]]:
    """Images of noise with five objects each."""
    targets = []
    for seed in range(n):
        boxes = objects(5, edge, seed).round().to(device)
        mask = torch.zeros(edge, edge, edge, dtype=torch.int64, device=device)
        for row, (z, y, x, zz, yy, xx) in enumerate(boxes.long().tolist()):
            mask[z:zz, y:yy, x:xx] = row + 1
        labels = boxes.new_zeros(5, dtype=torch.int64)
        targets.append({"boxes": boxes, "labels": labels, "instances": mask, "valid": mask >= 0, "seed": seed})
    return torch.randn(n, 1, edge, edge, edge, device=device), targets


def step(model: RetinaUNet, images: Tensor, targets: list[Target]) -> None:
    model.zero_grad()
    model(images, targets)["loss"].backward()


def bare_step(model: RetinaUNet, images: Tensor, targets: list[Target]) -> None:
    """The network forward and backward without anchors, targets and their losses."""
    model.zero_grad()
    torch.stack([tensor.float().mean() for tensor in model.tensors(images)]).sum().backward()


def share_of_a_step(name: str, width: int, edge: int, n: int, rounds: int) -> None:
    images, targets = batch_of(n, edge)
    part = f" at 1/{width} of its width" if width > 1 else ""
    for loss in (FocalL1(), HnmGiou()):
        model = network(name, width, loss)
        with torch.no_grad():
            scores = model.tensors(images)[0].amax(-1)
        works = {
            "targets": partial(anchors_and_targets, model, images, targets, scores),
            "step": partial(step, model, images, targets),
        }
        seconds = cpu_seconds(works, rounds)
        share = 100 * seconds["targets"] / seconds["step"]
        print(
            f"| {name}{part} | {type(loss).__name__} | {edge}^3, {n} | {seconds['step']:.2f} "
            f"| {seconds['targets']:.4f} | {share:.2f} % |",
            flush=True,
        )


def anchors_and_targets(model: RetinaUNet, images: Tensor, targets: list[Target], scores: Tensor) -> None:
    """What `RetinaUNet.forward` does beside its network and the arithmetic of its losses."""
    shape = check_images(images, model.pyramid.strides, images.shape[1])
    check_targets(targets, len(images), shape, len(model.classes), instances=True)
    truth = anchor_truth(targets, model.anchors(shape))
    loss = model.loss
    if isinstance(loss, HnmGiou):
        seeds = torch.tensor([target["seed"] for target in targets])
        settings = {"per_image": loss.per_image, "positive_fraction": loss.positive_fraction, "pool": loss.pool}
        sample_anchors(scores, truth.positives, truth.background, seeds, **settings)


def on_gpu(tiny: bool) -> None:
    print(f"\n{torch.cuda.get_device_name()}\n")
    gpu_nms((300, 3000) if tiny else (1000, 10_000, 100_000))
    width, edge, n, steps = (8, 64, 1, 2) if tiny else (1, 128, 2, 10)
    print(f"\nTraining steps, bfloat16, batch {n}, five objects an image; the ratio is over the bare eager network\n")
    print("| network | patch | what | images/s | GB | ratio |\n|---|---|---|---:|---:|---:|")
    for name in ("retina_unet_v002", "resenc_l"):
        batch = batch_of(n, edge, "cuda")
        rows: dict[str, tuple[Callable[..., None], bool]] = {
            "bare network, eager": (bare_step, False),
            "training step, eager": (step, False),
            "training step, compiled": (step, True),
        }
        base = 0.0
        for what, (run, compiled) in rows.items():
            model = network(name, width).cuda()
            if compiled:
                model.tensors = torch.compile(model.tensors, fullgraph=True, dynamic=False)
            speed, gb = gpu_steps(partial(run, model, *batch), n, steps)
            base = base or speed
            print(f"| {name} | {edge}^3 | {what} | {speed:.2f} | {gb:.1f} | {speed / base:.2f}x |", flush=True)
            del model
            torch.cuda.empty_cache()


def gpu_steps(run: Callable[[], None], n: int, steps: int) -> tuple[float, float]:
    """Images per second, and GB allocated at the peak."""
    for turn in range(3 + steps):
        if turn == 3:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            run()
    torch.cuda.synchronize()
    return n * steps / (time.perf_counter() - start), torch.cuda.max_memory_allocated() / 1e9


def gpu_nms(sizes: Sequence[int]) -> None:
    print("| boxes | stay | torch, ms | MB | Triton, ms | MB | ratio |\n|---:|---:|---:|---:|---:|---:|---:|")
    for n in sizes:
        case = [part.cuda() for part in clustered(n, clusters=max(1, n * 3 // 100))]
        columns, answers = [], []
        for backend in ("torch", "triton"):
            answers.append(class_nms(*case, NMS_IOU, backend=backend))
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            held, best = torch.cuda.memory_allocated(), float("inf")
            for _ in range(5):
                start = time.perf_counter()
                class_nms(*case, NMS_IOU, backend=backend)
                torch.cuda.synchronize()
                best = min(best, time.perf_counter() - start)
            columns += [1e3 * best, (torch.cuda.max_memory_allocated() - held) / 1e6]
        on_cpu = class_nms(*(part.cpu() for part in case), NMS_IOU)
        if not all(torch.equal(answer.cpu(), on_cpu) for answer in answers):
            raise SystemExit(f"NMS of {n} boxes on the GPU differs from the CPU")
        cells = " | ".join(f"{value:.2f}" if i % 2 == 0 else f"{value:.0f}" for i, value in enumerate(columns))
        print(f"| {n} | {len(on_cpu)} | {cells} | {columns[0] / columns[2]:.1f}x |", flush=True)


def versions() -> str:
    found = []
    for name in ("girih-detectors", "girih-backbones", "torch", "monai", "triton"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small inputs and networks")
    parser.add_argument("--gpu-only", action="store_true", help="only the rows that need CUDA")
    parser.add_argument("--peak", nargs=3, metavar=("WHAT", "SIZE", "EDGE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print_peak(arguments.peak[0], int(arguments.peak[1]), int(arguments.peak[2]))
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"Python {platform.python_version()}, {versions()}; {platform.machine()}, one thread\n")
    if not arguments.gpu_only:
        on_cpu(arguments.tiny)
    if torch.cuda.is_available():
        on_gpu(arguments.tiny)
    else:
        print("\nNo CUDA device: the Triton NMS and the bfloat16 training steps were not measured.")


def on_cpu(tiny: bool) -> None:
    edge, n_objects, n_boxes = (64, (2, 5), 1000) if tiny else (128, (5, 20), 10_000)
    gate(n_objects, n_boxes, edge)
    print("| what | who | CPU seconds | extra MB | ratio |\n|---|---|---:|---:|---:|")
    for n in n_objects:
        title = f"ATSS, {edge}^3, {len(grid_of(edge)):,} anchors, {n} objects"
        table(title, "definition", atss_works(n, edge), "atss", n, edge)
    table(f"NMS, {n_boxes:,} clustered boxes", "greedy loop", nms_works(n_boxes), "nms", n_boxes, edge)
    print("\nAnchors and targets in a training step, five objects an image, CPU seconds\n")
    print("| network | loss | patch, batch | step | anchors and targets | share |\n|---|---|---|---:|---:|---:|")
    share_of_a_step("resenc_l", 8 if tiny else 4, 64, 2, rounds=1 if tiny else 3)
    share_of_a_step("retina_unet_v002", 8 if tiny else 1, 64 if tiny else 128, 1, rounds=1)


if __name__ == "__main__":
    main()
