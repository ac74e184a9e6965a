"""DistributedDataParallel over two gloo processes on the CPU, against one process with the joined batch."""

import copy
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import start_processes

from .subject import Make, build, require
from .tiny import toy_batch

OBJECTS = (3, 0, 1, 2)
"""Of the images of the joined batch; each process has half of them, with other numbers of anchors and voxels."""
TOLERANCE = 1e-3


def check_two_processes_equal_one(make: Make) -> None:
    """Two processes under DDP, two images each, give the gradient of one process with all four.

    The detector is pickled: its class must be importable. One that says `ddp_exact = False` of itself only has to run
    and to give finite gradients.
    """
    detector = build(make)
    exact = getattr(detector, "ddp_exact", True)
    with tempfile.TemporaryDirectory() as folder:
        start_processes(_one_rank, args=(detector, folder), nprocs=2, start_method=_start_method())  # type: ignore[no-untyped-call]
        detector(*toy_batch(OBJECTS))["loss"].backward()
        with np.load(Path(folder) / "gradients.npz") as parallel:
            for name, parameter in detector.named_parameters():
                wanted = parameter.grad
                if wanted is None:
                    raise AssertionError(f"no gradient at `{name}`")
                found = torch.from_numpy(parallel[name])
                require(bool(torch.isfinite(found).all()), f"gradient of `{name}` is not finite")
                error = float((found - wanted).norm() / wanted.norm().clamp(min=1e-6))
                require(error < TOLERANCE or not exact, f"gradient of `{name}` differs by {error:.1e} (relative norm)")


def _start_method() -> str:
    """A fork server that has imported torch already starts a process in milliseconds."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    preload = ["girih_detectors.testing", "torch._dynamo"]  # DistributedDataParallel imports the second, for seconds
    multiprocessing.get_context("forkserver").set_forkserver_preload(preload)
    return "forkserver"


def _one_rank(rank: int, detector: Any, folder: str) -> None:
    """One process of two: its own images, gradients of rank 0 into a file."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        _gradients_of_half_the_batch(rank, detector, folder)
        dist.barrier()
    finally:
        dist.destroy_process_group()  # nothing may hold it any more: threads that outlive it abort the process


def _gradients_of_half_the_batch(rank: int, detector: Any, folder: str) -> None:
    images, targets = toy_batch(OBJECTS)
    mine = slice(2 * rank, 2 * rank + 2)
    # processes share the memory of the parameters; DDP wants its own
    parallel = nn.parallel.DistributedDataParallel(copy.deepcopy(detector))
    parallel(images[mine], targets[mine])["loss"].backward()
    if rank == 0:
        gradients = {name: p.grad.numpy() for name, p in parallel.module.named_parameters() if p.grad is not None}
        np.savez(Path(folder) / "gradients.npz", **gradients)
