"""Worker processes that use one thread each, leave Ctrl-C to their parent and do not outlive it."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from multiprocessing import get_all_start_methods, get_context, parent_process
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

BROKEN_POOLS = 3
"""Pools that may break one after the other before any job is finished; then the rest is given up."""
R = TypeVar("R")


class GaveUpError(BrokenExecutor):
    """The job was never begun: the pools before it broke."""


def run_jobs(
    function: Callable[..., R], jobs: Sequence[tuple[Any, ...]], workers: int | None
) -> Generator[tuple[int, R | BrokenExecutor], None, None]:
    """Call `function(*job)` for every job, in processes; yield the job's number and its result as they come.

    If a process dies, those it takes with it yield a `BrokenExecutor`, and a new pool takes the rest. An error that the
    function raises is raised here.

    Args:
        function: importable by name.
        jobs: arguments of each call; they are pickled.
        workers: processes; None: one per core that this process may use, at most one per job, and none for a single
            job; 0: the jobs are done here, one after the other, in one thread as in a pool.
    """
    if workers is None:
        workers = min(available_cores(), len(jobs)) if len(jobs) > 1 else 0
    if not workers:
        with threadpool_limits(1):  # the last bit of a matrix product may depend on it
            for number, job in enumerate(jobs):
                yield number, function(*job)
        return
    waiting, fruitless = deque(enumerate(jobs)), 0
    while waiting:
        running: dict[Future[R], int] = {}
        finished, broken = 0, False
        with worker_pool(workers) as pool:
            while running or (waiting and not broken):
                while waiting and not broken and len(running) < workers:
                    try:
                        running[pool.submit(function, *waiting[0][1])] = waiting[0][0]
                        waiting.popleft()
                    except BrokenExecutor:
                        broken = True
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    error = future.exception()
                    lost = isinstance(error, BrokenExecutor)
                    broken, finished = broken or lost, finished + (not lost)
                    number = running.pop(future)
                    yield number, error if isinstance(error, BrokenExecutor) else future.result()
        fruitless = 0 if finished else fruitless + 1
        if fruitless == BROKEN_POOLS:
            break
    for number, _ in waiting:
        yield number, GaveUpError(f"{fruitless} pools of processes broke before a case was finished")


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Return a pool of fresh processes; nothing is forked from this one, whose threads may hold locks.

    As with every such pool, a script that makes one at its top level needs `if __name__ == "__main__":`.
    """
    method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
    return ProcessPoolExecutor(workers, get_context(method), initializer=_settle)


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _settle() -> None:
    threadpool_limits(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the work; what a worker has begun it may finish
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the parent's end; a worker that waits for work would never learn of it otherwise."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
