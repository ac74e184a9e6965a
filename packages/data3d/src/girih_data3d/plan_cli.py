"""girih-data3d plan: measure a raw dataset and plan for it; and what `prepare --plan` takes from the result."""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from girih_data3d.case_source import Dataset
from girih_data3d.errors import ManifestError
from girih_data3d.fingerprint import Fingerprint, fingerprint, read_fingerprint, write_fingerprint
from girih_data3d.formats_cli import add_reading, read_dataset
from girih_data3d.normalisation import Scheme
from girih_data3d.plan import Plan, write_plan
from girih_data3d.planning.network import Encoder
from girih_data3d.planning.planner import Rule, make_plan

FAILED = 1


def add_plan(commands: Any) -> None:
    """Add the command that plans."""
    command = commands.add_parser(
        "plan", help="measure a raw dataset and choose voxel size, normalisation, patch, network and anchors"
    )
    command.add_argument("data", type=Path, help="folder with a dataset.json, folder of scans, or one scan")
    add_reading(command)
    command.add_argument("--out", type=Path, default=Path("plan.json"), help="default: plan.json")
    command.add_argument(
        "--rule",
        choices=get_args(Rule),
        default="default",
        help="default: from the data; fixed: 1 mm, 128^3, six stages",
    )
    command.add_argument("--encoder", choices=get_args(Encoder), default="resenc_l", help="default: resenc_l")
    command.add_argument("--memory-gb", type=float, default=11.0, metavar="GIB", help="of the GPU; default: 11")
    command.add_argument("--batch-size", type=int, default=4, metavar="N", help="patches per step; default: 4")
    command.add_argument("--normalisation", choices=get_args(Scheme), help="default: by rule and modality")
    command.add_argument("--seed", type=int, default=0, help="of the search for anchors")
    command.add_argument(
        "--fingerprint",
        type=Path,
        metavar="FILE",
        help="measurements: read from there if it exists, else written; default: fingerprint.json beside the plan",
    )
    command.add_argument("--workers", type=int, metavar="N", help="processes; 0: this one; default: one per core")
    command.set_defaults(run=_plan)


def measure_or_read(
    dataset: Dataset,
    path: Path,
    *,
    workers: int | None = None,
    on_progress: Callable[[str, str], None] | None = None,
) -> Fingerprint:
    """Return the fingerprint that is kept in a file, or measure the dataset and write it there.

    One in which cases failed is measured again. That the files changed since is not noticed: remove the fingerprint.

    Raises:
        ManifestError: the file is damaged, or of another dataset.
    """
    if path.exists():
        found = read_fingerprint(path)
        wanted = (dataset.name, dataset.classes, {source.case_id for source in dataset.sources})
        if (found.dataset, found.classes, {*(case.case_id for case in found.cases), *found.failed}) != wanted:
            raise ManifestError(
                f"{path}: measured on dataset {found.dataset!r}, {len(found.cases)} cases, classes "
                f"{list(found.classes)}; wanted {dataset.name!r}, these {len(dataset.sources)} cases, classes "
                f"{list(dataset.classes)}: remove it, or name another file"
            )
        if not found.failed:
            return found
    found = fingerprint(dataset, workers=workers, on_progress=on_progress)
    write_fingerprint(found, path)
    return found


def describe_plan(plan: Plan, found: Fingerprint) -> str:
    """Return a short table of what was found and what was chosen."""
    summary = found.summary()
    normalisation = plan.normalisation or {}
    middle = summary["object_mm_zyx"].get("p50")
    overlap = plan.anchors["mean_best_iou"]
    rows = {
        "dataset": f"{plan.dataset}: {summary['cases']} cases, {summary['unlabelled']} unlabelled",
        "objects": ", ".join(f"{n} {name}" for name, n in summary["objects"].items()) or "none",
        "median object": "-" if middle is None else f"{_by(middle)} mm",
        "modality": ", ".join(plan.modalities or ()),
        "median scan": f"{_by(summary['median_size_zyx'])} voxels of {_by(summary['median_spacing_zyx_mm'])} mm",
        "voxel size": f"{_by(plan.spacing_zyx_mm or ())} mm",
        "normalisation": str(normalisation.get("scheme"))
        + (f", {normalisation['clip'][0]:g} to {normalisation['clip'][1]:g}" if normalisation.get("clip") else ""),
        "patch": f"{_by(plan.patch_zyx)}, batches of {plan.batch_size}",
        "encoder": f"{plan.encoder['class']}, {len(plan.encoder['kwargs']['channels'])} stages",
        "levels": ", ".join(map(str, plan.levels)),
        "anchors": "as the search starts" if overlap is None else f"mean best IoU {overlap:.3f}",
        "queries": f"{plan.queries or '-'} ({plan.objects_per_patch_p95} objects per patch, 95th percentile)",
    }
    lines = [f"  {name:<14} {text}" for name, text in rows.items()]
    return "\n".join([*lines, *(f"  note           {note}" for note in plan.notes)]) + "\n"


def refuse_beside_plan(plan: Path | str, given: Mapping[str, bool]) -> None:
    """Refuse options that a plan decides; `given` says of each whether it was given.

    Raises:
        ValueError: one was; it is named.
    """
    for option, is_given in given.items():
        if is_given:
            raise ValueError(f"{option} is given beside --plan {plan}, which decides it; leave one of them out")


def _plan(options: argparse.Namespace) -> int:
    dataset = read_dataset(options)
    kept = options.fingerprint or options.out.absolute().parent / "fingerprint.json"
    found = measure_or_read(dataset, kept, workers=options.workers, on_progress=_Progress(len(dataset.sources)))
    plan = make_plan(
        found,
        rule=options.rule,
        encoder=options.encoder,
        memory_budget_bytes=round(options.memory_gb * 2**30),
        batch_size=options.batch_size,
        normalisation=options.normalisation,
        seed=options.seed,
    )
    write_plan(plan, options.out)
    sys.stdout.write(f"{options.out} (measurements: {kept})\n{describe_plan(plan, found)}")
    if found.failed:
        sys.stdout.write(f"{len(found.failed)} cases failed and are not in it:\n")
        sys.stdout.write("".join(f"  {case_id}: {reason}\n" for case_id, reason in found.failed.items()))
    return FAILED if found.failed else 0


class _Progress:
    """A line per case on stderr."""

    def __init__(self, total: int) -> None:
        self.total, self.count = total, 0

    def __call__(self, case_id: str, outcome: str) -> None:
        self.count += 1
        sys.stderr.write(f"{self.count}/{self.total} {case_id}: {outcome}\n")


def _by(values: Any) -> str:
    return " x ".join(f"{value:g}" for value in values)
