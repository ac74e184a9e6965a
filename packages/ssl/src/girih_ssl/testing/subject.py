"""The method under test: how every check builds it, feeds it and reads its loss."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import jaxtyping
import torch
from torch import Tensor

from girih_ssl.interfaces import ObjectiveConfig, Triple
from girih_ssl.testing.tiny import make_batch, tiny_parts


class ContractError(AssertionError):
    """An objective breaks the contract; the message says how."""


def require(condition: bool, reason: str) -> None:
    """Raise ContractError(reason) unless the condition holds."""
    if not condition:
        raise ContractError(reason)


@dataclass(frozen=True)
class Subject:
    """A config and the patch it is tested on.

    Nothing is assumed of an objective but what a check is about, hence `Any`.
    """

    config: ObjectiveConfig
    """The settings under test."""
    patch_zyx: Triple | None = None
    """Voxels of the patch; None: twice `patch_multiple`, but at least 8 a side."""

    def build(self, in_channels: int | tuple[int, int] = 1, patch_zyx: Triple | None = None, init: int = 0) -> Any:
        """Return a new objective in training mode whose parameters are drawn from `init`; see tiny_parts."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(init)
            parts = tiny_parts(in_channels, patch_zyx or self.patch())
            objective: Any = self.config.build(parts)
            return objective.train()

    def batch(
        self, size: int = 2, in_channels: int | tuple[int, int] = 1, patch_zyx: Triple | None = None
    ) -> dict[str, Any]:
        """Return a new batch with all the keys there are; see make_batch."""
        return cast(dict[str, Any], make_batch(size, in_channels, patch_zyx or self.patch()))

    def patch(self) -> Triple:
        """Return the voxels of the patch."""
        z, y, x = self.patch_zyx or (_patch_side(multiple) for multiple in self.multiple())
        return (z, y, x)

    def anisotropic_patch(self) -> Triple:
        """Return the patch, one multiple longer along y and two along x."""
        (z, y, x), (_, my, mx) = self.patch(), self.multiple()
        return (z, y + my, x + 2 * mx)

    def multiple(self) -> Triple:
        """Return the objective's `patch_multiple`, asked of one that is built for a patch of 192^3 or `patch_zyx`."""
        objective: Any = self.config.build(tiny_parts(patch_zyx=self.patch_zyx or (192, 192, 192)))
        z, y, x = objective.patch_multiple
        return (z, y, x)


def loss_of(objective: Any, batch: dict[str, Any]) -> Tensor:
    """Return the loss as a detached scalar, with the global generator always in the same state.

    So an objective that draws from the global generator fails the one check that is about it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss: Tensor = objective(batch)["loss"]
    return loss.detach().reshape(())


def backward(objective: Any, batch: dict[str, Any]) -> dict[str, Tensor | None]:
    """Return the gradient of the loss for every parameter by name, None where none arrives."""
    objective.zero_grad(set_to_none=True)
    objective(batch)["loss"].sum().backward()
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


def after_step(objective: Any) -> None:
    """Do what the training loop does after an optimiser step."""
    if hasattr(objective, "after_step"):
        objective.after_step()


def select(batch: dict[str, Any], start: int, step: int) -> dict[str, Any]:
    """Return every step-th sample of a batch, from start."""
    return {key: value[start::step] for key, value in batch.items()}


def _patch_side(multiple: int) -> int:
    return multiple * max(2, -(-8 // multiple))
