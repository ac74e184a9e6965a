"""Checks of what an objective makes of a batch: its members, its loss, its randomness, its pictures."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from girih_ssl.interfaces import Batch
from girih_ssl.testing.subject import Subject, loss_in, loss_of, require, run_time_types_off, turned

BFLOAT16_TOLERANCE = 0.02  # of the loss; bfloat16 keeps 8 bits, and a loss in float32 averages their rounding


def check_members(subject: Subject) -> None:
    """The objective is an nn.Module with `encoder`, `requires` and `patch_multiple` as the protocol has them."""
    objective = subject.build()  # which looks for an encoder and `patch_multiple`
    encoder = objective.encoder
    absent = [name for name in ("in_channels", "channels", "strides", "stem", "stages") if not hasattr(encoder, name)]
    require(not absent, f"encoder: lacks {', '.join(absent)}; keep parts.encoder itself, unwrapped")
    requires = getattr(objective, "requires", None)
    require(isinstance(requires, frozenset), f"requires: found {requires!r}, wanted a frozenset of batch keys")
    unknown = set(requires or ()) - set(Batch.__annotations__)
    require(not unknown, f"requires: found {sorted(unknown)}, wanted keys among {sorted(Batch.__annotations__)}")


def check_loss_is_a_float32_scalar(subject: Subject) -> None:
    """The loss is one finite float32 number with a gradient."""
    loss = loss_in(subject.build()(subject.batch()))
    require(loss.ndim == 0, f"loss: found shape {tuple(loss.shape)}, wanted a scalar: take its mean")
    _require_loss(loss, "loss")


def check_loss_under_bfloat16_autocast(subject: Subject) -> None:
    """Under bfloat16 autocast the loss is still float32, about that without, and its gradients are finite."""
    objective = subject.build()
    wanted = float(loss_of(objective, subject.batch()))
    with torch.autocast(torch.device(subject.device).type, dtype=torch.bfloat16):
        loss = loss_in(objective(subject.batch()))
    _require_loss(loss, "loss under bfloat16 autocast")
    found = float(loss.detach().sum())
    require(
        abs(found - wanted) <= BFLOAT16_TOLERANCE * abs(wanted),
        f"loss under bfloat16 autocast: found {found}, wanted {wanted} as without; "
        f"write .float() before you compare, square or sum",
    )
    loss.sum().backward()
    for name, parameter in objective.named_parameters():
        finite = parameter.grad is None or bool(parameter.grad.isfinite().all())
        require(finite, f"gradient of {name} under bfloat16 autocast: found NaN or infinity; compute it in float32")


def check_other_entries_are_detached_scalars(subject: Subject) -> None:
    """What is only logged keeps no graph alive."""
    found = subject.build()(subject.batch())
    loss_in(found)
    for name, value in found.items():
        if name != "loss":
            detached = isinstance(value, Tensor) and value.ndim == 0 and not value.requires_grad
            require(detached, f"{name}: found {_describe(value)}, wanted a detached scalar tensor: write .detach()")


def check_input_is_not_modified(subject: Subject) -> None:
    """The batch is the same afterwards: it may be kept, logged or used again."""
    batch, untouched = subject.batch(), subject.batch()
    subject.build()(batch)
    _require_unmodified(batch, untouched)


def check_same_seed_same_loss(subject: Subject) -> None:
    """Equal batches have equal losses, bit for bit, however often they are asked for."""
    objective = subject.build()
    first, second = (loss_of(objective, subject.batch()) for _ in range(2))
    require(
        torch.equal(first, second),
        f"same batch, same seed: found losses {float(first)} and {float(second)}, wanted equal ones; "
        f"keep no state between calls, and draw from sample_generators(batch['seed'])",
    )


def check_every_seed_matters(subject: Subject) -> None:
    """If `seed` is required, another seed of any one sample gives another loss; of a `deterministic` one the same."""
    objective = subject.build()
    if "seed" not in objective.requires:
        return
    before = loss_of(objective, subject.batch())
    deterministic = getattr(objective, "deterministic", False)
    for sample in range(2):
        changed = any(
            not torch.equal(before, _loss_with_other_seed(objective, subject, sample, by)) for by in (1, 2, 3)
        )
        require(
            changed or deterministic,
            f"three other seeds for sample {sample} of 2: found the same loss {float(before)}, wanted others; draw "
            f"from sample_generators(batch['seed']), or say `deterministic = True` if nothing is drawn",
        )
        require(
            not changed or not deterministic,
            f"another seed for sample {sample} of 2: found another loss, wanted {float(before)} of a deterministic one",
        )


def check_order_of_samples(subject: Subject) -> None:
    """A sample's place in the batch has no effect: samples that change places, seeds and all, have the same loss."""
    one, other = (loss_of(subject.build(), batch) for batch in (subject.batch(), turned(subject.batch())))
    require(
        torch.allclose(one, other, rtol=1e-4),
        f"the same samples in another order: found losses {float(one)} and {float(other)}, wanted equal ones; "
        f"draw for every sample from its own generator, see sample_generators(batch['seed'])",
    )


def check_global_random_state_is_untouched(subject: Subject) -> None:
    """Nothing is drawn from, or seeded in, the global generators of torch, numpy and random."""
    objective, batch = subject.build(), subject.batch()
    with _global_generators_unused():
        objective(batch)


def check_reconstruct(subject: Subject) -> None:
    """`reconstruct`, if there is one, returns input, shown and output of the image's shape, finite, without gradient.

    They are the same when asked for again. Mode, batch and global random states are left as they are.
    """
    objective, batch = subject.build(), subject.batch()
    if not hasattr(objective, "reconstruct"):
        return
    with _global_generators_unused("reconstruct: "):
        found, again = (objective.reconstruct(batch) for _ in range(2))
    wanted = {"input", "shown", "output"}
    require(set(found) == wanted, f"reconstruct: found {sorted(found)}, wanted input, shown, output")
    for name, value in found.items():
        where, shape = f"reconstruct[{name!r}]", tuple(batch["image"].shape)
        same = value.shape == shape and not value.requires_grad
        require(same, f"{where}: found {_describe(value)}, wanted a detached {shape}")
        require(bool(value.isfinite().all()), f"{where}: found NaN or infinity")
        require(torch.equal(value, again[name]), f"{where}: found other values for the same batch")
    evaluating = [name for name, module in objective.named_modules() if not module.training]
    before = [name for name, module in subject.build().named_modules() if not module.training]
    require(evaluating == before, "reconstruct: changes the training mode; put it back, or leave it alone")
    _require_unmodified(batch, subject.batch(), "reconstruct: ")


def _loss_with_other_seed(objective: Any, subject: Subject, sample: int, by: int) -> Tensor:
    batch = subject.batch()
    batch["seed"][sample] += by
    return loss_of(objective, batch)


def _require_loss(loss: Tensor, what: str) -> None:
    require(loss.dtype == torch.float32, f"{what}: found {loss.dtype}, wanted torch.float32: write output.float()")
    require(loss.requires_grad, f"{what}: has no gradient; do not detach it, nor compute it under no_grad()")
    require(bool(loss.isfinite().all()), f"{what}: found {loss.detach()}, wanted a finite number")


def _require_unmodified(batch: dict[str, Any], untouched: dict[str, Any], where: str = "") -> None:
    require(batch.keys() == untouched.keys(), f"{where}batch keys: found {sorted(batch)}, wanted {sorted(untouched)}")
    for key, value in untouched.items():
        pairs = zip(batch[key], value, strict=True)
        same = all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)
        require(same, f"{where}batch[{key!r}]: was modified in place; work on a copy, so no clamp_() and no x[...] = y")


@contextmanager
def _global_generators_unused(where: str = "") -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), run_time_types_off():
        before = _random_states()
        yield
        after = _random_states()
    touched = ", ".join(name for name in before if before[name] != after[name])
    require(not touched, f"{where}global generator of {touched}: was used, wanted sample_generators(batch['seed'])")


def _random_states() -> dict[str, object]:
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002  # the legacy generator is the one to be left alone
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(numpy_state["state"]),
        "random": random.getstate(),
    }


def _describe(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} {'with' if value.requires_grad else 'without'} gradient"
