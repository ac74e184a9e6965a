"""Speed and memory of the pre-training objectives, and of their parts against plain references, in one run.

    python benchmarks/objectives.py           # prints Markdown; some minutes on one core
    python benchmarks/objectives.py --tiny    # seconds: the script runs, its figures mean nothing

On the CPU everything runs on one thread, in turns; a time is the best CPU time (user + system) of the rounds. The
network is ResEncL with its U-Net decoder at an eighth of the width, where an objective's own share is larger than at
full width. Before anything is timed, results have to agree with the reference.

An objective's own share is what a step takes beyond its networks: the calls of encoders and decoder are recorded in
one step and played back, forward and backward, on the same tensors. Memory is that of the tensors alive at once, beyond
batch, weights and gradients. With a GPU: full width, bfloat16, images per second and allocated memory.
The script fails at its end if an aim was missed.
"""

import argparse
import importlib.util
import math
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

import girih_ssl
from girih_backbones import ResidualEncoder, UNetDecoder, make_encoder, make_stem, preset
from girih_ssl.masked_norm import masked_instance_norm
from girih_ssl.models_genesis import corrupt
from girih_ssl.sparse import VisibleCells
from girih_ssl.testing import make_batch

OURS = ("mae", "s3d", "models_genesis", "voco", "multitalent")
SAMPLES = 2
"""Of a batch. With a single one, PyTorch takes another and slower path through narrow convolutions on one thread."""
AIMS: list[tuple[str, bool]] = []
"""What was compared with a bound, and whether it was kept."""
DATASETS = {
    "organs": {"channels": 1, "classes": ["organ", "lesion"], "regions": [[1, 2], [2]], "activation": "sigmoid"},
    "lungs": {
        "channels": 1,
        "classes": ["lung", "nodule", "vessel"],
        "regions": [[1], [2], [3]],
        "activation": "softmax",
    },
}
SETTINGS = {"models_genesis": {f"{part}_probability": 1.0 for part in ("shuffle", "curve", "paint")}}
"""Every sample is shuffled, bent and painted; by default half of them are shuffled, nine of ten bent or painted."""
TESTS = Path(__file__).parents[1] / "packages" / "ssl" / "tests"


@dataclass(frozen=True)
class Size:
    """How much is run."""

    width: int
    """ResEncL's channels are divided by it."""
    stages: int
    edge: int
    rounds: int
    norms: tuple[tuple[int, int], ...]
    """Channels and edge of the maps to normalise."""
    genesis: int
    """Edge of the patches to corrupt."""
    genesis_patches: int
    genesis_batch: int


FULL = Size(8, 6, 64, 5, norms=((32, 64), (128, 16)), genesis=128, genesis_patches=32, genesis_batch=8)
TINY = Size(8, 3, 32, 1, norms=((4, 16),), genesis=32, genesis_patches=8, genesis_batch=4)


def make_parts(size: Size, patch_zyx: tuple[int, int, int]) -> girih_ssl.Parts:
    description = preset("resenc_l")
    kwargs = description["kwargs"]
    for name in ("channels", "downsampling", "kernels", "blocks"):
        kwargs[name] = kwargs[name][: size.stages]
    kwargs["channels"] = [channels // size.width for channels in kwargs["channels"]]
    encoder = make_encoder(description, 1)
    return girih_ssl.Parts(
        encoder=encoder,
        make_neck=lambda: UNetDecoder(encoder.channels, encoder.strides),
        make_stem=partial(make_stem, encoder),
        in_channels=1,
        patch_zyx=patch_zyx,
        datasets=DATASETS,
    )


class Run:
    """An objective, its batch and its optimiser: the study's SGD."""

    def __init__(self, name: str, size: Size, edge: int, device: str = "cpu") -> None:
        settings, self.patch = SETTINGS.get(name, {}), (edge, edge, edge)
        if name == "voco":
            crop, self.patch = (edge, edge, edge), (edge, edge, 2 * edge)
            settings = {"crop_zyx": crop, "n_crops": 2}
            if device == "cuda":  # as published, 3 x 3 crops; and 2 x 2 x 2 in patches of 128^3
                self.patch = (128, 128, 128) if edge == 128 else (64, 192, 192)
                settings = {"crop_zyx": (64, 64, 64)}
        torch.manual_seed(0)
        self.objective: Any = girih_ssl.objectives()[name](**settings).build(make_parts(size, self.patch)).to(device)
        batch: dict[str, Any] = dict(make_batch(SAMPLES, 1, self.patch))
        batch["dataset"] = list(DATASETS)  # of each dataset one
        self.batch = {key: batch[key] for key in self.objective.requires}
        for key in {"image", "semantic"} & self.batch.keys():
            self.batch[key] = self.batch[key].to(device)
        self.optimiser = torch.optim.SGD(self.objective.parameters(), 1e-2, momentum=0.99, nesterov=True)

    def forward_backward(self) -> None:
        self.optimiser.zero_grad()
        self.objective(self.batch)["loss"].backward()

    def step(self) -> None:
        self.forward_backward()
        torch.nn.utils.clip_grad_norm_(self.objective.parameters(), 12)
        self.optimiser.step()
        if hasattr(self.objective, "after_step"):
            self.objective.after_step()


@dataclass
class Call:
    """One call of a network: what it was given, and the gradients that came back."""

    network: Callable[..., Any]
    inputs: tuple[Any, ...]
    grad: bool
    gradients: dict[int, Tensor] = field(default_factory=dict)
    """By position among the outputs."""


def record(run: Run) -> list[Call]:
    """The calls of encoders, stems and decoders in one forward and backward pass."""
    networks: list[nn.Module] = list(getattr(run.objective, "stems", nn.ModuleDict()).values())
    for module in run.objective.modules():
        if isinstance(module, ResidualEncoder):
            networks += [module.stem, module.stages]
        elif isinstance(module, UNetDecoder):
            networks.append(module)
    calls: list[Call] = []

    def remember(network: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> Any:
        kept = tree_map(lambda x: x.detach().requires_grad_(x.requires_grad), inputs)
        calls.append(Call(network, kept, torch.is_grad_enabled()))
        passed_on = [id(x) in map(id, tree_iter(inputs)) for x in tree_iter(outputs)]
        outputs = tree_map(torch.Tensor.view_as, outputs, outputs)  # their gradients are those from outside alone
        for i, x in enumerate(tree_iter(outputs)):
            if x.requires_grad and not passed_on[i]:
                x.register_hook(partial(calls[-1].gradients.__setitem__, i))
        return outputs

    hooks = [network.register_forward_hook(remember) for network in dict.fromkeys(networks)]
    run.forward_backward()
    for hook in hooks:
        hook.remove()
    return calls


def play(run: Run, calls: Sequence[Call]) -> None:
    """The same work of the networks once more."""
    run.optimiser.zero_grad()
    done = []
    for call in calls:
        with torch.set_grad_enabled(call.grad):
            outputs = list(tree_iter(call.network(*call.inputs)))
        done.append([outputs[i] for i in call.gradients])
    for call, outputs in zip(reversed(calls), reversed(done), strict=True):
        torch.autograd.backward(outputs, list(call.gradients.values()))


def best_seconds(works: Mapping[Any, Callable[[], object]], rounds: int) -> dict[Any, float]:
    """The best CPU time of each, measured in turns, every other round backwards, after one that does not count."""
    best = dict.fromkeys(works, float("inf"))
    for turn in range(rounds + 1):
        for name in list(works)[:: 1 if turn % 2 else -1]:
            start = time.process_time()
            works[name]()
            if turn:
                best[name] = min(best[name], time.process_time() - start)
    return best


def aim(what: str, found: float, *, at_least: float = -math.inf, at_most: float = math.inf) -> None:
    """Note whether a ratio is within its bound."""
    bound = f">= {at_least:g}" if at_most == math.inf else f"<= {at_most:g}"
    AIMS.append((f"{what} | {bound} | {found:.2f}", at_least <= found <= at_most))


def steps(size: Size) -> None:
    """A training step of every objective, its own share, and the memory it takes."""
    runs = {name: Run(name, size, size.edge) for name in OURS}
    calls = {name: record(run) for name, run in runs.items()}
    for name, run in runs.items():
        gate_of_playback(run, calls[name])
    works: dict[Any, Callable[[], object]] = {}
    for name, run in runs.items():
        works |= {(name, "step"): run.step, (name, "both"): run.forward_backward}
        works[name, "networks"] = partial(play, run, calls[name])
    best = best_seconds(works, size.rounds)
    print("| objective | patch | step, s | to MAE | encoder, decoder, s | own share | peak, MB | to MAE |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    peaks = {name: peak(run) for name, run in runs.items()}
    for name, run in runs.items():
        step, networks = best[name, "step"], best[name, "networks"]
        share = (best[name, "both"] - networks) / step
        patch, ratio, memory = " x ".join(map(str, run.patch)), step / best["mae", "step"], peaks[name] / 1e6
        print(
            f"| {name} | {patch} | {step:.2f} | {ratio:.2f} | {networks:.2f} | {share:.1%} "
            f"| {memory:.0f} | {peaks[name] / peaks['mae']:.2f} |"
        )
        aim(f"{name}: own share of a step", share, at_most=0.10)
    aim("S3D step / MAE step", best["s3d", "step"] / best["mae", "step"], at_most=1.10)


def gate_of_playback(run: Run, calls: Sequence[Call]) -> None:
    """Played back, the networks get the gradients of a real pass, so nothing of their work is missing."""
    run.forward_backward()
    networks = {id(p) for call in calls if isinstance(call.network, nn.Module) for p in call.network.parameters()}
    wanted = {name: p.grad for name, p in run.objective.named_parameters() if id(p) in networks and p.grad is not None}
    play(run, calls)
    for name, gradient in wanted.items():
        found = run.objective.get_parameter(name).grad
        torch.testing.assert_close(found, gradient, atol=1e-5, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}")


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive at once, but for those that were there before."""

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()
        self.before = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in before}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                seen = StorageWeakRef(storage)
                if seen.cdata not in self.before:
                    self.alive.setdefault(seen.cdata, (seen, storage.nbytes()))
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(n_bytes for _, n_bytes in self.alive.values()))
        return out


def peak(run: Run) -> int:
    """Bytes of the tensors of a forward and backward pass at their peak."""
    for p in run.objective.parameters():
        p.grad = torch.zeros_like(p)
    given = [x for x in tree_iter(run.batch) if isinstance(x, Tensor)]
    with Alive([*given, *run.objective.state_dict().values(), *(p.grad for p in run.objective.parameters())]) as seen:
        run.objective(run.batch)["loss"].backward()
    return seen.peak


def norms(size: Size) -> None:
    """Instance normalisation over visible cells, against a dense one and one that gathers them as S3D's authors do."""
    print("\nInstance normalisation, forward + backward, batch 1, a quarter visible; ratios to the dense one\n")
    print("| map | dense, ms | gathered, ms | ratio | masked, ms | ratio |\n|---|---:|---:|---:|---:|---:|")
    for channels, edge in size.norms:
        x = torch.randn(1, channels, edge, edge, edge, requires_grad=True)
        weight, bias = torch.rand(channels, requires_grad=True), torch.rand(channels, requires_grad=True)
        shown = ~girih_ssl.draw_hidden_blocks(torch.tensor([0]), (4, 4, 4), 48)
        cells = VisibleCells(shown, (edge // 4,) * 3, [(1, 1, 1)]).on((edge, edge, edge))
        visible = cells.shown.bool()[0, 0]
        kinds = {
            "dense": partial(F.instance_norm, x, weight=weight, bias=bias),
            "gathered": partial(gathered_instance_norm, x, visible, weight, bias),
            "masked": partial(masked_instance_norm, x, cells, weight, bias),
        }
        train = partial(forward_backward, (x, weight, bias), torch.randn_like(x))
        for wanted, found in zip(train(kinds["gathered"]), train(kinds["masked"]), strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
        best = best_seconds({name: partial(train, norm) for name, norm in kinds.items()}, 4 * size.rounds)
        dense, gathered, masked = (1000 * best[name] for name in kinds)
        print(
            f"| {channels} x {edge}^3 | {dense:.1f} | {gathered:.1f} | {gathered / dense:.2f}x "
            f"| {masked:.1f} | {masked / dense:.2f}x |"
        )
        aim(f"masked / dense instance normalisation, {channels} x {edge}^3", masked / dense, at_most=1.6)


def forward_backward(inputs: tuple[Tensor, ...], upstream: Tensor, function: Callable[[], Tensor]) -> list[Tensor]:
    """What the function gives, and the gradients of its inputs."""
    out = function()
    return [out, *torch.autograd.grad(out, inputs, upstream)]


def gathered_instance_norm(x: Tensor, visible: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The visible cells side by side, normalised, and put back; every sample needs as many."""
    normalised = F.instance_norm(x[:, :, visible], weight=weight, bias=bias)
    out = torch.zeros_like(x)
    out[:, :, visible] = normalised
    return out


def genesis(size: Size) -> None:
    """The corruptions of Models Genesis, batch by batch, against the rule of the tests, patch by patch."""
    rule = load(TESTS / "reference_genesis.py")
    image = make_batch(size.genesis_batch, 1, (size.genesis,) * 3)["image"]
    patches = [patch.double().numpy() for patch in image]
    config = girih_ssl.objectives()["models_genesis"]()

    def by_rule() -> list[Any]:
        rng = np.random.default_rng(0)
        return [rule.pair(patches[i % len(patches)], rng) for i in range(size.genesis_patches)]

    def ours() -> list[Any]:
        seeds = torch.arange(size.genesis_patches).split(len(image))
        return [pair for seed in seeds for pair in zip(*corrupt(image, seed, config)[:2], strict=True)]

    kinds = {"rule": by_rule, "ours": ours}
    shares = [np.mean([np.mean(np.asarray(a) != np.asarray(b)) for a, b in kind()]) for kind in kinds.values()]
    if abs(shares[0] - shares[1]) > 0.1:
        raise AssertionError(f"corrupted voxels: found a share of {shares[1]}, the rule's is {shares[0]}")
    best = best_seconds(kinds, max(1, size.rounds // 2))
    seconds = [1000 * best[name] / size.genesis_patches for name in kinds]
    print(f"\nModels Genesis, corruption of {size.genesis_patches} patches in batches of {len(image)}\n")
    print("| patch | voxel by voxel, ms a patch | girih, ms a patch | ratio |\n|---|---:|---:|---:|")
    print(f"| {size.genesis}^3 | {seconds[0]:.1f} | {seconds[1]:.1f} | {seconds[0] / seconds[1]:.1f}x |")
    aim(f"Models Genesis, speed against the rule, {size.genesis}^3", seconds[0] / seconds[1], at_least=10)


def load(path: Path) -> ModuleType:
    """A file of the tests as a module: the baseline is what the tests compare with."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def on_gpu() -> None:
    """Training steps at full width in bfloat16."""
    print(f"\n{torch.cuda.get_device_name()}, ResEncL at full width, bfloat16, batch {SAMPLES}\n")
    print("| patch | objective | images/s | peak, GB |\n|---|---|---:|---:|")
    for edge in (128, 160):
        for name in OURS:
            speed, gb, patch = gpu_steps(name, edge)
            print(f"| {' x '.join(map(str, patch))} | {name} | {speed:.2f} | {gb:.1f} |", flush=True)


def gpu_steps(name: str, edge: int, n: int = 10) -> tuple[float, float, tuple[int, ...]]:
    """Images per second, and GB allocated at the peak, weights and optimiser included."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run = Run(name, replace(FULL, width=1), edge, device="cuda")
    for step in range(3 + n):
        if step == 3:
            torch.cuda.synchronize()
            start = time.perf_counter()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            run.step()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return SAMPLES * n / seconds, torch.cuda.max_memory_allocated() / 1e9, run.patch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small maps, one round, no aims: does it run?")
    tiny = parser.parse_args().tiny
    size = TINY if tiny else FULL
    torch.set_num_threads(1)
    versions = ", ".join(f"{name} {version(name)}" for name in ("girih-ssl", "girih-backbones", "torch"))
    print(f"Python {platform.python_version()}, {versions}; {platform.machine()}, 1 thread, best of {size.rounds}\n")
    print(f"ResEncL at 1/{size.width} of its width, batch {SAMPLES}, float32, with clipping and SGD\n")
    steps(size)
    norms(size)
    genesis(size)
    if torch.cuda.is_available() and not tiny:
        on_gpu()
    else:
        print("\nNo rows of a GPU: there is none here, or the run is a tiny one.")
    print("\n| aim | bound | found |\n|---|---|---:|")
    print("\n".join(f"| {line}{'' if kept else ' **missed**'} |" for line, kept in AIMS))
    if not tiny and not all(kept for _, kept in AIMS):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
