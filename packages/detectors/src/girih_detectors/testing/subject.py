"""The detector under test: how every check builds it, and how it says no."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jaxtyping
import torch
from torch import Tensor, nn

from .tiny import CLASSES, STRIDES, TinyPyramid

Make = Callable[[nn.Module, tuple[str, ...]], Any]
"""Builds the detector under test on a pyramid, for these classes. Of it is assumed only what a check is about."""


def build(make: Make, *, in_channels: int = 1, strides: Sequence[tuple[int, int, int]] = STRIDES, seed: int = 0) -> Any:
    """Return a new detector on a tiny pyramid, its parameters drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(TinyPyramid(in_channels, strides), CLASSES)


def require(held: bool, fault: str) -> None:
    """Raise what an assert statement would, which `python -O` leaves out."""
    if not held:
        raise AssertionError(fault)


class TensorsOnly(nn.Module):
    """`tensors` as forward, which is what torch.export and torch.compile trace."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the raw output."""
        outputs: tuple[Tensor, ...] = self.detector.tensors(images)
        return outputs


@contextmanager
def run_time_types_off() -> Iterator[None]:
    """Switch off jaxtyping's checks, if any: torch.compile cannot trace them."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
