"""girih-data3d plan: measure a raw dataset and plan for it."""

import argparse
import sys
from pathlib import Path
from typing import Any, get_args

from girih_data3d.formats_cli import add_reading, read_dataset
from girih_data3d.normalisation import Scheme
from girih_data3d.passed_over import passed_over
from girih_data3d.planning.dataset_plan import plan_dataset
from girih_data3d.planning.memory import Precision
from girih_data3d.planning.network import Encoder
from girih_data3d.planning.planner import Rule

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
    command.add_argument(
        "--memory-gb", type=float, metavar="GIB", help="of the GPU; default: 10.72, what nnDetection plans for"
    )
    command.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="no",
        help="of the training that the memory is counted for; default: no, full precision",
    )
    command.add_argument("--batch-size", type=int, default=4, metavar="N", help="patches per step; default: 4")
    command.add_argument("--normalisation", choices=get_args(Scheme), help="default: by rule and modality")
    command.add_argument("--seed", type=int, default=0, help="of the search for anchors")
    command.add_argument(
        "--fingerprint",
        type=Path,
        metavar="FILE",
        help="measurements: read if nothing changed, else written; default: fingerprint.json beside the plan",
    )
    command.add_argument("--overwrite", action="store_true", help="replace another plan, or an edited one")
    command.add_argument("--workers", type=int, metavar="N", help="processes; 0: this one; default: one per core")
    command.set_defaults(run=_plan)


def _plan(options: argparse.Namespace) -> int:
    dataset = read_dataset(options)
    if (said := passed_over(dataset)) is not None:
        sys.stderr.write(f"girih-data3d: {said}\n")
    done = plan_dataset(
        dataset,
        options.out,
        rule=options.rule,
        encoder=options.encoder,
        memory_gb=options.memory_gb,
        batch_size=options.batch_size,
        precision=options.precision,
        normalisation=options.normalisation,
        seed=options.seed,
        measurements=options.fingerprint,
        overwrite=options.overwrite,
        workers=options.workers,
        on_progress=_Progress(len(dataset.sources)),
    )
    found = done.fingerprint
    sys.stdout.write(done.describe())
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
