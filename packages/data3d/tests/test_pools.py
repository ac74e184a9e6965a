"""prepare_many in several processes: the same bytes however the work is spread and whoever is killed."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import active_children, get_context
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from distributed import LocalCluster
from distributed.scheduler import KilledWorker

import girih_data3d as d3
from girih_data3d.cli import main
from girih_data3d.conversion import DIED

SPEC = d3.PrepareSpec()
PROGRAM = """
import signal, sys, girih_data3d as d3
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell are born deaf to Ctrl-C
    d3.prepare_many(d3.read_manifest(sys.argv[1]), sys.argv[2], d3.PrepareSpec(), workers=2)
"""
PATIENCE_S = 60


def files(root: Path) -> dict[str, str]:
    """Every visible file's path and hash."""
    visible = sorted(p for p in root.rglob("*") if p.is_file() and ".tmp" not in p.parts)
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in visible}


def test_threads_write_the_same_bytes(source: Path, prepared: d3.Store, tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []
    with ThreadPoolExecutor(2) as executor:
        dataset = d3.read_manifest(source)
        report = d3.prepare_many(
            dataset, tmp_path, SPEC, executor=executor, on_progress=lambda *event: seen.append(event)
        )
    assert report == d3.Report(done=["case0", "case1", "free"])
    assert sorted(seen) == [(case_id, "done") for case_id in report.done]
    assert files(tmp_path) == files(prepared.root)


def test_dask_writes_the_same_bytes(
    source: Path, prepared: d3.Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        assert main(["prepare", str(source), str(tmp_path), "--dask", cluster.scheduler_address]) == 0
    assert "3 done, 0 skipped, 0 failed" in capsys.readouterr().out
    assert files(tmp_path) == files(prepared.root)


def many_cases(folder: Path, source: Path, count: int) -> d3.Dataset:
    """A folder of unlabelled scans, all with the content of one."""
    folder.mkdir()
    for number in range(count):
        shutil.copy2(source / "free.nii.gz", folder / f"{number:02}.nii.gz")
    return d3.read_manifest(folder)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE_S} s: {what}"
        time.sleep(0.01)


def ended(group: int) -> bool:
    """Whether no process of a group runs any more; zombies wait for pid 1 to ask for them."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, process_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(process_group) == group and state not in ("Z", "X"):
                return False
    return True


@contextmanager
def started(tmp_path: Path, scans: Path, out: Path) -> Iterator[subprocess.Popen[str]]:
    """The program in a process group of its own, given once it has begun to write a case."""
    (tmp_path / "program.py").write_text(PROGRAM)
    visible = len(list(out.glob("cases/*/*")))
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), str(scans), str(out)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def at_work() -> bool:
        return process.poll() is not None or len(list(out.glob("cases/*/*"))) > visible or any(out.glob(".tmp/*"))

    try:
        wait_until(at_work, "a case is begun")
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.long)])
def test_killed_at_any_time_leaves_complete_cases_only(source: Path, tmp_path: Path, kills: int) -> None:
    dataset = many_cases(tmp_path / "scans", source, 8 * kills)
    d3.prepare_many(dataset, tmp_path / "whole", SPEC, workers=0)
    wanted, out = files(tmp_path / "whole"), tmp_path / "out"
    delays = random.Random(0)
    for _ in range(kills):
        with started(tmp_path, tmp_path / "scans", out) as process:
            time.sleep(delays.uniform(0, 0.15))
            process.kill()
            process.wait()
            wait_until(lambda: ended(process.pid), "the workers end with their parent")
        found = files(out)
        assert {name: wanted[name] for name in found} == found  # as far as it went
        assert set(d3.Store.open(out).case_ids) == {
            Path(name).parts[2].removesuffix(".zarr") for name in found if name.startswith("cases")
        }
    report = d3.prepare_many(dataset, out, SPEC, workers=0)
    assert len(report.done) + len(report.skipped) == len(dataset.sources)
    assert files(out) == wanted
    assert list((out / ".tmp").iterdir()) == []


def test_ctrl_c_leaves_complete_cases_only(source: Path, tmp_path: Path) -> None:
    dataset, out = many_cases(tmp_path / "scans", source, 20), tmp_path / "out"
    with started(tmp_path, tmp_path / "scans", out) as process:
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
        _, text = process.communicate(timeout=PATIENCE_S)
    assert text.count("Traceback") == 1  # the workers have none
    assert text.rstrip().endswith("KeyboardInterrupt")
    wait_until(lambda: ended(process.pid), "the workers end with their parent")
    assert list((out / ".tmp").iterdir()) == []
    report = d3.prepare_many(dataset, out, SPEC, workers=0)
    assert report.done
    assert not report.failed


def test_dead_worker_costs_the_case_at_hand_only(source: Path, tmp_path: Path) -> None:
    many_cases(tmp_path / "scans", source, 4)
    (tmp_path / "scans" / "01.nii.gz").unlink()
    noise = np.random.default_rng(0).normal(size=(128, 128, 128)).astype(np.float32)
    d3.write_nifti(noise, tmp_path / "scans" / "01.nii", affine=np.eye(4))  # so large that it is killed on the way
    dataset = d3.read_manifest(tmp_path / "scans")
    killed: list[int] = []

    def kill() -> None:
        wait_until(lambda: any((tmp_path / "out").glob(".tmp/*")), "the next case is begun")
        os.kill(killed[0], signal.SIGKILL)

    def kill_once(*_: str) -> None:
        if not killed:
            (child,) = active_children()
            killed.append(child.pid or 0)
            Thread(target=kill).start()

    report = d3.prepare_many(dataset, tmp_path / "out", SPEC, workers=1, on_progress=kill_once)
    assert report.done == ["00", "02", "03"]
    assert report.failed["01"].startswith(f"{DIED}: BrokenProcessPool")
    assert list((tmp_path / "out" / ".tmp").iterdir()) == []
    again = d3.prepare_many(dataset, tmp_path / "out", SPEC, workers=0)
    assert again == d3.Report(done=["01"], skipped=["00", "02", "03"])


def test_pools_that_break_at_once_are_given_up(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(workers, get_context("forkserver"), initializer=os._exit, initargs=(1,))

    monkeypatch.setattr("girih_data3d.pool.worker_pool", broken)
    report = d3.prepare_many(many_cases(tmp_path / "scans", source, 9), tmp_path / "out", SPEC, workers=2)
    assert list(report.failed) == [f"{number:02}" for number in range(9)]
    assert "its worker died" in report.failed["00"]
    assert report.failed["08"] == "3 pools of processes broke before a case was finished"


class Scripted(Executor):
    """Answers each case by its own script: an exception for the future, one to raise at once, or None to cancel."""

    def __init__(self, **script: BaseException | None) -> None:
        self.script = script

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        answer, future = self.script[args[0].case_id], Future[Any]()
        if isinstance(answer, BrokenExecutor) and answer.args == ("at once",):
            raise answer
        if answer is None:
            future.cancel()
            future.set_running_or_notify_cancel()
        else:
            future.set_exception(answer)
        return future


def test_lost_workers_of_other_executors(source: Path, tmp_path: Path) -> None:
    executor = Scripted(
        case0=KilledWorker("task", SimpleNamespace(address="tcp://1"), 3), case1=None, free=BrokenExecutor("at once")
    )
    report = d3.prepare_many(d3.read_manifest(source), tmp_path, SPEC, executor=executor)
    assert report.failed["case0"].startswith(f"{DIED}: KilledWorker: Attempted to run")
    assert report.failed["case1"] == "cancelled by the executor"
    assert report.failed["free"].endswith("BrokenExecutor: at once")


def test_error_of_the_program_itself_is_raised(source: Path, tmp_path: Path) -> None:
    executor = Scripted(case0=ZeroDivisionError("a bug"), case1=None, free=None)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        d3.prepare_many(d3.read_manifest(source), tmp_path, SPEC, executor=executor)
