"""`girih prepare`: from files on disk to a zarr dataset."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import Progress

import girih_data3d
from girih.atomic import write_json


@dataclass(frozen=True)
class Prepare:
    """Turn scans into a zarr dataset: crop zero borders, resample, normalise. A killed run goes on where it was."""

    data: Path
    """Folder with a dataset.json, or any folder of scans (NIfTI, NRRD, MetaImage, DICOM series)."""
    out: Path
    """The dataset's folder; made if missing."""
    spacing_zyx_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Voxel size to resample to."""
    normalisation: Literal["zscore", "zscore_mask", "ct", "none"] = "zscore"
    """zscore: mean 0, deviation 1 per scan; ct: clip and scale by --clip, --mean and --std."""
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
        spec = girih_data3d.PrepareSpec(
            target_zyx_mm=self.spacing_zyx_mm,
            normalisation=self.normalisation,
            clip=self.clip,
            mean=None if self.mean is None else (self.mean,),
            std=None if self.std is None else (self.std,),
        )
        prepare(self.data, self.out, spec, overwrite=self.overwrite, workers=self.workers)


def prepare(
    data: Path, out: Path, spec: girih_data3d.PrepareSpec, *, overwrite: bool = False, workers: int | None = None
) -> None:
    """Prepare the dataset in `data` into `out`, with a truth file per labelled case in `out`/truth.

    Raises:
        ValueError: a case failed; the message names each with its reason. The others are kept.
    """
    dataset = girih_data3d.read_manifest(data)
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
