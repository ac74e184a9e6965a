"""Checks of which batches an objective takes, on which encoder, and which it refuses."""

from typing import Any

import torch

from girih_ssl.testing.subject import ContractError, Subject, backward, loss_of, require
from girih_ssl.testing.tiny import OTHER_STRIDES

CALL = "call check_batch(batch, requires=..., in_channels=..., patch_multiple=...) first in forward()"


def check_anisotropic_patch(subject: Subject) -> None:
    """A patch with three different sides works."""
    patch = subject.anisotropic_patch()
    _require_step(subject.build(patch_zyx=patch), subject.batch(patch_zyx=patch), f"patch {patch}")


def check_anisotropic_strides(subject: Subject) -> None:
    """An encoder with other strides, (1, 2, 2) to (2, 8, 8), works as well, and `patch_multiple` follows them."""
    other, coarsest = subject.with_strides(OTHER_STRIDES), OTHER_STRIDES[-1]
    require(
        all(multiple % stride == 0 for multiple, stride in zip(other.multiple, coarsest, strict=True)),
        f"patch_multiple: found {other.multiple} for an encoder with the coarsest stride {coarsest}, wanted multiples "
        f"of that: take encoder.strides[-1]",
    )
    _require_step(other.build(), other.batch(), f"encoder with strides {OTHER_STRIDES}")


def check_batch_of_one(subject: Subject) -> None:
    """A batch of one sample works."""
    _require_step(subject.build(), subject.batch(size=1), "batch of one sample")


def check_batch_of_three(subject: Subject) -> None:
    """A batch of three samples works, or is a ValueError."""
    _require_step_or_value_error(subject.build(), subject.batch(size=3), "batch of three samples")


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


def check_constant_patch(subject: Subject) -> None:
    """A sample of one intensity only, such as air, has a finite loss, or is a ValueError."""
    batch = subject.batch()
    batch["image"][0] = 1.0
    _require_step_or_value_error(subject.build(), batch, "a constant patch")


def check_missing_key_raises(subject: Subject) -> None:
    """Without a required key there is a ValueError that names it."""
    objective = subject.build()
    for key in sorted(objective.requires):
        batch = subject.batch()
        del batch[key]
        _require_value_error(objective, batch, key, f"batch without {key!r}")


def check_indivisible_patch_raises(subject: Subject) -> None:
    """A patch that is no multiple of `patch_multiple` is a ValueError that names the found side."""
    for each in (subject, subject.with_strides(OTHER_STRIDES)):
        objective, patch = each.build(), each.patch()
        for axis, multiple in enumerate(objective.patch_multiple):
            if multiple > 1:
                z, y, x = (side + (i == axis) for i, side in enumerate(patch))
                batch = each.batch(patch_zyx=(z, y, x))
                _require_value_error(objective, batch, str(patch[axis] + 1), f"patch {(z, y, x)}")


def _require_step(objective: Any, batch: dict[str, Any], what: str) -> None:
    loss = loss_of(objective, batch)
    require(bool(loss.isfinite()), f"{what}: found loss {float(loss)}, wanted a finite number")
    for name, gradient in backward(objective, batch).items():
        finite = gradient is None or bool(gradient.isfinite().all())
        require(finite, f"{what}: found NaN or infinity in the gradient of {name}")


def _require_step_or_value_error(objective: Any, batch: dict[str, Any], what: str) -> None:
    try:
        objective(batch)
    except ValueError:
        return
    except Exception as error:
        raise ContractError(f"{what}: found {type(error).__name__}, wanted a loss or a ValueError: {error}") from error
    _require_step(objective, batch, what)


def _require_value_error(objective: Any, batch: dict[str, Any], wanted: str, what: str) -> None:
    try:
        objective(batch)
    except ValueError as error:
        require(wanted in str(error), f"{what}: found the message {str(error)!r}, wanted {wanted!r} in it")
    except Exception as error:
        raise ContractError(f"{what}: found {type(error).__name__}, wanted a ValueError; {CALL}") from error
    else:
        raise ContractError(f"{what}: was accepted, wanted a ValueError; {CALL}")
