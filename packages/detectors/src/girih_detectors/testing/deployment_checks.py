"""Checks of a detector that leaves home: its state, lower precision, torch.compile and torch.export."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .detection_checks import require_detections
from .subject import Make, TensorsOnly, build, require, run_time_types_off
from .tiny import toy_batch


def check_state_round_trip(make: Make) -> None:
    """Another detector that loads the state gives exactly the same tensors."""
    first, second = build(make, seed=0).eval(), build(make, seed=1).eval()
    second.load_state_dict(first.state_dict())
    images, _ = toy_batch((1,))
    with torch.no_grad():
        for i, (a, b) in enumerate(zip(first.tensors(images), second.tensors(images), strict=True)):
            require(torch.equal(a, b), f"output {i} of `tensors` differs after load_state_dict")


def check_bfloat16(make: Make) -> None:
    """Under bfloat16 autocast the loss is finite float32 within 10 % of float32's, and `detect` keeps its promises."""
    detector = build(make)
    images, targets = toy_batch((2, 0))
    full = float(detector(images, targets)["loss"].detach())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = detector(images, targets)["loss"]
        require_detections(detector, images)
    half.backward()
    require(half.dtype == torch.float32, f"the loss is {half.dtype}")
    found = float(half.detach())
    require(abs(found - full) <= 0.1 * abs(full), f"loss {found} in bfloat16, {full} in float32")


def check_tensors_compile(make: Make) -> None:
    """torch.compile takes `tensors` in one graph, forward and backward (aot_eager: no code is generated)."""
    images, _ = toy_batch((1,))
    eager, other = build(make), build(make)
    torch.compiler.reset()
    compiled: Any = torch.compile(TensorsOnly(other), backend="aot_eager", fullgraph=True)
    with run_time_types_off(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer about its own intermediate tensors
        found = compiled(images)
        torch.autograd.backward(_sum_of_squares(found))
    torch.compiler.reset()
    wanted = eager.tensors(images)
    _require_close(found, wanted, "compiled")
    torch.autograd.backward(_sum_of_squares(wanted))
    _require_same_gradients(other, eager)


def check_loss_compiles(make: Make) -> None:
    """torch.compile takes the detector itself, in as many graphs as it likes: the same loss and gradient."""
    images, targets = toy_batch((2, 0))
    eager, other = build(make), build(make)
    torch.compiler.reset()
    compiled: Any = torch.compile(other, backend="eager")  # traced, no more: what is made of a graph is checked above
    with run_time_types_off(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = compiled(images, targets)
    torch.compiler.reset()
    wanted = eager(images, targets)
    require(found.keys() == wanted.keys(), f"the loss has {sorted(found)} compiled, {sorted(wanted)} eager")
    _require_close([x.detach() for x in found.values()], [x.detach() for x in wanted.values()], "compiled")
    found["loss"].backward()
    wanted["loss"].backward()
    _require_same_gradients(other, eager)


def check_tensors_export(make: Make) -> None:
    """torch.export takes `tensors` for any number of images, and `postprocess` makes detections of what it gives.

    Exported with two images it runs with one and with three, and saved and loaded it gives the same.
    """
    detector = build(make).eval()
    images, _ = toy_batch((1, 2, 0))
    any_number = {"images": {0: torch.export.Dim("images", min=1)}}
    with run_time_types_off():
        program = torch.export.export(TensorsOnly(detector), (images[:2],), dynamic_shapes=any_number)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    here, there = program.module(), loaded.module()
    for some in (images[:1], images):
        with torch.no_grad():
            wanted, exported, reloaded = detector.tensors(some), here(some), there(some)
        _require_close(exported, wanted, "exported")
    for i, (a, b) in enumerate(zip(reloaded, exported, strict=True)):
        require(torch.equal(a, b), f"output {i} of the export changes when it is saved and loaded")
    _, _, *shape = images.shape
    for outside, inside in zip(detector.postprocess(reloaded, tuple(shape)), detector.detect(images), strict=True):
        for key in ("boxes", "scores", "labels"):
            a, b = (torch.as_tensor(found[key]) for found in (outside, inside))
            same = a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-3)
            require(same, f"`postprocess` of the exported tensors gives other {key} than `detect`")


def _require_close(found: Sequence[Tensor], wanted: Sequence[Tensor], how: str) -> None:
    require(len(found) == len(wanted), f"{len(found)} outputs {how}, {len(wanted)} eager")
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        off = float((a - b).detach().abs().max())
        require(torch.allclose(a, b, rtol=1e-4, atol=1e-5), f"output {i} {how} differs by {off:.1e}")


def _require_same_gradients(compiled: nn.Module, eager: nn.Module) -> None:
    for (name, a), b in zip(compiled.named_parameters(), eager.parameters(), strict=True):
        if a.grad is None or b.grad is None:
            require(a.grad is b.grad, f"gradient of `{name}` is there only compiled or only eager")
        else:
            error = float((a.grad - b.grad).norm() / b.grad.norm().clamp(min=1e-6))
            require(error < 1e-3, f"gradient of `{name}` differs by {error:.1e} (relative norm) when compiled")


def _sum_of_squares(outputs: Sequence[Tensor]) -> Tensor:
    return torch.stack([x.float().square().sum() for x in outputs]).sum()
