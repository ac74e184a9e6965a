"""Checks over optimiser steps and processes: learning, gradients, state, teacher, compilation, DDP."""

import io
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from girih_ssl.testing.subject import (
    Subject,
    after_step,
    backward,
    loss_in,
    loss_of,
    require,
    run_time_types_off,
    trainable,
)
from girih_ssl.testing.tiny import tiny_parts
from girih_ssl.testing.two_processes import failures_of_two_processes

STEPS = 20


def check_loss_falls_on_one_batch(subject: Subject) -> None:
    """Twenty steps of Adam on one batch lower the loss by at least 2 % of its size."""
    objective, batch = subject.build(), subject.batch()
    optimiser = torch.optim.Adam(trainable(objective), lr=1e-2)
    first = float(loss_of(objective, batch))
    for _ in range(STEPS):
        backward(objective, batch)
        optimiser.step()
        after_step(objective)
    last = float(loss_of(objective, batch))
    require(
        last < first - 0.02 * abs(first),
        f"{STEPS} steps of Adam on one batch: found loss {first} before and {last} after, wanted less; "
        f"does the gradient reach head and encoder, with the right sign?",
    )


def check_gradient_reaches_every_encoder_parameter(subject: Subject) -> None:
    """What is not trained in pre-training is not worth transferring.

    Where an objective has a stem per dataset in `stems`, the encoder's own may be frozen.
    """
    objective = subject.build()
    backward(objective, subject.batch())
    for name, parameter in objective.encoder.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        replaced = name.startswith("stem.") and hasattr(objective, "stems") and not parameter.requires_grad
        require(
            reached or replaced,
            f"encoder.{name}: found {'zero' if parameter.grad is not None else 'no'} gradient; "
            "let the loss depend on every stage of the encoder, and detach none of its maps",
        )


def check_no_unused_parameter(subject: Subject) -> None:
    """Every trainable parameter gets a gradient; DDP fails on others. Encoder and teacher have their own."""
    objective = subject.build()
    gradients = backward(objective, subject.batch())
    for name, parameter in objective.named_parameters():
        elsewhere = name.startswith(("encoder.", "teacher."))
        unused = parameter.requires_grad and gradients[name] is None and not elsewhere
        require(not unused, f"{name}: is trainable but the loss does not use it; use it, freeze it or take it out")


def check_state_round_trip(subject: Subject) -> None:
    """The state dict is of tensors and holds all that the loss depends on: what is loaded gives the same loss."""
    saved, loaded = subject.build(init=0), subject.build(init=1)
    for name, value in saved.state_dict().items():
        require(isinstance(value, Tensor), f"state dict: {name} is {type(value).__name__}, wanted a tensor: a buffer")
    with torch.no_grad():
        for tensor in _tensors(saved).values():
            if tensor.is_floating_point():
                tensor.mul_(1.01).add_(0.01)  # as if trained, so that no value is the initial one
    loaded.load_state_dict(saved.state_dict())
    losses = [float(loss_of(objective, subject.batch())) for objective in (saved, loaded)]
    require(
        losses[0] == losses[1],
        f"found loss {losses[0]} before saving and {losses[1]} after loading; "
        f"what the loss depends on has to be a parameter, a buffer or a setting",
    )


def check_resume_equals_uninterrupted(subject: Subject) -> None:
    """A run that is saved, loaded into a new objective and continued ends with the same weights, teacher and all.

    Two steps of Adam with after_step() before, two after; the file is read with weights_only=True.
    """
    run, file = _Run(subject), io.BytesIO()
    run.train(range(2))
    torch.save({"objective": run.objective.state_dict(), "optimiser": run.optimiser.state_dict()}, file)
    run.train(range(2, 4))
    resumed, state = _Run(subject), torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    resumed.objective.load_state_dict(state["objective"])
    resumed.optimiser.load_state_dict(state["optimiser"])
    resumed.train(range(2, 4))
    states = [_tensors(each.objective) for each in (run, resumed)]
    other = [name for name, value in states[0].items() if not torch.equal(value, states[1][name])]
    require(
        not other,
        f"{', '.join(other[:3])}: not the same after a resume as without interruption; "
        f"what changes from step to step, such as a count, has to be a buffer, and the teacher a submodule",
    )


def check_teacher(subject: Subject) -> None:
    """A teacher is in eval mode, has no gradient, is in the state dict and nears the student in after_step() only."""
    objective = subject.build()
    teacher = getattr(objective, "teacher", None)
    if teacher is None:
        return
    require(isinstance(teacher, nn.Module), f"teacher: found {type(teacher).__name__}, wanted an nn.Module")
    require(
        not any(module.training for module in teacher.modules()),
        "teacher: train() puts it into training mode; override train() to end with self.teacher.eval()",
    )
    trained = [name for name, parameter in teacher.named_parameters() if parameter.requires_grad]
    require(not trained, f"teacher: {', '.join(trained[:3])} can be trained; write teacher.requires_grad_(False)")
    absent = {f"teacher.{name}" for name in teacher.state_dict()} - set(objective.state_dict())
    require(not absent, f"state dict: lacks {', '.join(sorted(absent)[:3])}; write self.teacher = ... in __init__")
    initial = _clone(teacher)
    optimiser = torch.optim.SGD(trainable(objective), lr=0.1)
    backward(objective, subject.batch())
    optimiser.step()
    require(_equal(teacher, initial), "teacher: moves before after_step(); move it only there")
    before = _distance_to_student(objective)
    after_step(objective)
    require(not _equal(teacher, initial), "teacher: does not move in after_step(); move it towards the encoder there")
    after = _distance_to_student(objective)
    require(
        after < before or before == 0,
        f"teacher: found it {after} away from the encoder after after_step(), wanted less than the {before} before",
    )


def check_exported_encoder_loads(subject: Subject) -> None:
    """A fresh encoder loads the encoder's state, nothing missing and nothing left over, and then makes the same maps.

    Where an objective has a stem per dataset in `stems`, each of them stands in for the encoder's own.
    """
    objective = subject.build().eval()
    exported = objective.encoder.state_dict()
    if not hasattr(objective, "stems"):
        _require_same_maps(subject, objective.encoder.stem, objective.encoder, exported, "encoder")
        return
    stages = {name: value for name, value in exported.items() if not name.startswith("stem.")}
    for dataset, stem in objective.stems.items():
        own = {f"stem.{name}": value for name, value in stem.state_dict().items()}
        what = f"encoder with the stem of {dataset!r}"
        _require_same_maps(subject, stem, objective.encoder, stages | own, what)


def check_compiles(subject: Subject) -> None:
    """torch.compile runs, forward and backward, and gives the same loss (backend aot_eager: no code is generated)."""
    eager = loss_of(subject.build(), subject.batch())
    torch.compiler.reset()
    compiled: Any = torch.compile(subject.build(), backend="aot_eager")
    with run_time_types_off(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer about its own intermediate tensors
        loss = loss_in(compiled(subject.batch()))
        loss.sum().backward()
    torch.compiler.reset()
    require(
        torch.allclose(loss.detach(), eager, rtol=1e-4),
        f"found loss {float(loss.detach().sum())} compiled and {float(eager)} eager; "
        f"put @torch.compiler.disable on a function that draws or reads values back",
    )


def check_two_processes_equal_one(subject: Subject) -> None:
    """DDP over two gloo processes with half a batch each gives the gradients of one process with the whole.

    The batch has the required keys only. With `ddp_exact = False` it has to run and give finite gradients.
    """
    failures = failures_of_two_processes(subject)
    require(not failures, "; ".join(failures))


class _Run:
    """A run in which step i is a function of i and of the state."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.objective = subject, subject.build()
        self.optimiser = torch.optim.Adam(trainable(self.objective), lr=1e-3)

    def train(self, steps: range) -> None:
        for step in steps:
            batch = self.subject.batch()
            batch["seed"] += step
            with torch.random.fork_rng(devices=[]):  # an objective that draws from it fails its own check
                torch.manual_seed(step)
                backward(self.objective, batch)
            self.optimiser.step()
            after_step(self.objective)


@torch.no_grad()
def _require_same_maps(subject: Subject, stem: Any, encoder: Any, state: dict[str, Tensor], what: str) -> None:
    fresh: Any = tiny_parts().encoder
    wanted = {name: tuple(value.shape) for name, value in fresh.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    require(
        not missing and not extra,
        f"{what}: missing {missing}, left over {extra}; "
        f"wrap nothing inside the encoder and register nothing on it, keep what is yours beside it",
    )
    changed = [f"{name} {found[name]}, wanted {wanted[name]}" for name in wanted if wanted[name] != found[name]]
    require(not changed, f"{what}: found {'; '.join(changed)}; give the encoder the volumes' channels")
    fresh.load_state_dict(state)
    image = subject.batch()["image"]
    maps = zip(encoder.stages(stem(image)), fresh.to(image.device).eval()(image), strict=True)
    require(
        all(torch.allclose(mine, theirs, rtol=1e-3, atol=1e-4) for mine, theirs in maps),
        f"{what}: makes other maps than a fresh encoder with the same weights; exchange no module inside it",
    )


def _distance_to_student(objective: Any) -> float:
    """Return how far the teacher's parameters are from those of the same name in the objective or its encoder."""
    students = dict(objective.named_parameters())
    apart = [
        mine.detach() - theirs.detach()
        for name, mine in objective.teacher.named_parameters()
        if (theirs := students.get(name, students.get(f"encoder.{name}"))) is not None
    ]
    return math.sqrt(sum(float(difference.square().sum()) for difference in apart))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def _clone(module: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in module.state_dict().values()]


def _equal(module: nn.Module, state: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), state, strict=True))
