"""Which share of a list of cases this process does: of a job array, of `torchrun`, of both.

There is no process group: processes come and go as they like, and know each other by the files that they write.
"""

import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from torch.distributed import DistError
from torch.distributed.rendezvous import rendezvous

Item = TypeVar("Item")
TORCHRUN = "TORCHELASTIC_RUN_ID"
"""In the environment of every process of `torchrun`; RANK alone may have been left there by something else."""
BETWEEN_LOOKS_S = 0.5


@dataclass(frozen=True)
class Share:
    """Every `count`-th item from the `index`-th on (from 0)."""

    index: int = 0
    count: int = 1
    local: int = 0
    """Number of this process on its machine, which chooses a GPU."""

    def of(self, items: Sequence[Item]) -> list[Item]:
        """Return this process's items."""
        return list(items[self.index :: self.count])


def read_share(shard: str | None, environment: Mapping[str, str] = os.environ) -> Share:
    """Return the share that "i/n" asks for, divided further among the processes of `torchrun`, if it runs this one.

    Raises:
        ValueError: not of this form, or a shard that there is not.
    """
    part, parts = _parsed("--shard", "0/1" if shard is None else shard)
    if TORCHRUN not in environment:
        return Share(part, parts)
    rank, world = _parsed("RANK/WORLD_SIZE", f"{environment.get('RANK')}/{environment.get('WORLD_SIZE')}")
    local = environment.get("LOCAL_RANK", "0")
    return Share(part * world + rank, parts * world, int(local) if local.isdecimal() else 0)


def refuse_shares(environment: Mapping[str, str] = os.environ) -> None:
    """Check that this process is not one of several.

    Raises:
        ValueError: RANK or WORLD_SIZE say that it is.
    """
    for name, alone in (("RANK", "0"), ("WORLD_SIZE", "1")):
        if (found := environment.get(name, alone)) != alone:
            raise ValueError(f"one process alone can do this, but the environment says {name}={found}")


@contextmanager
def with_others(environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Let the other processes of `torchrun`, which ends them all when one fails, finish before an error leaves here.

    What several of them would say is said by one; the others leave by SystemExit. Does nothing outside `torchrun`.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if TORCHRUN in environment and not _meet(environment, str(error)):
            raise SystemExit(2) from error
        raise
    if TORCHRUN in environment:
        _meet(environment, None)


def _meet(environment: Mapping[str, str], problem: str | None) -> bool:
    """Say that this process is through, with a problem wait until all are; return whether it is the first with it."""
    key, first = f"girih/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}", True
    with suppress(DistError):  # what the processes share is gone, with the machine that keeps it: nothing to wait for
        store, _, world = next(rendezvous("env://", timeout=timedelta(minutes=5)))
        if problem is not None:
            first = store.add(f"{key}/{hashlib.sha256(problem.encode()).hexdigest()}", 1) == 1
        through = store.add(f"{key}/through", 1)
        while problem is not None and through < world:
            time.sleep(BETWEEN_LOOKS_S)
            through = store.add(f"{key}/through", 0)
    return first


def _parsed(name: str, text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    index, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not index < count:
        raise ValueError(f"{name} is {text!r}, wanted i/n with i from 0 to n - 1")
    return index, count
