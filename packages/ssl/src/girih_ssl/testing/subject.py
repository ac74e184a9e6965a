"""The method under test: how every check builds it, feeds it and reads its loss."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import jaxtyping
import torch
from torch import Tensor, nn

from girih_ssl.interfaces import ObjectiveConfig, Triple
from girih_ssl.testing.tiny import STRIDES, make_batch, tiny_parts


class ContractError(AssertionError):
    """An objective breaks the contract; the message says how."""


def require(condition: bool, reason: str) -> None:
    """Raise ContractError(reason) unless the condition holds."""
    if not condition:
        raise ContractError(reason)


@dataclass(frozen=True)
class Subject:
    """A config, and the patch, device and encoder it is tested on.

    Nothing is assumed of an objective but what a check is about, hence `Any`.
    """

    config: ObjectiveConfig
    """The settings under test."""
    patch_zyx: Triple | None = None
    """Voxels of the patch; None: twice `patch_multiple`, but at least 8 a side."""
    device: str = "cpu"
    """Where network and batch are; the seeds stay on the CPU."""
    strides: tuple[Triple, ...] = STRIDES
    """Those of the encoder."""

    def build(self, in_channels: int | tuple[int, int] = 1, patch_zyx: Triple | None = None, init: int = 0) -> Any:
        """Return a new objective in training mode whose parameters are drawn from `init`; see tiny_parts.

        Raises:
            ContractError: it lacks what every check needs: it is no module, or without `encoder` or `patch_multiple`.
        """
        patch_zyx = patch_zyx or self.patch()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(init)
            objective: Any = self.config.build(tiny_parts(in_channels, patch_zyx, self.strides))
        _require_usable(objective)
        return objective.to(self.device).train()

    def batch(
        self, size: int = 2, in_channels: int | tuple[int, int] = 1, patch_zyx: Triple | None = None
    ) -> dict[str, Any]:
        """Return a new batch with all the keys there are; see make_batch."""
        batch = cast(dict[str, Any], make_batch(size, in_channels, patch_zyx or self.patch()))
        return {key: value if key == "seed" else _moved(value, self.device) for key, value in batch.items()}

    def patch(self) -> Triple:
        """Return the voxels of the patch."""
        z, y, x = self.patch_zyx or (_patch_side(multiple) for multiple in self.multiple)
        return (z, y, x)

    def anisotropic_patch(self) -> Triple:
        """Return the patch, one multiple longer along y and two along x."""
        (z, y, x), (_, my, mx) = self.patch(), self.multiple
        return (z, y + my, x + 2 * mx)

    @cached_property
    def multiple(self) -> Triple:
        """The objective's `patch_multiple`, asked of one that is built for a patch of `patch_zyx` or 192^3.

        Raises:
            ContractError: `build` refuses that patch.
        """
        patch_zyx = self.patch_zyx or (192, 192, 192)
        try:
            z, y, x = self.build(patch_zyx=patch_zyx).patch_multiple
        except ValueError as error:
            raise ContractError(
                f"build() refuses a patch of {patch_zyx} voxels (z, y, x), which the kit tries first: {error}; "
                f"pass patch_zyx=, a patch that suits the config"
            ) from error
        return (z, y, x)

    def with_strides(self, strides: tuple[Triple, ...]) -> "Subject":
        """Return the same on an encoder with other strides; `patch_zyx` becomes a multiple of the coarsest."""
        if self.patch_zyx is None:
            return replace(self, strides=strides)
        z, y, x = (math.lcm(side, stride) for side, stride in zip(self.patch_zyx, strides[-1], strict=True))
        return replace(self, strides=strides, patch_zyx=(z, y, x))


def loss_in(found: Any) -> Any:
    """Return the loss, a tensor, in what forward() returned.

    Raises:
        ContractError: it is no dict, or there is no such tensor in it.
    """
    loss = found.get("loss") if isinstance(found, dict) else None
    if not isinstance(loss, Tensor):
        what = f"a dict of {sorted(found)}" if isinstance(found, dict) else type(found).__name__
        raise ContractError(f"forward: found {what}, wanted a dict with the tensor 'loss'")
    return loss


def loss_of(objective: Any, batch: dict[str, Any]) -> Tensor:
    """Return the loss as a detached scalar, with the global generator always in the same state.

    So an objective that draws from the global generator fails the one check that is about it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss: Tensor = loss_in(objective(batch)).detach()
    return loss.reshape(())


def backward(objective: Any, batch: dict[str, Any]) -> dict[str, Tensor | None]:
    """Return the gradient of the loss for every parameter by name, None where none arrives."""
    objective.zero_grad(set_to_none=True)
    loss_in(objective(batch)).sum().backward()
    return {name: parameter.grad for name, parameter in objective.named_parameters()}


@contextmanager
def run_time_types_off() -> Iterator[None]:
    """Switch off jaxtyping's checks, if any: torch.compile cannot trace them, and beartype draws from `random`."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: more do not help a tiny network, and wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def trainable(objective: Any) -> list[nn.Parameter]:
    """Return the parameters that an optimiser is given."""
    return [parameter for parameter in objective.parameters() if parameter.requires_grad]


def after_step(objective: Any) -> None:
    """Do what the training loop does after an optimiser step."""
    if hasattr(objective, "after_step"):
        objective.after_step()


def select(batch: dict[str, Any], start: int, step: int) -> dict[str, Any]:
    """Return every step-th sample of a batch, from start."""
    return {key: value[start::step] for key, value in batch.items()}


def turned(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch whose first sample comes last."""
    return {
        key: value.roll(-1, 0) if isinstance(value, Tensor) else [*value[1:], *value[:1]]
        for key, value in batch.items()
    }


def _require_usable(objective: Any) -> None:
    require(isinstance(objective, nn.Module), f"build: found {type(objective).__name__}, wanted an nn.Module")
    encoder = getattr(objective, "encoder", None)
    require(
        isinstance(encoder, nn.Module),
        f"encoder: found {type(encoder).__name__}, wanted an nn.Module: write self.encoder = parts.encoder",
    )
    multiple = getattr(objective, "patch_multiple", None)
    require(
        isinstance(multiple, tuple) and len(multiple) == 3 and all(type(m) is int and m > 0 for m in multiple),
        f"patch_multiple: found {multiple!r}, wanted three positive integers (z, y, x), such as encoder.strides[-1]",
    )


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return [each.to(device) if isinstance(each, Tensor) else each for each in value]


def _patch_side(multiple: int) -> int:
    return multiple * max(2, -(-8 // multiple))
