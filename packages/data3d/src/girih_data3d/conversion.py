"""Prepare cases into a dataset on disk: per-case atomic, resumable, with a report of what happened."""

import shutil
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from girih_data3d.atomic import remove_abandoned, written_aside
from girih_data3d.case_preparation import prepare_case
from girih_data3d.case_source import CaseSource, Dataset
from girih_data3d.checksum import BLANK, checked_text
from girih_data3d.errors import StaleCaseError
from girih_data3d.index import update_index
from girih_data3d.layout import INDEX, RECORD, SCHEMA, read_dataset_record
from girih_data3d.pool import GaveUpError, run_jobs
from girih_data3d.spec import PrepareSpec

Outcome = Literal["done", "skipped", "failed"]
Job = tuple[CaseSource, Path, PrepareSpec, tuple[str, ...], bool]
"""Arguments of `_try_case`."""
Result = tuple[str, Outcome, str]
"""Case id, outcome, reason of a failure."""

DIED = 'its worker died (killed, out of memory, or started by a script without if __name__ == "__main__":)'


@dataclass
class Report:
    """What `prepare_many` did; case ids in the dataset's order. As text: the counts, and a line per failure."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Present already, from the same files, with the same spec and classes."""
    failed: dict[str, str] = field(default_factory=dict)
    """Case id -> reason."""

    def __str__(self) -> str:
        counts = f"{len(self.done)} done, {len(self.skipped)} skipped, {len(self.failed)} failed"
        return "\n  ".join([counts, *(f"{case_id}: {reason}" for case_id, reason in self.failed.items())])


def prepare_many(
    dataset: Dataset,
    root: Path | str,
    spec: PrepareSpec,
    *,
    executor: Executor | None = None,
    workers: int | None = None,
    shard: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    on_progress: Callable[[str, Outcome], None] | None = None,
) -> Report:
    """Prepare every case of a dataset; run again after an interruption, it goes on where it stopped.

    The same files and spec give the same bytes, however the work is spread.

    Args:
        dataset: from `read_manifest`.
        root: folder of the prepared dataset; made if absent.
        spec: how to prepare.
        executor: runs the cases (Dask: `client.get_executor(pure=False)`); None: a pool of processes.
        workers: processes of that pool; None: one per core that this process may use, at most one per case, and none
            for a single case; 0: the cases are prepared here, one after the other. A script that leaves this to a pool
            needs `if __name__ == "__main__":`.
        shard: (i, n): only every n-th case from the i-th on (from 0), for a scheduler that starts n such runs.
        overwrite: replace cases that are damaged or were made from other files, with another spec or other classes;
            reads every byte of those that are there.
        on_progress: called here with (case id, outcome) after each case.

    Returns:
        What was done. A case that cannot be read, or whose worker died, does not stop the others: it is in `failed`
        with the reason.

    Raises:
        StaleCaseError: `root` holds a dataset of another name, classes or spec, and not `overwrite`.
        ValueError: a shard that there is not, or a number of workers below 0 or beside an executor.
    """
    first, step = shard
    if not 0 <= first < step:
        raise ValueError(f"shard is {shard}, wanted (i, n) with i from 0 to n - 1")
    if workers is not None and (workers < 0 or executor is not None):
        raise ValueError(f"workers is {workers}, wanted 0 or more, and none beside an executor")
    root, sources = Path(root).absolute(), dataset.sources[first::step]
    _write_dataset(dataset, root, spec, overwrite)
    remove_abandoned(root)
    if overwrite:  # what it says about replaced cases is void at once
        shutil.rmtree(root / INDEX, ignore_errors=True)
    jobs: list[Job] = [(source, root, spec, dataset.classes, overwrite) for source in sources]
    if executor is not None:
        results = _by_executor(jobs, executor)
    else:
        results = _by_pool(jobs, workers)
    outcomes: dict[str, tuple[Outcome, str]] = {}
    try:
        with closing(results):
            for case_id, outcome, reason in results:
                outcomes[case_id] = (outcome, reason)
                if on_progress is not None:
                    on_progress(case_id, outcome)
    finally:
        remove_abandoned(root)
    report = Report()
    for source in sources:
        outcome, reason = outcomes[source.case_id]
        if outcome == "failed":
            report.failed[source.case_id] = reason
        else:
            (report.done if outcome == "done" else report.skipped).append(source.case_id)
    # those that were skipped too: a run that was killed may have replaced them
    update_index(root, changed=[source.case_id for source in sources])
    return report


def _by_executor(jobs: Sequence[Job], executor: Executor) -> Generator[Result, None, None]:
    case_ids: dict[Future[Result], str] = {}
    try:
        for job in jobs:
            try:
                case_ids[executor.submit(_try_case, *job)] = job[0].case_id
            except BrokenExecutor as error:
                yield _lost(job[0].case_id, error)
        for future in as_completed(case_ids):
            yield _result(future, case_ids[future])
    finally:
        for future in case_ids:
            future.cancel()


def _by_pool(jobs: Sequence[Job], workers: int | None) -> Generator[Result, None, None]:
    with closing(run_jobs(_try_case, jobs, workers)) as results:
        for number, result in results:
            case_id = jobs[number][0].case_id
            if isinstance(result, GaveUpError):
                yield case_id, "failed", str(result)
            else:
                yield _lost(case_id, result) if isinstance(result, BrokenExecutor) else result


def _result(future: Future[Result], case_id: str) -> Result:
    """Return what a job returned, or that its worker was lost; an error of the program itself is raised."""
    if future.cancelled():
        return case_id, "failed", "cancelled by the executor"
    error = future.exception()
    if error is None:
        return future.result()
    # Dask's errors of lost workers share no class with those of concurrent.futures
    if isinstance(error, BrokenExecutor) or type(error).__module__.startswith("distributed."):
        return _lost(case_id, error)
    raise error


def _lost(case_id: str, error: BaseException) -> Result:
    return case_id, "failed", f"{DIED}: {type(error).__name__}: {error}"


def _try_case(source: CaseSource, root: Path, spec: PrepareSpec, classes: tuple[str, ...], overwrite: bool) -> Result:
    try:
        return source.case_id, prepare_case(source, root, spec, classes=classes, overwrite=overwrite), ""
    except (ValueError, OSError, MemoryError) as error:
        return source.case_id, "failed", f"{type(error).__name__}: {error}"
    except BaseException as error:
        error.add_note(f"while preparing case {source.case_id!r}")
        raise


def _write_dataset(dataset: Dataset, root: Path, spec: PrepareSpec, overwrite: bool) -> None:
    record = {
        "schema": SCHEMA,
        "created_by": f"girih-data3d {version('girih-data3d')}",
        "name": dataset.name,
        "classes": list(dataset.classes),
        "spec": spec.to_json(),
        "spec_hash": spec.sha256,
    }
    path = root / RECORD
    if path.exists():
        found = read_dataset_record(root)
        other = [key for key in ("name", "classes", "spec_hash") if found.get(key) != record[key]]
        if not other:
            return
        if not overwrite:
            shown = f"{other[0]} {found.get(other[0])!r}, wanted {record[other[0]]!r}"
            raise StaleCaseError(f"{path}: prepared with {shown}; pass overwrite=True (--overwrite) or another folder")
    with written_aside(root, path) as aside:
        aside.write_bytes(checked_text({**record, "checksum": BLANK}, indent=1))
