"""`girih prepare`: from files on disk to a zarr dataset."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.progress import Progress
from tyro.conf import arg

import girih_data3d
from girih.atomic import write_json
from girih.plans import load_plan
from girih_data3d.formats import parse_options
from girih_data3d.normalisation import Scheme


@dataclass(frozen=True)
class Prepare:
    """Turn scans into a zarr dataset: crop zero borders, resample, normalise. A killed run goes on where it was."""

    data: Path
    """Folder with a dataset.json, or any folder of scans (NIfTI, NRRD, MetaImage, DICOM series)."""
    out: Path
    """The dataset's folder; made if missing."""
    plan: str | None = None
    """plan.json (or preset) that says the voxel size and the normalisation, instead of the options below."""
    format: str | None = None
    """Name of a public dataset's layout; `girih-data3d formats` lists them."""
    format_options: Annotated[tuple[str, ...], arg(aliases=["-o"])] = ()
    """Options of the format, KEY=VALUE each."""
    spacing_zyx_mm: tuple[float, float, float] | None = None
    """Voxel size to resample to; by default 1 1 1."""
    normalisation: Scheme | None = None
    """zscore (by default): mean 0, deviation 1 per scan; ct: clip and scale by --clip, --mean and --std."""
    clip: tuple[float, float] | None = None
    """Intensity window of the scheme ct."""
    mean: float | None = None
    """Mean of the scheme ct."""
    std: float | None = None
    """Standard deviation of the scheme ct."""
    overwrite: bool = False
    """Prepare again the cases whose source or settings changed; without it they are an error."""
    workers: int | None = None
    """Processes; by default one per core, 0 for none beside this one."""

    def run(self) -> None:
        """Prepare every case, write the truth beside it, and report.

        Raises:
            ValueError: the source cannot be understood, or a case failed; it is named.
        """
        plan = None
        if self.plan is not None:
            decided = ("spacing_zyx_mm", "normalisation", "clip", "mean", "std")
            given = {f"--{name.replace('_', '-')}": getattr(self, name) is not None for name in decided}
            girih_data3d.refuse_beside_plan(self.plan, given)
            plan = load_plan(self.plan)
        spec = girih_data3d.PrepareSpec(
            target_zyx_mm=self.spacing_zyx_mm or (1.0, 1.0, 1.0),
            normalisation=self.normalisation or "zscore",
            clip=self.clip,
            mean=None if self.mean is None else (self.mean,),
            std=None if self.std is None else (self.std,),
        )
        prepare_dataset(
            read_raw(self.data, self.format, self.format_options),
            self.out,
            spec if plan is None else plan.prepare_spec(spec),
            overwrite=self.overwrite,
            workers=self.workers,
        )


def read_raw(data: Path, name: str | None, options: Sequence[str]) -> girih_data3d.Dataset:
    """Return the cases in a folder: of a dataset.json or of scans, or of the format `name` with its KEY=VALUE options.

    Files that were passed over are named on stderr.

    Raises:
        ValueError: options without a format, or one that the format does not have; the source cannot be understood.
    """
    if name is not None:
        known = girih_data3d.get_format(name)
        dataset = girih_data3d.read_format(name, data, **parse_options(known, options))
    elif options:
        raise ValueError(f"--format-options {options[0]}: options are those of a format; give --format")
    else:
        dataset = girih_data3d.read_manifest(data)
    if (said := girih_data3d.passed_over(dataset)) is not None:
        print(said, file=sys.stderr)
    return dataset


def prepare(
    data: Path, out: Path, spec: girih_data3d.PrepareSpec, *, overwrite: bool = False, workers: int | None = None
) -> None:
    """Prepare the dataset in the folder `data` as `prepare_dataset` does."""
    prepare_dataset(girih_data3d.read_manifest(data), out, spec, overwrite=overwrite, workers=workers)


def prepare_dataset(
    dataset: girih_data3d.Dataset,
    out: Path,
    spec: girih_data3d.PrepareSpec,
    *,
    overwrite: bool = False,
    workers: int | None = None,
) -> None:
    """Prepare a dataset into `out`, with a truth file per labelled case in `out`/truth.

    Raises:
        ValueError: a case failed; the message names each with its reason. The others are kept.
    """
    console = Console(stderr=True)
    with Progress(console=console) as progress:
        bar = progress.add_task(f"preparing {dataset.name}", total=len(dataset.sources))
        report = girih_data3d.prepare_many(
            dataset, out, spec, workers=workers, overwrite=overwrite, on_progress=lambda *_: progress.advance(bar)
        )
    store, truth = girih_data3d.Store.open(out), out / "truth"
    for case_id in (*report.done, *report.skipped):
        if (objects := store[case_id].truth) is not None:
            truth.mkdir(exist_ok=True)
            write_json(truth / f"{case_id}.json", objects)
    console.print(
        f"{out}: {len(report.done)} prepared, {len(report.skipped)} already there, {len(report.failed)} failed"
    )
    if report.failed:
        raise ValueError(
            "\n  ".join(["some cases failed:", *(f"{case}: {why}" for case, why in report.failed.items())])
        )
