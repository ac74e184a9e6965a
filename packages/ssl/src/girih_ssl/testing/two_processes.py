"""DDP over two gloo processes on the CPU, against one process with the joined batch."""

import dataclasses
import importlib
import importlib.util
import multiprocessing
import sys
import tempfile
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from girih_ssl.interfaces import Triple
from girih_ssl.testing.subject import ContractError, Subject, backward, require, select

WORLD = 2
SAMPLES = 4
TOLERANCE = 1e-3  # of the largest gradient in the same tensor
ROUNDING = 1e-6  # of the largest gradient of all: where the true one is 0, what is left of larger numbers
TIMEOUT = timedelta(seconds=60)


def failures_of_two_processes(subject: Subject) -> list[str]:
    """Return what went wrong in either process, nothing if all is well.

    The processes import the module of the config anew, so the config has to be defined at the top of a module; in a
    script, start the checks under `if __name__ == "__main__":`.
    """
    config: Any = subject.config
    cls = type(config)
    require("<locals>" not in cls.__qualname__, f"{cls.__qualname__}: is defined in a function, wanted in a module")
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    where = (cls.__module__, getattr(sys.modules[cls.__module__], "__file__", None), cls.__qualname__)
    context = new_context()
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = (Path(folder) / "store").as_uri()
        started = []
        for rank in range(WORLD):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_rank, args=(rank, rendezvous, where, values, subject.patch_zyx, theirs), daemon=True
            )
            process.start()
            theirs.close()
            started.append((process, ours))
        findings = [_receive(ours) for _, ours in started]
        for process, _ in started:
            process.join(timeout=5)
            process.kill()
    # Where one process finds a fault and leaves, the other merely loses its connection.
    faults = [finding.fault for finding in findings if finding.fault] or [f.crash for f in findings if f.crash]
    return sorted(set(faults))


def new_context() -> Any:
    """A fork server that has imported torch already starts a process in milliseconds."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["girih_ssl.testing"])
    return context


class _Finding(NamedTuple):
    fault: str = ""
    """How the contract is broken."""
    crash: str = ""
    """The traceback of any other error."""


def _receive(pipe: Connection) -> _Finding:
    if not pipe.poll(2 * TIMEOUT.total_seconds()):
        return _Finding(crash="one of two processes did not finish")
    try:
        return _Finding(*pipe.recv())
    except EOFError:
        return _Finding(crash="one of two processes died without a message")


def _rank(
    rank: int,
    rendezvous: str,
    where: tuple[str, str | None, str],
    values: dict[str, Any],
    patch_zyx: Triple | None,
    pipe: Connection,
) -> None:
    torch.set_num_threads(1)
    try:
        subject = Subject(_find_class(*where)(**values), patch_zyx)
        single, batch = subject.build(), subject.batch(SAMPLES)
        batch = {key: value for key, value in batch.items() if key in single.requires}
        wanted = backward(single, batch)  # before there is a group: within it, it would sum over processes too
        distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=WORLD, timeout=TIMEOUT)
        _compare(subject.build(), select(batch, rank, WORLD), wanted)
        distributed.destroy_process_group()
    except ContractError as error:
        pipe.send(_Finding(fault=str(error)))
    except Exception:  # noqa: BLE001  # whatever it is, the process that waits has to hear of it
        pipe.send(_Finding(crash=traceback.format_exc()))
    else:
        pipe.send(_Finding())


def _compare(replica: Any, share: dict[str, Any], wanted: dict[str, Tensor | None]) -> None:
    for name, parameter in replica.named_parameters():  # a parameter that nobody uses is another check's finding
        parameter.requires_grad_(wanted[name] is not None)
    parallel = DistributedDataParallel(replica)
    found = {name.removeprefix("module."): gradient for name, gradient in backward(parallel, share).items()}
    exact = getattr(replica, "ddp_exact", True)
    largest = max((float(gradient.abs().max()) for gradient in wanted.values() if gradient is not None), default=0.0)
    for name, gradient in found.items():
        _require_same(name, gradient, wanted[name], exact, floor=ROUNDING * largest)


def _require_same(name: str, found: Tensor | None, wanted: Tensor | None, exact: bool, floor: float) -> None:
    if wanted is None:
        return
    if found is None:
        raise ContractError(f"{name}: found no gradient on one process, wanted one on both")
    require(bool(found.isfinite().all()), f"{name}: found NaN or infinity in the gradient")
    if exact:
        off, tolerance = float((found - wanted).abs().max()), TOLERANCE * float(wanted.abs().max()) + floor
        require(off <= tolerance, f"{name}: gradient off by {off} from that of the joined batch, wanted {tolerance}")


def _find_class(module_name: str, file: str | None, qualname: str) -> Any:
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError:
        found = _load_file(module_name, file)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


def _load_file(module_name: str, file: str | None) -> Any:
    spec = None if file is None else importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise ContractError(f"{module_name}: cannot be imported by a second process")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return module
