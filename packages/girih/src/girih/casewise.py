"""Case after case, with progress; one that fails does not stop the others."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from girih.scans import Scan

OnTiles = Callable[[int, int], None]
"""Called with (tiles done, all tiles)."""
LISTED = 20
"""Failures in the last message; each was shown when it happened, too."""


def case_by_case(scans: Sequence[Scan], work: Callable[[Scan, OnTiles], str | None], *, quiet: bool) -> dict[str, str]:
    """Call `work` for every case, and return case id -> reason of those that failed: ValueError, or too little memory.

    Args:
        scans: the cases.
        work: gives a few words about the case for the log; None: nothing was done.
        quiet: draw no bars, because another process does.
    """
    failed: dict[str, str] = {}
    console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=quiet) as progress:
        cases = progress.add_task("cases", total=len(scans))
        for scan in scans:
            began, tiles = time.monotonic(), progress.add_task(f"tiles of {scan.case_id}", total=None)
            try:
                said = work(scan, partial(_show, progress, tiles))
            except (ValueError, MemoryError) as error:
                failed[scan.case_id] = f"too little memory: {error}" if isinstance(error, MemoryError) else str(error)
                said = f"failed: {failed[scan.case_id]}"
            progress.remove_task(tiles)
            if said is not None:
                console.print(f"{scan.case_id}: {said} ({time.monotonic() - began:.1f} s)")
            progress.advance(cases)
    return failed


def refuse_failures(failed: Mapping[str, str], total: int, *others: str) -> None:
    """Raise ValueError with the list of failed cases, and other problems, if there are any."""
    lines = []
    if failed:
        lines.append(f"{len(failed)} of {total} cases failed, the others are done:")
        if len(failed) == total:
            lines = ["the only case failed:" if total == 1 else f"all {total} cases failed:"]
        lines += [f"  {case_id}: {why}" for case_id, why in list(failed.items())[:LISTED]]
        lines += [f"  and {len(failed) - LISTED} more"] if len(failed) > LISTED else []
    if lines := [*lines, *others]:
        raise ValueError("\n".join(lines))


def _show(progress: Progress, task: TaskID, done: int, total: int) -> None:
    progress.update(task, completed=done, total=total)
