"""Case after case, with progress; one that fails does not stop the others."""

import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from girih.scans import Scan

OnTiles = Callable[[int, int], None]
"""Called with (tiles done, all tiles)."""
LISTED = 20
"""Failures in the last message; each was shown when it happened, too."""


def case_by_case(scans: Sequence[Scan], work: Callable[[Scan, OnTiles], str | None], *, quiet: bool) -> dict[str, str]:
    """Call `work` for every case, and return case id -> reason of those for which it raised ValueError.

    Args:
        scans: the cases.
        work: gives a few words about the case for the log; None: nothing was done.
        quiet: draw no bars, because another process does.
    """
    failed: dict[str, str] = {}
    console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=quiet) as progress:
        cases, tiles = progress.add_task("cases", total=len(scans)), progress.add_task("tiles", total=None)
        for scan in scans:
            began = time.monotonic()
            progress.reset(tiles, description=f"tiles of {scan.case_id}", total=None)
            try:
                said = work(scan, lambda done, total: progress.update(tiles, completed=done, total=total))
            except ValueError as error:
                failed[scan.case_id] = str(error)
                said = f"failed: {error}"
            if said is not None:
                console.print(f"{scan.case_id}: {said} ({time.monotonic() - began:.1f} s)")
            progress.advance(cases)
    return failed


def refuse_failures(failed: Mapping[str, str], total: int) -> None:
    """Raise ValueError with the list of failures, if there are any."""
    if failed:
        lines = [f"{len(failed)} of {total} cases failed, the others are done:"]
        lines += [f"{case_id}: {why}" for case_id, why in list(failed.items())[:LISTED]]
        lines += [f"and {len(failed) - LISTED} more"] if len(failed) > LISTED else []
        raise ValueError("\n  ".join(lines))
