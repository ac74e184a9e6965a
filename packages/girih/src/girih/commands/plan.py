"""`girih plan`: from raw scans to a plan.json that prepare and finetune take."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.progress import Progress
from tyro.conf import arg

import girih_data3d
from girih.commands.prepare import read_raw
from girih_data3d.normalisation import Scheme
from girih_data3d.planning.memory import Precision
from girih_data3d.planning.network import Encoder
from girih_data3d.planning.planner import Rule


@dataclass(frozen=True)
class Plan:
    """Measure a raw dataset, and choose voxel size, normalisation, patch, network and anchors for it. Needs no GPU.

    The plan is JSON to edit; `girih prepare --plan plan.json` and `girih finetune --plan plan.json` take it.
    """

    data: Path
    """Folder with a dataset.json, or any folder of scans (NIfTI, NRRD, MetaImage, DICOM series)."""
    out: Path = Path("plan.json")
    """The plan."""
    format: str | None = None
    """Name of a public dataset's layout; `girih-data3d formats` lists them."""
    format_options: Annotated[tuple[str, ...], arg(aliases=["-o"])] = ()
    """Options of the format, KEY=VALUE each."""
    rule: Rule = "default"
    """default: as nnDetection plans, from the data, the largest patch that fits in memory; fixed: 1 mm, 128^3, six
    stages, as for the published encoders (Eckstein et al. 2025). Anchors are the data's with both."""
    encoder: Encoder = "resenc_l"
    """Residual encoder of nnU-Net, or the plain one of Retina U-Net."""
    memory_gb: float | None = None
    """Memory of the GPU, GiB; by default 10.72, what nnDetection plans for (an RTX 2080 Ti less 11 MB)."""
    precision: Precision = "no"
    """Of the training that the memory is counted for: no, full precision, as `girih finetune` trains unless asked; bf16
    takes about half the memory, so that patches are larger; finetune then has to be given --precision bf16 too."""
    batch_size: int = 4
    """Patches per step."""
    normalisation: Scheme | None = None
    """By default: ct for CT and z-scores for all else; with --rule fixed z-scores."""
    seed: int = 0
    """Of the search for anchors."""
    fingerprint: Path | None = None
    """Measurements: read from there if no file and no option changed since, else written; by default fingerprint.json
    beside the plan."""
    overwrite: bool = False
    """Replace --out also if it holds another plan, or an edited one."""
    workers: int | None = None
    """Processes; by default one per core, 0 for none beside this one."""

    def run(self) -> None:
        """Measure, plan and report.

        Raises:
            ValueError: the source cannot be understood or planned for; or some cases failed, which are named: the plan
                is written without them.
        """
        dataset = read_raw(self.data, self.format, self.format_options)
        with Progress(console=Console(stderr=True)) as progress:
            bar = progress.add_task(f"measuring {dataset.name}", total=len(dataset.sources))
            done = girih_data3d.plan_dataset(
                dataset,
                self.out,
                rule=self.rule,
                encoder=self.encoder,
                memory_gb=self.memory_gb,
                batch_size=self.batch_size,
                precision=self.precision,
                normalisation=self.normalisation,
                seed=self.seed,
                measurements=self.fingerprint,
                overwrite=self.overwrite,
                workers=self.workers,
                on_progress=lambda *_: progress.advance(bar),
            )
            progress.update(bar, completed=len(dataset.sources))
        print(done.describe(), end="")
        found = done.fingerprint
        if found.failed:
            failures = (f"{case}: {why}" for case, why in found.failed.items())
            raise ValueError("\n  ".join(["the plan lacks some cases, which failed:", *failures]))
