"""Speed and memory of girih_backbones against dynamic-network-architectures, nnU-Net's networks, in one run.

    pip install einops && pip install --no-deps dynamic-network-architectures==0.4.4
    python benchmarks/encoders.py              # prints Markdown; some minutes on two cores
    python benchmarks/encoders.py --quick      # a quarter of the width, small patches

Before anything is timed both must give the same maps and gradients for the same weights. Times are the best of several
interleaved rounds. Memory is counted on the meta device: the tensors that would be alive at once, without what a
convolution needs for itself. With a GPU: images per second and allocated memory of training steps in bfloat16.
"""

import argparse
import platform
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from girih_backbones import FeaturePyramid, ResidualEncoder, UNetDecoder, make_encoder, preset, set_checkpointing

PEER = "dynamic-network-architectures"


class OurUNet(nn.Module):
    """Encoder, decoder and a head of one channel, as nnU-Net pre-trains them."""

    def __init__(self, encoder: ResidualEncoder) -> None:
        super().__init__()
        self.pyramid = FeaturePyramid(encoder, UNetDecoder(encoder.channels, encoder.strides))
        self.head = nn.Conv3d(encoder.channels[0], 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pyramid(x)[0])


def networks(width: int) -> tuple[nn.Module, OurUNet]:
    """Their ResEncL U-Net and ours, channels divided by `width`, the encoders with the same weights."""
    description = preset("resenc_l")
    kwargs = description["kwargs"]
    kwargs["channels"] = [channels // width for channels in kwargs["channels"]]
    n = len(kwargs["channels"])
    theirs = ResidualEncoderUNet(
        1,
        n,
        kwargs["channels"],
        nn.Conv3d,
        kwargs["kernels"],
        kwargs["downsampling"],
        kwargs["blocks"],
        1,
        [1] * (n - 1),
        True,
        nn.InstanceNorm3d,
        {"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )
    ours = OurUNet(make_encoder(description, 1))
    with torch.no_grad():
        pairs = zip(ours.pyramid.encoder.parameters(), theirs.encoder.parameters(), strict=True)
        for mine, their in pairs:  # in the same order
            mine.copy_(their)
    return theirs, ours


def train(network: nn.Module, image: torch.Tensor) -> None:
    out = network(image)
    loss = sum(m.float().mean() for m in out) if isinstance(out, list) else out.float().mean()
    del out
    loss.backward()


def gate(theirs: nn.Module, ours: nn.Module, image: torch.Tensor) -> None:
    """The same maps and gradients, with and without checkpointing, or nothing is timed."""
    for checkpointing in (False, True):
        set_checkpointing(ours, checkpointing)
        results = []
        for network in (theirs, ours):
            network.zero_grad()
            maps = network(image)
            sum((m * m.detach().roll(1)).mean() for m in maps).backward()
            # A bias before a normalisation has no gradient but rounding.
            weights = [p for name, p in network.named_parameters() if not name.endswith("conv.bias")]
            results.append([*maps, *(p.grad for p in weights)])
        for wanted, found in zip(*results, strict=True):
            torch.testing.assert_close(found, wanted, atol=5e-5, rtol=1e-4)
    set_checkpointing(ours, False)


def best_seconds(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The best time of each, measured in turns, every other round backwards, after one that does not count."""
    best = dict.fromkeys(works, float("inf"))
    for turn in range(rounds + 1):
        for name in list(works)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            works[name]()
            if turn:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def forward(network: nn.Module, image: torch.Tensor) -> None:
    with torch.no_grad():
        network(image)


def speed(theirs: nn.Module, ours: nn.Module, patches: Iterable[int], rounds: int) -> None:
    print(f"| patch, batch 1 | pass | {PEER}, s | girih, s | ratio |\n|---|---|---:|---:|---:|")
    for edge in patches:
        image = torch.randn(1, 1, edge, edge, edge)
        for what, run in (("forward", forward), ("forward + backward", train)):
            best = best_seconds({"theirs": partial(run, theirs, image), "ours": partial(run, ours, image)}, rounds)
            ratio = best["theirs"] / best["ours"]
            print(f"| {edge}^3 | {what} | {best['theirs']:.2f} | {best['ours']:.2f} | {ratio:.2f}x |", flush=True)


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive at once, but for those that were there before.

    `activations` counts those that a forward pass made, the first or a second one: the backward pass runs without
    gradient mode. `everything` has the gradients too.
    """

    def __init__(self, before: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.before = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in before}
        self.alive: dict[int, tuple[StorageWeakRef, int, bool]] = {}
        self.activations = self.everything = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                seen = StorageWeakRef(storage)
                if seen.cdata not in self.before and seen.cdata not in self.alive:
                    self.alive[seen.cdata] = (seen, storage.nbytes(), torch.is_grad_enabled())
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        sizes = [(n_bytes, forward) for _, n_bytes, forward in self.alive.values()]
        self.activations = max(self.activations, sum(n_bytes for n_bytes, forward in sizes if forward))
        self.everything = max(self.everything, sum(n_bytes for n_bytes, _ in sizes))
        return out


def peaks(network: nn.Module, image: torch.Tensor) -> tuple[int, int]:
    """Bytes of the activations, and of everything, at their peak in a training step."""
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    with Alive([image, *(t for p in network.parameters() for t in (p, p.grad))]) as seen:
        train(network, image)
    return seen.activations, seen.everything


def memory(width: int, edge: int) -> None:
    print(f"\nPeak of a training step at {edge}^3, batch 1, float32, in GB; the ratio is last column to first\n")
    print(f"| network | what | {PEER} | girih | girih, checkpointing | ratio |\n|---|---|---:|---:|---:|---:|")
    with torch.device("meta"):
        theirs, ours = networks(width)
        image = torch.empty(1, 1, edge, edge, edge)
    pairs = {"encoder": (theirs.encoder, ours.pyramid.encoder), "U-Net": (theirs, ours)}
    for name, (their, mine) in pairs.items():
        columns = [peaks(their, image), peaks(mine, image)]
        set_checkpointing(mine)
        columns.append(peaks(mine, image))
        set_checkpointing(mine, False)
        for what, (a, b, c) in zip(("activations", "with gradients"), zip(*columns, strict=True), strict=True):
            print(f"| {name} | {what} | {a / 1e9:.2f} | {b / 1e9:.2f} | {c / 1e9:.2f} | {c / a:.2f}x |")


def on_gpu(width: int, patches: Iterable[int], steps: int, batch: int = 2) -> None:
    """Training steps of the U-Nets in bfloat16; TF32 is off for the gate and does not touch bfloat16."""
    print(f"\n{torch.cuda.get_device_name()}, U-Net, forward + backward, bfloat16, batch {batch}\n")
    print("| patch | network | images/s | GB | ratio of the speeds |\n|---|---|---:|---:|---:|")
    theirs, ours = (network.cuda() for network in networks(width))
    gate(theirs.encoder, ours.pyramid.encoder, torch.randn(1, 1, 64, 64, 64, device="cuda"))
    last, recomputed = (networks(width)[1].cuda() for _ in range(2))
    last = last.to(memory_format=torch.channels_last_3d)
    set_checkpointing(recomputed)
    rows = {
        PEER: theirs,
        "girih": ours,
        "girih, checkpointing": recomputed,
        "girih, channels last": last,
        "girih, compiled": torch.compile(networks(width)[1].cuda(), fullgraph=True, dynamic=False),
        "girih, compiled, channels last": torch.compile(last, fullgraph=True, dynamic=False),
    }
    for edge in patches:
        image = torch.randn(batch, 1, edge, edge, edge, device="cuda")
        found: dict[str, tuple[float, float]] = {}
        for name, network in [*rows.items(), *rows.items()]:  # twice: the better of two turns counts
            try:
                found[name] = max(found.get(name, (0.0, 0.0)), gpu_steps(network, image, steps))
            except torch.OutOfMemoryError:
                found[name] = (0.0, float("inf"))  # no memory suffices
        for name, (speed_, gb) in found.items():
            ratio = f"{speed_ / found[PEER][0]:.2f}x" if found[PEER][0] else "-"
            print(f"| {edge}^3 | {name} | {speed_:.2f} | {gb:.1f} | {ratio} |", flush=True)


def gpu_steps(network: nn.Module, image: torch.Tensor, steps: int) -> tuple[float, float]:
    """Images per second, and GB allocated at the peak beyond what lies there already."""
    for step in range(3 + steps):
        if step == 3:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before, start = torch.cuda.memory_allocated(), time.perf_counter()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            train(network, image)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return len(image) * steps / seconds, (torch.cuda.max_memory_allocated() - before) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the width, small patches, two rounds")
    quick = parser.parse_args().quick
    width, rounds = (4, 2) if quick else (1, 5)
    versions = ", ".join(f"{name} {version(name)}" for name in ("girih-backbones", PEER, "torch"))
    print(f"Python {platform.python_version()}, {versions}; {platform.machine()}, {torch.get_num_threads()} threads\n")
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    theirs, ours = networks(width)
    gate(theirs.encoder, ours.pyramid.encoder, torch.randn(1, 1, 64, 64, 64))
    print(f"ResEncL encoder{f' at 1/{width} of its width' if width > 1 else ''}, float32, best of {rounds}\n")
    speed(theirs.encoder, ours.pyramid.encoder, (64,) if quick else (64, 96), rounds)
    memory(width, 64 if quick else 192)
    if torch.cuda.is_available():
        on_gpu(width, (64,) if quick else (128, 192), steps=3 if quick else 10)


if __name__ == "__main__":
    main()
