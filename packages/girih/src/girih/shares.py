"""Which share of a list of cases this process does: of a job array, of `torchrun`, of both.

There is no process group: processes come and go as they like, and know each other by the files that they write.
"""

import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from torch.distributed import DistError
from torch.distributed.rendezvous import rendezvous

Item = TypeVar("Item")
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
    """Return the share that "i/n" asks for, divided further among the processes of `torchrun` (RANK, WORLD_SIZE).

    Raises:
        ValueError: not of this form, or a shard that there is not.
    """
    part, parts = _parsed("--shard", "0/1" if shard is None else shard)
    names = ("RANK", "WORLD_SIZE")
    rank, world = _parsed("/".join(names), "/".join(environment.get(name, str(k)) for k, name in enumerate(names)))
    local = environment.get("LOCAL_RANK", "0")
    return Share(part * world + rank, parts * world, int(local) if local.isdecimal() else 0)


def wait_for_others(*, failed: bool, environment: Mapping[str, str] = os.environ) -> None:
    """Say that this process is through; if it failed, wait until all others are: `torchrun` then ends them all.

    Does nothing where this is not a process of `torchrun`.
    """
    if "TORCHELASTIC_RUN_ID" not in environment:
        return
    key = f"girih/through/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    with suppress(DistError):  # what the processes share is gone, with the machine that keeps it: nothing to wait for
        store, _, world = next(rendezvous("env://", timeout=timedelta(minutes=5)))
        through = store.add(key, 1)
        while failed and through < world:
            time.sleep(BETWEEN_LOOKS_S)
            through = store.add(key, 0)


def _parsed(name: str, text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    index, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not index < count:
        raise ValueError(f"{name} is {text!r}, wanted i/n with i from 0 to n - 1")
    return index, count
