"""Whole-volume inference: how many tiles, clustering, the share that is not the network, memory, seconds on a GPU.

    python benchmarks/inference.py            # prints Markdown; about a quarter of an hour on two cores
    python benchmarks/inference.py --tiny     # everything once on small inputs, in half a minute
    python benchmarks/inference.py --gpu      # only the rows that need CUDA

The tile rule of nnDetection is written down below and must give the starts that were read off it; the clustering must
give what its definition in the tests gives; else nothing is timed. One thread. The share counts CPU time of the whole
process, reading threads and merging included, outside the modules of the network; scans are read from a prepared store.
Memory is the peak of a child process that opens a prepared store and detects in it, weights and libraries included
(Linux). The script fails if memory grows with the number of tiles, or what is not the network takes over 5 %.
"""

import argparse
import itertools
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import torch
from detection import DEFINITIONS, clustered, cpu_seconds, memory_kb, network, versions
from torch import Tensor

import girih_data3d
from girih.air import NotAir
from girih_data3d import CaseSource, Dataset, PrepareSpec, Store
from girih_detectors import Mask, RetinaUNet, detect_volume, weighted_box_clustering
from girih_detectors.inference import tile_grid
from girih_detectors.testing import TinyPyramid

Size = tuple[int, int, int]

READ_OFF = {  # starts along one axis that nnDetection's own code gave for a patch of 128
    128: [0],
    192: [0, 0, 64],
    200: [0, 4, 68, 72],
    256: [0, 0, 64, 128],
    300: [0, 22, 86, 150, 172],
    512: [0, 0, 64, 128, 192, 256, 320, 384],
}
CLUSTER_IOU = 0.1
EXPECTED = 40  # five models with eight mirrors
SHARE = 0.05
"""Of the CPU time, for reading, tiles, post-processing and merging together."""


def reference_starts(length: int, patch: int) -> list[int]:
    """nnDetection's tiles along one axis: a regular grid around the middle, its ends shifted into the image."""
    if patch >= length:
        return [-((patch - length) // 2)]
    stride = patch - patch // 2
    first = (length % stride - patch) // 2
    steps = math.ceil((length - patch - first) / stride)
    return [min(max(first + i * stride, 0), length - patch) for i in range(steps + 1)]


def tiles(tiny: bool) -> None:
    for length, wanted in READ_OFF.items():
        if reference_starts(length, 128) != wanted:
            raise SystemExit(f"{length} voxels: {reference_starts(length, 128)} is not nnDetection's {wanted}")
    print("| scan | tiles of 128^3, nnDetection | of them twice | girih | ratio |\n|---|---:|---:|---:|---:|")
    for shape in ((256, 256, 256), (300, 300, 300), (400, 512, 512), (600, 512, 512)):
        theirs = list(itertools.product(*(reference_starts(n, 128) for n in shape)))
        ours = tile_grid(shape, (128, 128, 128), 0.5)
        name = "x".join(map(str, shape))
        twice = len(theirs) - len(set(theirs))
        print(f"| {name} | {len(theirs)} | {twice} | {len(ours)} | {len(theirs) / len(ours):.1f}x |")


def crowd(n: int, groups: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes of one class in so many groups in 512^3 voxels, as many models and mirrorings give them."""
    boxes, scores, labels = clustered(n, groups)
    return boxes, scores, labels, 0.5 + 0.5 * torch.rand(n, generator=torch.Generator().manual_seed(1))


def clustering(tiny: bool) -> None:
    n = 200 if tiny else 2000
    print("\n| what | who | clusters | CPU seconds | ratio | aim |\n|---|---|---:|---:|---:|---|")
    for groups, name in ((n // 40, "40 boxes for each object"), (n // 4, "4 boxes for each object"), (n, "scattered")):
        case = crowd(n, groups)
        works: dict[str, Callable[[], tuple[Tensor, Tensor, Tensor]]] = {
            "definition, float64": partial(definition, *case),
            "girih": partial(weighted_box_clustering, *case, CLUSTER_IOU, expected=EXPECTED),
        }
        wanted, found = (work() for work in works.values())
        for a, b in zip(found, wanted, strict=True):
            if a.shape != b.shape or not torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-4):
                raise SystemExit(f"clustering of {n} boxes, {name}, differs from its definition; nothing is timed")
        seconds = cpu_seconds(works, rounds=3)
        for who, value in seconds.items():
            ratio, aim = seconds["definition, float64"] / value, "<= 0.05" if who == "girih" else ""
            print(f"| {n:,} boxes, {name} | {who} | {len(found[1])} | {value:.4f} | {ratio:.1f}x | {aim} |", flush=True)


def definition(boxes: Tensor, scores: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return DEFINITIONS["weighted_clusters"](boxes, scores, labels, weights, CLUSTER_IOU, EXPECTED)


class NetworkTime:
    """CPU time within the modules of the network: the pyramid and the two heads that `detect` needs."""

    def __init__(self, model: RetinaUNet) -> None:
        self.seconds = 0.0
        for module in (model.pyramid, model.class_head, model.box_head):
            module.register_forward_pre_hook(self._begin)
            module.register_forward_hook(self._end)

    def _begin(self, *_: object) -> None:
        self.start = time.thread_time()

    def _end(self, *_: object) -> None:
        self.seconds += time.thread_time() - self.start


def shares(tiny: bool) -> None:
    print("\n| network | scan (int16 store), patch | tiles x mirrors | CPU seconds | not the network | share | aim |")
    print("|---|---|---:|---:|---:|---:|---|")
    rows = [("retina_unet_v002", 8, 64, 96), ("retina_unet_v002", 4, 128, 128), ("resenc_l", 2, 128, 128)]
    missed = []
    for name, width, patch, edge in [("retina_unet_v002", 16, 64, 64)] if tiny else rows:
        model = network(name, width).eval()
        inside = NetworkTime(model)
        with tempfile.TemporaryDirectory() as folder:
            write_store(Path(folder), (edge, edge, edge))
            image = Store.open(Path(folder) / "store")["scan"].lazy()
            start = time.process_time()
            detect_volume(model, image, patch_zyx=(patch, patch, patch))
            total = time.process_time() - start
        other, count = total - inside.seconds, len(tile_grid((edge, edge, edge), (patch, patch, patch), 0.5))
        if other > SHARE * total and not tiny:  # a tiny network is faster than any reading
            missed.append(name)
        print(
            f"| {name} at 1/{width} of its width | {edge}^3, {patch}^3 | {count} x 8 | {total:.1f} | {other:.2f} "
            f"| {100 * other / total:.2f} % | <= {100 * SHARE:.0f} %{', MISSED' if name in missed else ''} |",
            flush=True,
        )
    if missed:
        raise SystemExit(f"what is not the network takes more than {100 * SHARE:.0f} % of the time: {missed}")


def memory(tiny: bool) -> None:
    shape, patch = ((60, 48, 48), 32) if tiny else ((600, 512, 512), 128)
    size = "x".join(map(str, shape))
    print("\n| scan (int16 store) | network | patch | overlap | tiles | peak, MB | before, MB | seconds | aim |")
    print("|---|---|---|---:|---:|---:|---:|---:|---|")
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder), shape)
        peaks = []
        rows = [("tiny", 0.5)] if tiny else [("tiny", 0.25), ("tiny", 0.5), ("resenc_l", 0.5)]
        for name, overlap in rows:
            command = [sys.executable, __file__, "--peak", f"{folder}/store", str(patch), str(overlap), name]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            peaks.append(float(done.stdout.split()[1]))
            numbers = " | ".join(f"{float(value):.0f}" for value in done.stdout.split())
            label = "resenc_l, in one tile only" if name == "resenc_l" else name
            print(f"| {size} | {label} | {patch}^3 | {overlap} | {numbers} | <= 4000 |", flush=True)
    if not tiny and peaks[1] > 1.1 * peaks[0]:
        raise SystemExit(f"memory grows with the number of tiles: {peaks} MB")


def write_store(folder: Path, shape: Size) -> None:
    """A prepared dataset of one scan of smooth noise, as 12-bit numbers of a CT."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(0, 400, [-(-n // 8) for n in shape])
    scan = coarse.repeat(8, 0).repeat(8, 1).repeat(8, 2)[tuple(slice(n) for n in shape)].astype(np.int16)
    scan += rng.integers(-20, 20, shape, dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(scan.T, np.diag([0.7, 0.7, 1.0, 1.0])), folder / "scan.nii")
    spec = PrepareSpec(target_zyx_mm=None, normalisation="none", quant_step=1, crop=None)
    dataset = Dataset("noise", (), (CaseSource("scan", (folder / "scan.nii",)),))
    report = girih_data3d.prepare_many(dataset, folder / "store", spec, workers=0)
    if report.failed:
        raise SystemExit(str(report))


def print_peak(store: str, patch: int, overlap: float, name: str) -> None:
    """Tiles, the peak, what was held before and seconds, with the mask of `girih predict`, which reads all of the scan.

    ResEncL, which a CPU needs long for, sees one tile only.
    """
    torch.set_num_threads(1)
    image = Store.open(store)["scan"].lazy()
    valid: Mask = NotAir(image)
    if name == "tiny":
        pyramid = TinyPyramid(strides=((2, 2, 2), (4, 4, 4), (8, 8, 8)))
        anchors = [[8, 8, 8], [16, 16, 16]]
        model = RetinaUNet(pyramid, classes=["object"], anchors_zyx=anchors, levels=(2,), segmentation=False)
    else:
        model = network(name)
        valid = corner = np.zeros(image.shape[1:], dtype=bool)
        corner[0, 0, 0] = True
    before, start, done = memory_kb("VmRSS"), time.perf_counter(), [0]
    detect_volume(
        model,
        image,
        patch_zyx=(patch, patch, patch),
        overlap=overlap,
        mirror=False,
        valid=valid,
        progress=lambda n, _: done.__setitem__(0, n),
    )
    print(done[0], memory_kb("VmHWM") / 1e3, before / 1e3, time.perf_counter() - start)


def on_gpu(tiny: bool) -> None:
    if not torch.cuda.is_available():
        print("\nNo CUDA device: the seconds per scan were not measured.")
        return
    shape, patch, width = ((80, 64, 64), 64, 8) if tiny else ((400, 512, 512), 128, 1)
    image = np.random.default_rng(0).standard_normal((1, *shape), dtype=np.float32)
    model = network("resenc_l", width).cuda().eval()
    print(f"\n{torch.cuda.get_device_name()}, resenc_l, bfloat16, {'x'.join(map(str, shape))}\n")
    print("| mirrors | overlap | batch | tiles | seconds | network alone | share of the rest | GB |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for mirror, overlap, batch in ((False, 0.25, 1), (False, 0.5, 1), (False, 0.5, 2), (True, 0.5, 1), (True, 0.5, 2)):
        settings = {"patch_zyx": (patch, patch, patch), "overlap": overlap, "mirror": mirror, "batch_size": batch}
        count = len(tile_grid(shape, (patch, patch, patch), overlap))
        with torch.autocast("cuda", dtype=torch.bfloat16):
            detect_volume(model, image[:, :patch, :patch, : patch + 8], **settings)  # compiles, allocates
            torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            detect_volume(model, image, **settings)
            seconds = time.perf_counter() - start
            alone = count * (8 if mirror else 1) / batch * network_seconds(model, batch, patch)
        gb = torch.cuda.max_memory_allocated() / 1e9
        rest = 100 * (1 - alone / seconds)
        row = f"{8 if mirror else 1} | {overlap} | {batch} | {count} | {seconds:.1f} | {alone:.1f} | {rest:.0f} %"
        print(f"| {row} | {gb:.1f} |", flush=True)


@torch.no_grad()
def network_seconds(model: RetinaUNet, batch: int, patch: int) -> float:
    """Of one forward pass of the pyramid and the two heads, without waiting in between."""
    images = torch.randn(batch, 1, patch, patch, patch, device="cuda")
    for turn in range(13):
        if turn == 3:
            torch.cuda.synchronize()
            start = time.perf_counter()
        maps = model.pyramid(images)
        chosen = [maps[level] for level in model.levels]
        model.class_head(chosen)
        model.box_head(chosen)
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small inputs and networks")
    parser.add_argument("--gpu", action="store_true", help="only the rows that need CUDA")
    parser.add_argument("--peak", nargs=4, metavar=("STORE", "PATCH", "OVERLAP", "NETWORK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        store, patch, overlap, name = arguments.peak
        print_peak(store, int(patch), float(overlap), name)
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"Python {sys.version.split()[0]}, {versions()}, one thread\n")
    if not arguments.gpu:
        for part in (tiles, clustering, memory, shares):
            part(arguments.tiny)
    on_gpu(arguments.tiny)


if __name__ == "__main__":
    main()
