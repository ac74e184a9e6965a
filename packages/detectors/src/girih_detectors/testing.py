"""What every detector of this package promises, as named checks; run them on your own.

    from girih_detectors.testing import check_detector
    check_detector(lambda pyramid, classes: MyDetector(pyramid, classes=classes))

Each check builds a fresh detector on a tiny pyramid and raises AssertionError, led by its own name. All of them take
about half a minute on one core. `check_two_processes_equal_one` pickles the detector to start processes: its class must
be importable.
"""

import copy
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from .interfaces import Detector, Target
from .ops import pairwise_iou

CLASSES = ("dim", "bright")
STRIDES = ((1, 1, 1), (2, 2, 2), (4, 4, 4))
CUBE = (24, 24, 24)

Make = Callable[[nn.Module, tuple[str, ...]], Any]
"""Builds the detector under test on a pyramid, for these classes."""


class TinyPyramid(nn.Module):
    """A pyramid of three 16-channel maps: strided convolutions down, interpolation and addition up."""

    def __init__(self, in_channels: int = 1, strides: Sequence[tuple[int, int, int]] = STRIDES) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.strides = tuple(strides)
        self.channels = (16,) * len(self.strides)
        steps = [self.strides[0]] + [
            (b[0] // a[0], b[1] // a[1], b[2] // a[2]) for a, b in zip(self.strides, self.strides[1:], strict=False)
        ]
        widths = [in_channels, *self.channels]
        self.down = nn.ModuleList(_unit(i, o, s) for i, o, s in zip(widths, self.channels, steps, strict=False))
        self.lateral = nn.ModuleList(nn.Conv3d(c, c, 1) for c in self.channels)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> list[Tensor]:
        """Return the maps, finest first."""
        maps: list[Tensor] = []
        for down, lateral in zip(self.down, self.lateral, strict=True):
            x = down(x)
            maps.append(lateral(x))
        for fine in reversed(range(len(maps) - 1)):
            maps[fine] = maps[fine] + nn.functional.interpolate(maps[fine + 1], size=maps[fine].shape[2:])
        return maps


def toy_batch(
    objects: Sequence[int], shape: tuple[int, int, int] = CUBE, channels: int = 1
) -> tuple[Tensor, list[Target]]:
    """Return images of faint noise with this many cuboids each (at most 4), and their targets.

    Class 0 has intensity 1, class 1 has 2; cuboids have sides of 1/4 of the axis and do not touch. A margin at the end
    of x is not valid.
    """
    noise = torch.Generator().manual_seed(0)
    images = 0.1 * torch.randn((len(objects), channels, *shape), generator=noise)
    places = [(0.125, 0.125, 0.125), (0.5, 0.5625, 0.125), (0.125, 0.625, 0.5), (0.625, 0.125, 0.5625)]
    targets: list[Target] = []
    for place, (image, count) in enumerate(zip(images, objects, strict=True)):
        instances = torch.zeros(shape, dtype=torch.int32)
        boxes = torch.zeros(count, 6)
        for row in range(count):
            low = [int(p * n) for p, n in zip(places[row], shape, strict=True)]
            high = [start + max(1, n // 4) for start, n in zip(low, shape, strict=True)]
            where = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            instances[where] = row + 1
            image[(slice(None), *where)] += 1 + row % 2
            boxes[row] = torch.tensor([*low, *high])
        valid = torch.ones(shape, dtype=torch.bool)
        valid[:, :, -2 - place :] = False  # another number of voxels in each image
        targets.append({"boxes": boxes, "labels": torch.arange(count) % 2, "instances": instances, "valid": valid})
    return images, targets


def check_losses_are_finite(make: Make) -> None:
    """`forward` returns a finite scalar loss with gradient and finite detached parts, with and without objects."""
    detector = _build(make)
    for objects in ((2, 3), (3, 0), (0, 0)):
        losses = detector(*toy_batch(objects))
        _require("loss" in losses, f"`forward` returned {sorted(losses)}, wanted the key `loss`")
        for name, value in losses.items():
            _require(value.shape == (), f"`{name}` has shape {tuple(value.shape)}")
            _require(bool(torch.isfinite(value)), f"objects {objects}: `{name}` is {value}")
            _require(value.requires_grad == (name == "loss"), f"`{name}`: requires_grad is {value.requires_grad}")


def check_gradients_reach_every_parameter(make: Make) -> None:
    """Every parameter has a finite gradient, also from images without objects (or DDP waits for it forever)."""
    for objects in ((2, 1), (0, 0)):
        detector = _build(make)
        detector(*toy_batch(objects))["loss"].backward()
        for name, parameter in detector.named_parameters():
            if parameter.grad is None:
                raise AssertionError(f"objects {objects}: no gradient at `{name}`")
            _require(
                bool(torch.isfinite(parameter.grad).all()), f"objects {objects}: gradient of `{name}` is not finite"
            )


def check_detections_are_sorted_and_inside(make: Make) -> None:
    """`detect` returns float32 boxes inside the image, descending float32 scores in [0, 1] and int64 labels."""
    detector = _build(make)
    _check_detections(detector, toy_batch((2, 0))[0])


def check_anisotropic_patch(make: Make) -> None:
    """A patch of three different sides and a pyramid with strides that differ per axis train and detect."""
    detector = _build(make, strides=((1, 1, 1), (1, 2, 2), (2, 4, 4)))
    images, targets = toy_batch((2, 1), shape=(8, 32, 24))
    _require(bool(torch.isfinite(detector(images, targets)["loss"])), "the loss is not finite")
    _check_detections(detector, images)


def check_one_and_four_channels(make: Make) -> None:
    """Images of one and of four channels fit; a wrong number raises ValueError."""
    for channels in (1, 4):
        detector = _build(make, in_channels=channels)
        _require(bool(torch.isfinite(detector(*toy_batch((1,), channels=channels))["loss"])), "the loss is not finite")
        try:
            detector(*toy_batch((1,), channels=channels + 1))
        except ValueError:
            continue
        raise AssertionError(f"{channels + 1} channels were taken by a detector for {channels}")


def check_bad_targets_are_refused(make: Make) -> None:
    """Boxes outside, inverted or NaN and labels out of range raise a ValueError that names target 1 and row 2."""
    detector = _build(make)
    faults: dict[str, Callable[[Target], Tensor]] = {
        "outside": lambda target: target["boxes"][2, 5].add_(1000),
        "inverted": lambda target: target["boxes"][2].copy_(target["boxes"][2].roll(3)),
        "NaN": lambda target: target["boxes"][2, 0].fill_(torch.nan),
        "label": lambda target: target["labels"][2].fill_(len(CLASSES)),
    }
    for name, spoil in faults.items():
        images, targets = toy_batch((1, 3))
        spoil(targets[1])
        message = "no error"
        try:
            detector(images, targets)
        except ValueError as error:
            message = str(error)
        _require("target 1" in message, f"{name}: wanted `target 1` in the error: {message}")
        _require("row 2" in message, f"{name}: wanted `row 2` in the error: {message}")


def check_state_round_trip(make: Make) -> None:
    """Another detector that loads the state gives exactly the same tensors."""
    first, second = _build(make, seed=0).eval(), _build(make, seed=1).eval()
    second.load_state_dict(first.state_dict())
    images, _ = toy_batch((1,))
    with torch.no_grad():
        for i, (a, b) in enumerate(zip(first.tensors(images), second.tensors(images), strict=True)):
            _require(torch.equal(a, b), f"output {i} of `tensors` differs after load_state_dict")


def check_bfloat16(make: Make) -> None:
    """Under bfloat16 autocast the loss is finite float32 within 10 % of float32's, and `detect` keeps its promises."""
    detector = _build(make)
    images, targets = toy_batch((2, 0))
    full = float(detector(images, targets)["loss"].detach())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = detector(images, targets)["loss"]
        _check_detections(detector, images)
    half.backward()
    _require(half.dtype == torch.float32, f"the loss is {half.dtype}")
    found = float(half.detach())
    _require(abs(found - full) <= 0.1 * abs(full), f"loss {found} in bfloat16, {full} in float32")


def check_tensors_export(make: Make) -> None:
    """torch.export takes `tensors`; the exported program gives the same numbers."""
    detector = _build(make).eval()
    images, _ = toy_batch((1,))
    program = torch.export.export(_Tensors(detector), (images,))
    with torch.no_grad():
        for i, (a, b) in enumerate(zip(program.module()(images), detector.tensors(images), strict=True)):
            _require(
                torch.allclose(a, b, rtol=1e-4, atol=1e-5), f"output {i} differs by {float((a - b).abs().max()):.1e}"
            )


def check_overfits_one_image(make: Make) -> None:
    """Within 400 steps of Adam the n best boxes of a training image are its n objects, one to one."""
    detector = _build(make)
    images, targets = toy_batch((3,))
    optimiser = torch.optim.Adam(detector.parameters(), lr=3e-3)
    fault = ""
    for step in range(1, 401):
        optimiser.zero_grad()
        detector(images, targets)["loss"].backward()
        optimiser.step()
        if step % 20 == 0:
            fault = _mismatch(detector, images, targets[0])
            if not fault:
                return
    raise AssertionError(f"after 400 steps: {fault}")


def check_two_processes_equal_one(make: Make) -> None:
    """Two gloo processes under DDP, one image each, give the gradient of one process with both images."""
    detector = _build(make)
    with tempfile.TemporaryDirectory() as folder:
        spawn(_one_rank, args=(detector, folder), nprocs=2)  # type: ignore[no-untyped-call]
        detector(*toy_batch((3, 0)))["loss"].backward()
        with np.load(Path(folder) / "gradients.npz") as parallel:
            for name, parameter in detector.named_parameters():
                wanted = parameter.grad
                if wanted is None:
                    raise AssertionError(f"no gradient at `{name}`")
                error = float((torch.from_numpy(parallel[name]) - wanted).norm() / wanted.norm().clamp(min=1e-6))
                _require(error < 1e-3, f"gradient of `{name}` differs by {error:.1e} (relative norm)")


CHECKS = (
    check_losses_are_finite,
    check_gradients_reach_every_parameter,
    check_detections_are_sorted_and_inside,
    check_anisotropic_patch,
    check_one_and_four_channels,
    check_bad_targets_are_refused,
    check_state_round_trip,
    check_bfloat16,
    check_tensors_export,
    check_overfits_one_image,
    check_two_processes_equal_one,
)


def check_detector(make: Make, checks: Sequence[Callable[[Make], None]] = CHECKS) -> None:
    """Run the checks on the detectors that `make(pyramid, classes)` builds.

    Raises:
        AssertionError: a check failed; the message starts with its name.
    """
    for check in checks:
        try:
            check(make)
        except AssertionError as error:
            raise AssertionError(f"{check.__name__}: {error}") from error


def _require(held: bool, fault: str) -> None:
    """Raise what an assert statement would, which `python -O` leaves out."""
    if not held:
        raise AssertionError(fault)


class _Tensors(nn.Module):
    """`tensors` as forward, which is what torch.export traces."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.detector.tensors(images)
        return outputs


def _build(
    make: Make, *, in_channels: int = 1, strides: Sequence[tuple[int, int, int]] = STRIDES, seed: int = 0
) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(TinyPyramid(in_channels, strides), CLASSES)


def _unit(in_channels: int, out_channels: int, step: tuple[int, int, int]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, 3, stride=step, padding=1),
        nn.GroupNorm(4, out_channels),
        nn.LeakyReLU(),
    )


def _check_detections(detector: Detector, images: Tensor) -> None:
    found = detector.detect(images)
    _require(len(found) == len(images), f"{len(found)} results for {len(images)} images")
    limit = torch.tensor(images.shape[2:] * 2)
    for one in found:
        boxes, scores, labels = (torch.as_tensor(one[key]) for key in ("boxes", "scores", "labels"))
        _require(boxes.shape == (len(scores), 6), f"boxes have shape {tuple(boxes.shape)} for {len(scores)} scores")
        _require(labels.shape == scores.shape, f"{len(labels)} labels for {len(scores)} scores")
        _require(
            (boxes.dtype, scores.dtype, labels.dtype) == (torch.float32, torch.float32, torch.int64), "wrong dtype"
        )
        _require(not any(x.requires_grad for x in (boxes, scores)), "detections carry a gradient")
        _require(bool((scores[1:] <= scores[:-1]).all()), "scores do not descend")
        _require(bool(((scores >= 0) & (scores <= 1)).all()), "a score lies outside [0, 1]")
        _require(bool(((boxes >= 0) & (boxes <= limit)).all()), "a box reaches out of the image")
        _require(bool((boxes[:, :3] <= boxes[:, 3:]).all()), "a box is inverted")
        _require(bool(((labels >= 0) & (labels < len(detector.classes))).all()), "a label has no class")


def _mismatch(detector: Detector, image: Tensor, target: Target) -> str:
    """Say what is wrong with the n best detections, or nothing."""
    found = detector.detect(image)[0]
    n = len(target["boxes"])
    boxes, labels = torch.as_tensor(found["boxes"])[:n], torch.as_tensor(found["labels"])[:n]
    if len(boxes) < n:
        return f"{len(boxes)} boxes for {n} objects"
    overlap = pairwise_iou(boxes, target["boxes"])
    hit = overlap.argmax(1)
    if sorted(hit.tolist()) != list(range(n)):
        return f"the {n} best boxes hit objects {hit.tolist()}"
    if float(overlap.max(1).values.min()) < 0.5:
        return f"IoU of the {n} best boxes with their objects is {overlap.max(1).values.tolist()}"
    if not torch.equal(labels, target["labels"][hit]):
        return f"labels are {labels.tolist()}, wanted {target['labels'][hit].tolist()}"
    return ""


def _one_rank(rank: int, detector: Any, folder: str) -> None:
    """One process of two: its own image, gradients of rank 0 into a file."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        _gradients_of_one_image(rank, detector, folder)
        dist.barrier()
    finally:
        dist.destroy_process_group()  # nothing may hold it any more: threads that outlive it abort the process


def _gradients_of_one_image(rank: int, detector: Any, folder: str) -> None:
    images, targets = toy_batch((3, 0))
    # spawned processes share the memory of the parameters; DDP wants its own
    parallel = nn.parallel.DistributedDataParallel(copy.deepcopy(detector))
    parallel(images[rank : rank + 1], targets[rank : rank + 1])["loss"].backward()
    if rank == 0:
        gradients = {name: p.grad.numpy() for name, p in parallel.module.named_parameters() if p.grad is not None}
        np.savez(Path(folder) / "gradients.npz", **gradients)
