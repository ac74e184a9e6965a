"""`girih plan`: from raw scans to a plan.json that prepare and finetune take."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import Progress

import girih_data3d
from girih.commands.prepare import read_raw
from girih_data3d.plan_cli import describe_plan, measure_or_read


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
    format_options: tuple[str, ...] = ()
    """Options of the format, KEY=VALUE each."""
    rule: Literal["default", "fixed"] = "default"
    """default: as nnDetection plans, from the data, the largest patch that fits in memory; fixed: 1 mm, 128^3, six
    stages, as for the published encoders (Eckstein et al. 2025). Anchors are the data's with both."""
    encoder: Literal["resenc_l", "retina_unet"] = "resenc_l"
    """Residual encoder of nnU-Net, or the plain one of Retina U-Net."""
    memory_gb: float = 11.0
    """Memory of the GPU, GiB, for training with --precision bf16."""
    batch_size: int = 4
    """Patches per step."""
    normalisation: Literal["zscore", "zscore_mask", "ct", "none"] | None = None
    """By default: ct for CT and z-scores for all else; with --rule fixed z-scores."""
    seed: int = 0
    """Of the search for anchors."""
    fingerprint: Path | None = None
    """Measurements: read from there if the file exists, else written; by default fingerprint.json beside the plan."""
    workers: int | None = None
    """Processes; by default one per core, 0 for none beside this one."""

    def run(self) -> None:
        """Measure, plan and report.

        Raises:
            ValueError: the source cannot be understood or planned for; or some cases failed, which are named: the plan
                is written without them.
        """
        dataset = read_raw(self.data, self.format, self.format_options)
        kept = self.fingerprint or self.out.absolute().parent / "fingerprint.json"
        console = Console(stderr=True)
        with Progress(console=console) as progress:
            bar = progress.add_task(f"measuring {dataset.name}", total=len(dataset.sources))
            found = measure_or_read(dataset, kept, workers=self.workers, on_progress=lambda *_: progress.advance(bar))
            progress.update(bar, completed=len(dataset.sources))
        plan = girih_data3d.make_plan(
            found,
            rule=self.rule,
            encoder=self.encoder,
            memory_budget_bytes=round(self.memory_gb * 2**30),
            batch_size=self.batch_size,
            normalisation=self.normalisation,
            seed=self.seed,
        )
        girih_data3d.write_plan(plan, self.out)
        print(f"{self.out} (measurements: {kept})\n{describe_plan(plan, found)}", end="")
        if found.failed:
            failures = (f"{case}: {why}" for case, why in found.failed.items())
            raise ValueError("\n  ".join(["the plan lacks some cases, which failed:", *failures]))
