"""Worker processes that use one thread each, leave Ctrl-C to their parent and do not outlive it."""

import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_all_start_methods, get_context, parent_process

from threadpoolctl import threadpool_limits


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
