"""Speed and memory of Deformable DETR: with girih's deformable attention and with `grid_sample`, eager and compiled.

    python benchmarks/detr.py             # prints Markdown; some minutes on two cores
    python benchmarks/detr.py --tiny      # everything but the compiled rows once on small inputs, in a minute
    python benchmarks/detr.py --gpu-only  # the rows that need CUDA

Before anything is timed, both attentions must give the same loss and the same gradient for the same weights. Times are
the best of several interleaved rounds, on the CPU in CPU time. A part's share is its own time, forward and backward on
the inputs that it has in a step, over the step's.

Memory is counted without any: on fake tensors, in bfloat16 autocast (by the CPU's rules), to the predictions of all
layers. "kept" is what autograd keeps for the backward pass, each storage once, without the parameters. "peak" adds what
is alive at once besides, in the forward and the backward pass of the mean of the predictions. Neither knows what
convolutions need for themselves, nor fragmentation, nor the CUDA context. What is kept is counted once more in a small
real run, and has to be the same. With a GPU: training steps in bfloat16, images per second and allocated memory.
"""

import argparse
import copy
import platform
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from girih_backbones import make_encoder, preset, set_checkpointing
from girih_detectors import DeformableAttention3D, DeformableDETR, Target, set_loss, zyx_to_grid
from girih_detectors.ops.deformable_attention_reference import (
    centre_and_step,
    deformable_attention_reference,
    softmax,
    wide_dtype,
)

MATCHER_AIM = 3.0  # percent of a step
TOLERANCE = {"loss": 1e-4, "gradient": 1e-3}  # relative, float32
# a compiled backbone rounds otherwise, and some units take the other side of their kink
TOLERANCE_COMPILED = {"loss": 1e-3, "gradient": 5e-2}
COUNT_TOLERANCE = 1e-3
ADAMW_AMSGRAD_STATES = 3  # mean, mean square and its maximum, float32 as the parameters are
OBJECTS = 5  # in an image
Shape = tuple[int, int, int]
AGAIN = ("nothing", "encoder", "backbone", "encoder and backbone")  # what runs once more in the backward pass
SMALL: Shape = (32, 32, 64)
LARGE: list[tuple[Shape, int]] = [((128, 128, 128), 4), ((192, 192, 192), 2)]  # patch, batch: as the paper trains


class GridSampleAttention(DeformableAttention3D):
    """The same layer by `grid_sample` under autograd, as one writes it down."""

    def forward(
        self,
        query: Tensor,
        reference_points_zyx: Tensor,
        memory: Tensor,
        spatial_shapes: Any,
        valid: Tensor | None = None,
    ) -> Tensor:
        rows = (*query.shape[:2], self.heads, self.levels, self.points)
        value = self.value_proj(memory).view(*memory.shape[:2], self.heads, -1)
        offsets, logits = self.sampling_offsets(query).view(*rows, 3), self.attention_weights(query).view(rows)
        centre, step = centre_and_step(zyx_to_grid(reference_points_zyx), spatial_shapes, self.points)
        weights = softmax(logits, wide_dtype(value))
        return self.output_proj(
            deformable_attention_reference(value, spatial_shapes, centre + offsets * step, weights).to(value.dtype)
        )


@dataclass(frozen=True)
class Size:
    """The paper's detector, or less of it."""

    name: str
    width: int = 1
    """What the encoder's channels are divided by."""
    blocks: int = 6
    """The most of a stage."""
    layers: tuple[int, int] = (3, 6)
    """Of the transformer's encoder and decoder."""


PAPER = Size("ResEncL")
QUARTER = Size("ResEncL at 1/4 of its width", 4)
TINY = Size("tiny", 8, 1, (1, 2))


def network(size: Size, again: str = "nothing") -> DeformableDETR:
    """The detector with 12 queries; `again` says what runs once more in the backward pass."""
    description = preset("resenc_l")
    channels, blocks = description["kwargs"]["channels"], description["kwargs"]["blocks"]
    description["kwargs"]["channels"] = [c // size.width for c in channels]
    description["kwargs"]["blocks"] = [min(size.blocks, number) for number in blocks]
    encoder = make_encoder(description, 1)
    set_checkpointing(encoder, "backbone" in again)
    return DeformableDETR(
        encoder,
        classes=["object"],
        queries=12,
        encoder_layers=size.layers[0],
        decoder_layers=size.layers[1],
        checkpoint_encoder="encoder" in again,
    ).train()


@torch.no_grad()
def shaken(model: DeformableDETR) -> DeformableDETR:
    """Moved off its start, where boxes do not depend on anything and points lie on voxels, at a kink."""
    for name, parameter in model.named_parameters():
        if "sampling_offsets" in name or "attention_weights" in name or "box_head" in name:
            parameter.add_(0.02 * torch.randn_like(parameter))
        if name.endswith("sampling_offsets.bias"):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def with_grid_sample(model: DeformableDETR) -> DeformableDETR:
    """A copy with the same weights."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, DeformableAttention3D):
            layer.__class__ = GridSampleAttention
    return model


def compiled(model: DeformableDETR) -> DeformableDETR:
    """A copy whose network, all but loss and post-processing, is one graph."""
    model = copy.deepcopy(model)
    model._read = torch.compile(model._read, fullgraph=True, dynamic=False)
    return model


def batch_of(n: int, shape: Shape, device: str = "cpu") -> tuple[Tensor, list[Target]]:
    """Images of noise with objects of 6 to 40 voxels (a third of the image at most)."""
    generator, size = torch.Generator().manual_seed(0), torch.tensor(shape)
    targets: list[Target] = []
    for _ in range(n):
        side = 6 + ((size / 3).clamp(max=40) - 6) * torch.rand(OBJECTS, 3, generator=generator)
        low = (size - side) * torch.rand(OBJECTS, 3, generator=generator)
        labels = torch.zeros(OBJECTS, dtype=torch.int64, device=device)
        targets.append({"boxes": torch.cat([low, low + side], 1).to(device), "labels": labels})
    return torch.randn(n, 1, *shape, generator=generator).to(device), targets


def step(model: DeformableDETR, images: Tensor, targets: list[Target]) -> Tensor:
    model.zero_grad()
    with autocast(images):
        loss = model(images, targets)["loss"]
    loss.backward()
    return loss.detach()


def detect(model: DeformableDETR, images: Tensor) -> None:
    with autocast(images):
        model.detect(images)


def autocast(images: Tensor) -> torch.autocast:
    return torch.autocast(images.device.type, torch.bfloat16, enabled=images.device.type == "cuda")


def gate(models: dict[str, DeformableDETR], images: Tensor, targets: list[Target]) -> None:
    """The same loss and gradient in float32, or nothing is timed."""
    wanted: list[Tensor] = []
    for name, model in models.items():
        model.zero_grad()
        loss = model(images, targets)["loss"]
        loss.backward()
        found = [loss.detach()[None], torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])]
        wanted = wanted or found
        for what, a, b in zip(("loss", "gradient"), found, wanted, strict=True):
            off = float((a - b).norm() / b.norm())
            if not off < (TOLERANCE_COMPILED if "compiled" in name else TOLERANCE)[what]:
                raise SystemExit(f"the {what} of {name} differs by {off:.1e} from grid_sample's; nothing is timed")


def seconds(works: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """The least time of each, measured in turns, after a round that does not count; on the CPU, CPU time."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    best = dict.fromkeys(works, float("inf"))
    for turn in range(rounds + 1):
        for name in list(works)[:: 1 if turn % 2 else -1]:
            wait(device)
            start = clock()
            works[name]()
            wait(device)
            if turn:
                best[name] = min(best[name], clock() - start)
    return best


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def speed(size: Size, shape: Shape, n: int, rounds: int, device: str) -> None:
    images, targets = batch_of(n, shape, device)
    ours = shaken(network(size)).to(device)
    models = {"grid_sample": with_grid_sample(ours), "girih": ours}
    if size is not TINY:
        models |= {f"{name}, compiled": compiled(model) for name, model in models.items()}
    gate(models, images, targets)
    kind = "milliseconds" if device == "cuda" else "CPU milliseconds"
    print(f"\n{size.name}, {extent(shape)}, batch {n}, {OBJECTS} objects an image, {kind} per patch\n")
    print("| what | who | time | ratio to grid_sample | to it compiled |\n|---|---|---:|---:|---:|")
    for what in ("training step", "inference"):
        works = {name: partial(step, model.train(), images, targets) for name, model in models.items()}
        if what == "inference":
            works = {name: partial(detect, model.eval(), images) for name, model in models.items()}
        times = seconds(works, rounds, device)
        for name, value in times.items():
            ratios = [f"{times[base] / value:.2f}x" if base in times else "-" for base in BASES]
            print(f"| {what} | {name} | {1e3 * value / n:.1f} | {' | '.join(ratios)} |", flush=True)
    shares(ours.train(), images, targets, rounds, device)


BASES = ("grid_sample", "grid_sample, compiled")


def extent(shape: Shape) -> str:
    return f"{shape[0]}^3" if len(set(shape)) == 1 else "x".join(map(str, shape))


def shares(model: DeformableDETR, images: Tensor, targets: list[Target], rounds: int, device: str) -> None:
    layers = [module for module in model.modules() if isinstance(module, DeformableAttention3D)]
    inputs: dict[nn.Module, tuple[Any, ...]] = {}
    hooks = [layer.register_forward_pre_hook(lambda layer, given: inputs.update({layer: given})) for layer in layers]
    with (
        patch.object(set_loss, "matching_costs", wraps=set_loss.matching_costs) as costs,
        patch.object(set_loss, "match_hungarian", wraps=set_loss.match_hungarian) as match,
    ):
        step(model, images, targets)
    for hook in hooks:
        hook.remove()
    cases = [(layer, tree_map(fresh, given)) for layer, given in inputs.items()]

    def matching() -> None:
        found = set_loss.matching_costs(*costs.call_args.args, **costs.call_args.kwargs)
        set_loss.match_hungarian(found, *match.call_args.args[1:]).to(device)

    works: dict[str, Callable[[], object]] = {
        "training step": partial(step, model, images, targets),
        "backbone": partial(both_passes, [(model.pyramid, (images,))]),
        "deformable attention": partial(both_passes, cases),
        "matching": matching,
    }
    times = seconds(works, rounds, device)
    times["everything else"] = 2 * times["training step"] - sum(times.values())
    print("\n| part of the training step, eager | milliseconds | share | aim |\n|---|---:|---:|---|")
    for name, value in times.items():
        aim = f"<= {MATCHER_AIM:.0f} %" if name == "matching" else ""
        print(f"| {name} | {1e3 * value:.1f} | {100 * value / times['training step']:.1f} % | {aim} |", flush=True)


def many_objects(objects: int, queries: int, tokens: int, n: int, rounds: int) -> None:
    """Matching alone, six layers of the decoder and the encoder's proposals, and what it needs at most."""
    loss, layers = set_loss.SetLoss(), [*[queries] * 6, tokens]
    logits, boxes = torch.randn(n, sum(layers), 1), torch.rand(n, sum(layers), 6)
    truth, labels = torch.rand(n, objects, 6), torch.zeros(n, objects, dtype=torch.int64)

    def costs() -> Tensor:
        return set_loss.matching_costs(
            logits,
            boxes,
            truth,
            labels,
            classification=loss.cost_classification,
            l1=loss.cost_l1,
            giou_weight=loss.cost_giou,
            gamma=loss.gamma,
            alpha=loss.alpha,
        )

    found = costs()
    works: dict[str, Callable[[], object]] = {
        "costs": costs,
        "assignment": partial(set_loss.match_hungarian, found, [objects] * n, layers),
    }
    times = seconds(works, rounds, "cpu")
    with Alive([logits, boxes, truth, labels]) as seen:
        costs()
    print(f"\nMatching, batch {n}, 6 x {queries} queries and {tokens:,} voxels of memory an image, CPU milliseconds\n")
    print("| objects an image | costs | assignment | MB of costs | MB at the peak |\n|---:|---:|---:|---:|---:|")
    columns = [
        *(f"{1e3 * value:.0f}" for value in times.values()),
        *(f"{b / 1e6:.0f}" for b in (found.nbytes, seen.peak)),
    ]
    print(f"| {objects} | {' | '.join(columns)} |", flush=True)


def fresh(given: Any) -> Any:
    return given.detach().requires_grad_(given.requires_grad) if isinstance(given, Tensor) else given


def both_passes(cases: Iterable[tuple[nn.Module, tuple[Any, ...]]]) -> None:
    for module, given in cases:
        with autocast(given[0]):
            out = module(*given)
        outputs = [tensor for tensor in tree_iter(out) if tensor.requires_grad]
        torch.autograd.backward(outputs, [torch.ones_like(tensor) for tensor in outputs])


def kept_bytes(model: DeformableDETR, images: Tensor) -> int:
    """What autograd keeps of a forward pass to the predictions, each storage once, without parameters and images."""
    known = {StorageWeakRef(t.untyped_storage()).cdata for t in (images, *model.parameters())}
    kept: dict[int, tuple[Tensor, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = StorageWeakRef(storage).cdata
        if key not in known:
            kept[key] = (tensor.detach(), storage.nbytes())  # held, so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        predictions(model, images)
    return sum(n_bytes for _, n_bytes in kept.values())


def predictions(model: DeformableDETR, images: Tensor) -> list[Tensor]:
    """Logits and boxes of all layers, as they reach the loss."""
    with torch.autocast("cpu", torch.bfloat16):
        decoded, proposed = model._read(images)
        return [tensor for layer in (*decoded, proposed) for tensor in (layer.logits, layer.boxes)]


class Alive(TorchDispatchMode):
    """The most bytes of tensors that are alive at once, but for those that were there before."""

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in before}
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage._cdata)
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self.forget, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.bytes)
        return out

    def forget(self, address: int, n_bytes: int) -> None:
        self.known.remove(address)
        self.bytes -= n_bytes


def peak_bytes(model: DeformableDETR, images: Tensor) -> int:
    """What is alive at most in a forward and a backward pass besides parameters, their gradients and images."""
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    with Alive([images, *(t for p in model.parameters() for t in (p, p.grad) if t is not None)]) as seen:
        torch.stack([tensor.float().mean() for tensor in predictions(model, images)]).sum().backward()
    return seen.peak


def memory(size: Size, cases: Iterable[tuple[Shape, int]], variants: Iterable[str]) -> None:
    check_count()
    print(
        "\nGB of a training step, counted; parameters, gradients and AdamW's states (amsgrad) are 20 bytes a number\n"
    )
    print("| network | patch, batch | runs again | kept | peak | parameters and so on | in all |")
    print("|---|---|---|---:|---:|---:|---:|")
    for shape, n in cases:
        for again in variants:
            with FakeTensorMode():
                model = network(size, again)
                images = torch.empty(n, 1, *shape)
                kept, peak = kept_bytes(model, images), peak_bytes(model, images)
            state = sum(p.numel() for p in model.parameters()) * 4 * (2 + ADAMW_AMSGRAD_STATES)
            columns = " | ".join(f"{count / 1e9:.2f}" for count in (kept, peak, state, peak + state))
            print(f"| {size.name} | {extent(shape)}, {n} | {again} | {columns} |", flush=True)


def check_count() -> None:
    """Fake tensors are counted as real ones are, or nothing is told; they take statistics of norms for half as wide."""
    for again in AGAIN[::3]:
        real = kept_bytes(network(TINY, again), torch.randn(2, 1, *SMALL))
        with FakeTensorMode():
            fake = kept_bytes(network(TINY, again), torch.empty(2, 1, *SMALL))
        if abs(fake / real - 1) > COUNT_TOLERANCE:
            raise SystemExit(f"fake tensors keep {fake:,} bytes, real ones {real:,}; nothing is counted")


def measured_memory(size: Size, cases: Iterable[tuple[Shape, int]]) -> None:
    """Peaks of real steps on the GPU, with the loss and its matching."""
    print("\n| network | patch, batch | runs again | GB at the peak, with AdamW |\n|---|---|---|---:|")
    for shape, n in cases:
        batch = batch_of(n, shape, "cuda")
        for again in AGAIN:
            model = network(size, again).cuda()
            optimiser = torch.optim.AdamW(model.parameters(), amsgrad=True)
            torch.cuda.reset_peak_memory_stats()
            try:
                for _ in range(2):
                    step(model, *batch)
                    optimiser.step()
                found = f"{torch.cuda.max_memory_allocated() / 1e9:.1f}"
            except torch.OutOfMemoryError:
                found = "out of memory"
            print(f"| {size.name} | {extent(shape)}, {n} | {again} | {found} |", flush=True)
            del model, optimiser
            torch.cuda.empty_cache()


def versions() -> Iterator[str]:
    for name in ("girih-detectors", "girih-backbones", "torch", "triton", "scipy"):
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"no {name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small inputs and networks, nothing compiled")
    parser.add_argument("--gpu-only", action="store_true", help="only the rows that need CUDA")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False  # for the gate: both passes in float32
    print(f"Python {platform.python_version()}, {', '.join(versions())}; {platform.machine()}, one thread")
    if not arguments.gpu_only:
        if arguments.tiny:
            speed(TINY, SMALL, 1, 1, "cpu")
            many_objects(20, 30, 500, 2, 1)
            memory(TINY, [(SMALL, 2)], AGAIN[::3])
        else:
            speed(QUARTER, (64, 64, 64), 2, 2, "cpu")
            for objects in (30, 100):
                many_objects(objects, 300, 37_440, 4, 3)  # the memory of 128^3
            memory(PAPER, LARGE, AGAIN)
    if not torch.cuda.is_available():
        print("\nNo CUDA device: the Triton kernels and real peaks were not measured.")
        return
    print(f"\n{torch.cuda.get_device_name()}")
    if arguments.tiny:
        speed(TINY, SMALL, 1, 2, "cuda")
        measured_memory(TINY, [(SMALL, 1)])
    else:
        speed(PAPER, (128, 128, 128), 2, 5, "cuda")
        measured_memory(PAPER, LARGE)


if __name__ == "__main__":
    main()
