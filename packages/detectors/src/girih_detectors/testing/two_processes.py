"""DistributedDataParallel over two gloo processes on the CPU, against one process with the joined batch."""

import copy
import multiprocessing
import os
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from .subject import Make, build, require
from .tiny import toy_batch

BATCHES = ((3, 0, 1, 2), (3, 1, 0, 0))
"""Objects of the images of two joined batches. Each process has half of the images, with other numbers of anchors and
voxels; of the second batch one has no object at all."""
TOLERANCE = 1e-3
PATIENCE_S = 60.0
"""How long a process waits for the other. One that leaves out a step, for want of objects, keeps the other waiting."""


def check_two_processes_equal_one(make: Make) -> None:
    """Two processes under DDP, two images each, give the gradient of one process with all four; also without objects.

    The detector is pickled: its class must be importable. One that says `ddp_exact = False` of itself only has to run
    and to give finite gradients.
    """
    detector = build(make)
    exact = getattr(detector, "ddp_exact", True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            start_processes(_one_rank, (detector, folder, PATIENCE_S), nprocs=2, start_method=_start_method())  # type: ignore[no-untyped-call]
        except (ProcessRaisedException, ProcessExitedException) as error:
            raise AssertionError(f"a process failed, or waited {PATIENCE_S} s for the other: {error}") from error
        for batch in BATCHES:
            detector(*toy_batch(batch))["loss"].backward()
        with np.load(Path(folder) / "gradients.npz") as parallel:
            for name, parameter in detector.named_parameters():
                wanted = parameter.grad
                if wanted is None:
                    raise AssertionError(f"no gradient at `{name}`")
                found = torch.from_numpy(parallel[name])
                require(bool(torch.isfinite(found).all()), f"gradient of `{name}` is not finite")
                off = float((found - wanted).norm() / wanted.norm().clamp(min=1e-6))
                require(off < TOLERANCE or not exact, f"gradient of `{name}` differs by {off:.1e} (relative norm)")


def _start_method() -> str:
    """A fork server that has imported torch already starts a process in milliseconds."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    preload = ["girih_detectors.testing", "torch._dynamo"]  # DistributedDataParallel imports the second, for seconds
    multiprocessing.get_context("forkserver").set_forkserver_preload(preload)
    return "forkserver"


def _one_rank(rank: int, detector: Any, folder: str, patience_s: float) -> None:
    """One process of two: its own images, gradients of rank 0 into a file."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store, patience = f"file://{folder}/store", timedelta(seconds=patience_s)
    dist.init_process_group("gloo", init_method=store, timeout=patience, rank=rank, world_size=2)
    try:
        _gradients_of_half_the_images(rank, detector, folder)
        dist.barrier()
    finally:
        dist.destroy_process_group()  # nothing may hold it any more: threads that outlive it abort the process


def _gradients_of_half_the_images(rank: int, detector: Any, folder: str) -> None:
    mine = slice(2 * rank, 2 * rank + 2)
    # processes share the memory of the parameters; DDP wants its own
    parallel = nn.parallel.DistributedDataParallel(copy.deepcopy(detector))
    for batch in BATCHES:
        images, targets = toy_batch(batch)
        parallel(images[mine], targets[mine])["loss"].backward()  # the mean over processes of what has added up
    if rank == 0:
        gradients = {name: p.grad.numpy() for name, p in parallel.module.named_parameters() if p.grad is not None}
        np.savez(Path(folder) / "gradients.npz", **gradients)
