"""The command line: girih-data3d prepare | plan | formats | info | verify | export | split | leakage."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import numpy as np

from girih_data3d.case_writer import layer_name
from girih_data3d.conversion import Outcome, prepare_many
from girih_data3d.formats import get_format
from girih_data3d.formats_cli import add_formats, add_reading, print_comparison, read_dataset
from girih_data3d.info import as_text, describe_case, describe_dataset
from girih_data3d.nifti import write_nifti
from girih_data3d.normalisation import Scheme
from girih_data3d.passed_over import passed_over
from girih_data3d.plan import read_plan, refuse_beside_plan
from girih_data3d.plan_cli import add_plan
from girih_data3d.resampling import Method
from girih_data3d.spec import Compression, Dtype, PrepareSpec
from girih_data3d.split_cli import add_leakage, add_split
from girih_data3d.store import Store
from girih_data3d.verify import Level, verify

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, 1 if a case failed, or 2 after one line about what is wrong with the input."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except KeyError as error:
        sys.stderr.write(f"girih-data3d: {error.args[0]}\n")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"girih-data3d: {error}\n")
    except ModuleNotFoundError as error:
        sys.stderr.write(f"girih-data3d: needs {error.name}, which is not installed\n")
    except KeyboardInterrupt:
        sys.stderr.write("girih-data3d: interrupted; the same command goes on where it was\n")
        return INTERRUPTED
    return WRONG_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="girih-data3d", description="Medical volumes in zarr.")
    commands = parser.add_subparsers(
        required=True, metavar="prepare | plan | formats | info | verify | export | split | leakage"
    )
    _add_prepare(commands.add_parser("prepare", help="turn scans into a dataset; run again, it goes on where it was"))
    add_formats(commands)
    info = commands.add_parser("info", help="what a prepared dataset, or one of its cases, holds")
    info.add_argument("root", type=Path, help="folder of the prepared dataset")
    info.add_argument("case", nargs="?", help="id of a case")
    info.add_argument("--json", action="store_true", help="for programs")
    info.set_defaults(run=_info)
    check = commands.add_parser("verify", help="look for damage; exit code 1 and a line per case that is not sound")
    check.add_argument("root", type=Path, help="folder of the prepared dataset")
    check.add_argument(
        "--level",
        choices=get_args(Level),
        default="index",
        help="each includes those before it; default: index, which reads no voxels",
    )
    check.add_argument("--workers", type=int, default=0, metavar="N", help="processes; default: none but this one")
    check.add_argument(
        "--format",
        metavar="NAME",
        help="also compare images, objects and official parts with what is stated of it, if nothing is damaged",
    )
    check.set_defaults(run=_verify)
    export = commands.add_parser(
        "export", help="write a case's prepared (normalised) channels as NIfTI, in their place in the patient"
    )
    export.add_argument("root", type=Path, help="folder of the prepared dataset")
    export.add_argument("case", help="id of a case")
    export.add_argument("folder", type=Path, help="made if missing; files are named <case>_<channel>.nii.gz")
    export.add_argument("--labels", action="store_true", help="also the label maps")
    export.set_defaults(run=_export)
    add_plan(commands)
    add_split(commands)
    add_leakage(commands)
    return parser


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", type=Path, help="folder with a dataset.json, folder of scans, or one scan; of --format: its folder"
    )
    parser.add_argument("out", type=Path, help="folder of the prepared dataset; made if missing")
    add_reading(parser)
    parser.add_argument(
        "--plan", type=Path, metavar="FILE", help="plan.json that says the voxel size and the normalisation"
    )
    spacing = parser.add_mutually_exclusive_group()
    spacing.add_argument("--spacing-zyx-mm", type=float, nargs=3, metavar=("Z", "Y", "X"), help="default: 1 1 1")
    spacing.add_argument("--keep-spacing", action="store_true", help="do not resample")
    parser.add_argument("--method", choices=get_args(Method), default="spline3", help="of resampling; default: spline3")
    parser.add_argument("--normalisation", choices=get_args(Scheme), help="default: zscore")
    parser.add_argument("--clip", type=float, nargs=2, metavar=("LOW", "HIGH"), help="intensities, before that")
    parser.add_argument("--mean", type=float, nargs="+", help="per channel, for ct")
    parser.add_argument("--std", type=float, nargs="+", help="per channel, for ct")
    parser.add_argument("--dtype", choices=get_args(Dtype), default="int16", help="on disk; default: int16")
    parser.add_argument("--compression", choices=get_args(Compression), default="lz4hc", help="default: lz4hc")
    parser.add_argument("--no-crop", action="store_true", help="keep the border of zeros")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, metavar="N", help="processes; 0: this one; default: one per core")
    where.add_argument(
        "--dask", metavar="ADDRESS", help="of a scheduler, such as tcp://host:8786; needs girih-data3d[dask]"
    )
    parser.add_argument("--shard", type=_shard, default=(0, 1), metavar="I/N", help="only the I-th of N parts, from 0")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace damaged cases, and those of other files or settings"
    )
    parser.set_defaults(run=_prepare)


def _prepare(options: argparse.Namespace) -> int:
    plan = None
    if options.plan is not None:
        decided = ("spacing_zyx_mm", "keep_spacing", "normalisation", "clip", "mean", "std")
        given = {f"--{name.replace('_', '-')}": bool(getattr(options, name)) for name in decided}
        refuse_beside_plan(options.plan, given)
        plan = read_plan(options.plan)
    spec = PrepareSpec(
        target_zyx_mm=None if options.keep_spacing else tuple(options.spacing_zyx_mm or (1.0, 1.0, 1.0)),
        method=options.method,
        normalisation=options.normalisation or "zscore",
        clip=options.clip and tuple(options.clip),
        mean=options.mean and tuple(options.mean),
        std=options.std and tuple(options.std),
        dtype=options.dtype,
        compression=options.compression,
        crop=None if options.no_crop else "nonzero",
    )
    spec = spec if plan is None else plan.prepare_spec(spec)
    dataset = read_dataset(options)
    if (said := passed_over(dataset)) is not None:
        sys.stderr.write(f"girih-data3d: {said}\n")
    progress, executor = _Progress(len(dataset.sources[options.shard[0] :: options.shard[1]])), None
    with ExitStack() as stack:
        stack.callback(progress.end)
        if options.dask is not None:
            import distributed  # an extra

            client: Any = distributed.Client
            executor = stack.enter_context(client(options.dask)).get_executor(pure=False)
        report = prepare_many(
            dataset,
            options.out,
            spec,
            executor=executor,
            workers=options.workers,
            shard=options.shard,
            overwrite=options.overwrite,
            on_progress=progress,
        )
    sys.stdout.write(f"{options.out}: {report}\n")
    return FAILED if report.failed else 0


def _info(options: argparse.Namespace) -> int:
    store = Store.open(options.root)
    found = describe_dataset(store) if options.case is None else describe_case(store[options.case])
    sys.stdout.write(json.dumps(found, indent=1) + "\n" if options.json else as_text(found))
    return 0


def _verify(options: argparse.Namespace) -> int:
    if options.format is not None and get_format(options.format).counts is None:
        raise ValueError(f"format {options.format}: no counts are stated of it, --format cannot be compared")
    found = verify(options.root, level=options.level, workers=options.workers)
    for name, reason in found.failed.items():
        sys.stdout.write(f"{name}: {reason}\n")
    sys.stdout.write(
        f"{options.root}: {len(found.ok)} cases sound, {len(found.failed)} problems (level {options.level})\n"
    )
    if found.failed:
        return FAILED
    return 0 if options.format is None or print_comparison(options.format, Store.open(options.root)) else FAILED


def _export(options: argparse.Namespace) -> int:
    case = Store.open(options.root)[options.case]
    options.folder.mkdir(parents=True, exist_ok=True)
    paths = [options.folder / f"{case.case_id}_{channel}.nii.gz" for channel in range(case.shape[0])]
    for channel, path in enumerate(paths):
        case.export_nifti(path, channel=channel)
    if options.labels:
        maps = {}
        if "instances" in case.label_kinds:
            layers = case.read_instance_layers((0, 0, 0), case.shape[1:])
            maps = {layer_name(k): layer for k, layer in enumerate(layers)}
        if "semantic" in case.label_kinds:
            maps["semantic"] = case.read_label_patch("semantic", (0, 0, 0), case.shape[1:])
        if "valid" in case.label_kinds:
            maps["valid"] = case.read_label_patch("valid", (0, 0, 0), case.shape[1:]).astype(np.uint8)
        for name, labels in maps.items():
            paths.append(options.folder / f"{case.case_id}_{name}.nii.gz")
            write_nifti(labels, paths[-1], affine=case.affine)
    sys.stdout.write("".join(f"{path}\n" for path in paths))
    return 0


def _shard(text: str) -> tuple[int, int]:
    first, separator, step = text.partition("/")
    if not separator or not first.isdecimal() or not step.isdecimal() or int(first) >= int(step):
        raise argparse.ArgumentTypeError(f"{text!r}, wanted I/N with I from 0 to N - 1, such as 0/4")
    return int(first), int(step)


class _Progress:
    """One line on stderr that is written over; where stderr is no terminal, one line per case."""

    def __init__(self, total: int) -> None:
        self.total, self.start, self.live = total, time.monotonic(), sys.stderr.isatty()
        self.counts: dict[Outcome, int] = {"done": 0, "skipped": 0, "failed": 0}

        if self.live:
            self._rewrite()

    def __call__(self, case_id: str, outcome: Outcome) -> None:
        self.counts[outcome] += 1
        if self.live:
            self._rewrite()
        else:
            sys.stderr.write(f"{sum(self.counts.values())}/{self.total} {case_id}: {outcome}, {self._elapsed()}\n")

    def _rewrite(self) -> None:
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        sys.stderr.write(f"\r{sum(self.counts.values())}/{self.total}: {counts}, {self._elapsed()}")
        sys.stderr.flush()

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self.start), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"

    def end(self) -> None:
        if self.live:
            sys.stderr.write("\n")


if __name__ == "__main__":
    sys.exit(main())
