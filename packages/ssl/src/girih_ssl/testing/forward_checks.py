"""Checks of what an objective makes of a batch: its loss, its randomness, its demands."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from girih_ssl.interfaces import Batch
from girih_ssl.testing.subject import ContractError, Subject, backward, loss_of, require, run_time_types_off

CALL = "call check_batch(batch, requires=..., in_channels=..., patch_multiple=...) first in forward()"


def check_members(subject: Subject) -> None:
    """The objective is an nn.Module with `encoder`, `requires` and `patch_multiple` as the protocol has them."""
    objective = subject.build()
    require(isinstance(objective, nn.Module), f"found {type(objective).__name__}, wanted an nn.Module")
    encoder = getattr(objective, "encoder", None)
    require(
        isinstance(encoder, nn.Module),
        f"encoder: found {type(encoder).__name__}, wanted an nn.Module: write self.encoder = parts.encoder",
    )
    absent = [name for name in ("in_channels", "channels", "strides", "stem", "stages") if not hasattr(encoder, name)]
    require(not absent, f"encoder: lacks {', '.join(absent)}; keep parts.encoder itself, unwrapped")
    requires = getattr(objective, "requires", None)
    require(isinstance(requires, frozenset), f"requires: found {requires!r}, wanted a frozenset of batch keys")
    unknown = set(requires or ()) - set(Batch.__annotations__)
    require(not unknown, f"requires: found {sorted(unknown)}, wanted keys among {sorted(Batch.__annotations__)}")
    multiple = getattr(objective, "patch_multiple", None)
    require(
        isinstance(multiple, tuple) and len(multiple) == 3 and all(type(m) is int and m > 0 for m in multiple),
        f"patch_multiple: found {multiple!r}, wanted three positive integers (z, y, x), such as encoder.strides[-1]",
    )


def check_loss_is_a_float32_scalar(subject: Subject) -> None:
    """The loss is one finite float32 number with a gradient."""
    loss = subject.build()(subject.batch())["loss"]
    require(loss.ndim == 0, f"loss: found shape {tuple(loss.shape)}, wanted a scalar: take its mean")
    _require_loss(loss, "loss")


def check_loss_under_bfloat16_autocast(subject: Subject) -> None:
    """Under bfloat16 autocast the loss is still float32, and it and its gradients are finite."""
    objective = subject.build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(subject.batch())["loss"]
    _require_loss(loss, "loss under bfloat16 autocast")
    loss.sum().backward()
    for name, parameter in objective.named_parameters():
        finite = parameter.grad is None or bool(parameter.grad.isfinite().all())
        require(finite, f"gradient of {name} under bfloat16 autocast: found NaN or infinity; compute it in float32")


def check_other_entries_are_detached_scalars(subject: Subject) -> None:
    """What is only logged keeps no graph alive."""
    for name, value in subject.build()(subject.batch()).items():
        if name != "loss":
            detached = isinstance(value, Tensor) and value.ndim == 0 and not value.requires_grad
            require(detached, f"{name}: found {_describe(value)}, wanted a detached scalar tensor: write .detach()")


def check_input_is_not_modified(subject: Subject) -> None:
    """The batch is the same afterwards: it may be kept, logged or used again."""
    batch, untouched = subject.batch(), subject.batch()
    subject.build()(batch)
    require(batch.keys() == untouched.keys(), f"batch keys: found {sorted(batch)}, wanted {sorted(untouched)}")
    for key, value in untouched.items():
        pairs = zip(batch[key], value, strict=True)
        same = all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)
        require(same, f"batch[{key!r}]: was modified in place; work on a copy, so no clamp_() and no x[...] = y")


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


def check_global_random_state_is_untouched(subject: Subject) -> None:
    """Nothing is drawn from, or seeded in, the global generators of torch, numpy and random."""
    objective, batch = subject.build(), subject.batch()
    with torch.random.fork_rng(devices=[]), run_time_types_off():
        before = _random_states()
        objective(batch)
        after = _random_states()
    touched = [name for name in before if before[name] != after[name]]
    require(not touched, f"global generator of {', '.join(touched)}: was used, wanted sample_generators(batch['seed'])")


def check_anisotropic_patch(subject: Subject) -> None:
    """A patch with three different sides works."""
    patch = subject.anisotropic_patch()
    _require_step(subject.build(patch_zyx=patch), subject.batch(patch_zyx=patch), f"patch {patch}")


def check_batch_of_one(subject: Subject) -> None:
    """A batch of one sample works."""
    _require_step(subject.build(), subject.batch(size=1), "batch of one sample")


def check_one_and_four_channels(subject: Subject) -> None:
    """One and four channels work, and the loss depends on each of them."""
    for channels in (1, 4):
        objective = subject.build(channels)
        _require_step(objective, subject.batch(2, channels), f"{channels} channels")
        before = loss_of(objective, subject.batch(2, channels))
        for channel in range(channels):
            batch = subject.batch(2, channels)
            batch["image"][:, channel] = batch["image"][:, channel].flip(1)
            require(
                not torch.equal(before, loss_of(objective, batch)),
                f"{channels} channels: the loss does not depend on channel {channel}; use all `parts.in_channels`",
            )


def check_list_of_images(subject: Subject) -> None:
    """Samples of 1 and 4 channels come as a list. With `stems` it is used, a tensor too; else it is a ValueError."""
    channels, what = (1, 4), "image: a list of samples with 1 and 4 channels"
    if not hasattr(subject.build(), "stems"):
        _require_value_error(subject.build(), subject.batch(2, channels), "image", what)
        return
    _require_step(subject.build(channels), subject.batch(2, channels), what)
    objective, listed = subject.build(), subject.batch()
    listed["image"] = list(listed["image"])
    stacked_loss, listed_loss = loss_of(objective, subject.batch()), loss_of(objective, listed)
    require(
        torch.allclose(stacked_loss, listed_loss, rtol=1e-4),
        f"image: found loss {float(stacked_loss)} for one tensor and {float(listed_loss)} for a list of the same",
    )


def check_missing_key_raises(subject: Subject) -> None:
    """Without a required key there is a ValueError that names it."""
    objective = subject.build()
    for key in sorted(objective.requires):
        batch = subject.batch()
        del batch[key]
        _require_value_error(objective, batch, key, f"batch without {key!r}")


def check_indivisible_patch_raises(subject: Subject) -> None:
    """A patch that is no multiple of `patch_multiple` is a ValueError that names the found side."""
    objective, patch = subject.build(), subject.patch()
    for axis, multiple in enumerate(objective.patch_multiple):
        if multiple > 1:
            z, y, x = (side + (i == axis) for i, side in enumerate(patch))
            batch = subject.batch(patch_zyx=(z, y, x))
            _require_value_error(objective, batch, str(patch[axis] + 1), f"patch {(z, y, x)}")


def check_reconstruct(subject: Subject) -> None:
    """`reconstruct`, if there is one, returns input, shown and output of the image's shape, without gradient."""
    objective, batch = subject.build(), subject.batch()
    if not hasattr(objective, "reconstruct"):
        return
    found = objective.reconstruct(batch)
    require(
        set(found) == {"input", "shown", "output"}, f"reconstruct: found {sorted(found)}, wanted input, shown, output"
    )
    for name, value in found.items():
        same = value.shape == batch["image"].shape and not value.requires_grad
        require(
            same, f"reconstruct[{name!r}]: found {_describe(value)}, wanted a detached {tuple(batch['image'].shape)}"
        )


def _loss_with_other_seed(objective: Any, subject: Subject, sample: int, by: int) -> Tensor:
    batch = subject.batch()
    batch["seed"][sample] += by
    return loss_of(objective, batch)


def _require_loss(loss: Tensor, what: str) -> None:
    require(loss.dtype == torch.float32, f"{what}: found {loss.dtype}, wanted torch.float32: write output.float()")
    require(loss.requires_grad, f"{what}: has no gradient; do not detach it, nor compute it under no_grad()")
    require(bool(loss.isfinite().all()), f"{what}: found {loss.detach()}, wanted a finite number")


def _require_step(objective: Any, batch: dict[str, Any], what: str) -> None:
    loss = loss_of(objective, batch)
    require(bool(loss.isfinite()), f"{what}: found loss {float(loss)}, wanted a finite number")
    for name, gradient in backward(objective, batch).items():
        finite = gradient is None or bool(gradient.isfinite().all())
        require(finite, f"{what}: found NaN or infinity in the gradient of {name}")


def _require_value_error(objective: Any, batch: dict[str, Any], wanted: str, what: str) -> None:
    try:
        objective(batch)
    except ValueError as error:
        require(wanted in str(error), f"{what}: found the message {str(error)!r}, wanted {wanted!r} in it")
    except Exception as error:
        raise ContractError(f"{what}: found {type(error).__name__}, wanted a ValueError; {CALL}") from error
    else:
        raise ContractError(f"{what}: was accepted, wanted a ValueError; {CALL}")


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
