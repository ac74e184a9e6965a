"""`girih look`: predictions on their scans, as pictures and as a page to scroll through."""

import math
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from girih.commands.evaluate import by_name
from girih.report import look
from girih.report.overlays import MAX_CASES


@dataclass(frozen=True)
class Look:
    """See predicted boxes on their scans: a page with slices to scroll through, and a PNG of findings per case."""

    predictions: tuple[Path, ...]
    """Folders of one JSON file per case, as `girih predict` writes them; of several, the page lets one choose."""
    data: Path
    """What was predicted: a dataset made by `girih prepare`, a scan, a folder of scans.
    Only the first channel is shown, whatever their number."""
    out: Path
    """Folder for report.html and montages/."""
    truth: Path | None = None
    """Folder of truth files; boxes are then coloured as true positives, false positives and misses."""
    iou: float = 0.1
    """Overlap from which a prediction counts as a hit."""
    worst: int = MAX_CASES
    """Cases on the page, the worst ones: most misses, then the highest false positive.
    Without truth it is by the highest score, of any box."""
    case_megabytes: float = 4.0
    """What one case may add to the page; a larger scan is shown in smaller pictures."""
    modality: str | None = None
    """Of scans that do not say it, as plain NIfTI files; CT brings windows in Hounsfield units."""

    def run(self) -> None:
        """Write pictures and page.

        Raises:
            ValueError: files are missing, malformed, or do not belong together, or two folders have one name.
        """
        folders = by_name(self.predictions)
        if not 0 < self.case_megabytes < math.inf:
            raise ValueError(f"case_megabytes is {self.case_megabytes}, wanted a positive, finite number")
        console = Console(stderr=True)
        with Progress(console=console) as progress:
            bar = progress.add_task("looking", total=None)
            report = look(
                self.out,
                predictions=folders,
                data=self.data,
                truth=self.truth,
                iou=self.iou,
                worst=self.worst,
                case_bytes=round(self.case_megabytes * 1e6),
                modality=self.modality,
                progress=lambda done, total: progress.update(bar, completed=done, total=total),
            )
        console.print(f"Open {report}; pictures of all cases are in {report.parent / 'montages'}.")
