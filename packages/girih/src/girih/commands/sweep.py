"""`girih sweep`: how the boxes of a detector are best merged, found on labelled cases that it was not trained on."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tyro.conf import OmitArgPrefixes

import girih_metrics
from girih.batches import survey
from girih.candidates import CandidateFolder
from girih.casewise import OnTiles, case_by_case, refuse_failures
from girih.ensembles import load_ensemble
from girih.inference import Inference
from girih.merging_file import check_place, write_merging
from girih.scans import Scan, cases_of, open_store
from girih.scoring import read_truths, score_of
from girih.shares import refuse_shares
from girih_detectors.inference import Merging, SweepResult, sweep

IOUS = girih_metrics.iou_range(0.1, 0.5, 0.05)


@dataclass(frozen=True)
class Sweep:
    """Search how the boxes of a detector are best merged; `girih predict --merging` takes the result.

    The networks look at every case once, and what they find is kept: a second call, or one after a kill, goes on from
    there. Then one setting of merging after the other is tried, as nnDetection does. The score is the AP, averaged over
    IoU 0.1, 0.15, ... 0.5.
    """

    model: tuple[Path, ...]
    """Folder of a fine-tuning run. Several predict together, as in `girih predict`."""
    data: Path
    """A labelled dataset made by `girih prepare`. Its cases have to be others than those of the training."""
    out: Path
    """The .json file to write. What the networks find goes into a folder of the same name, ending in .candidates."""
    inference: OmitArgPrefixes[Inference] = field(default_factory=Inference)

    def run(self) -> None:
        """Look at every case, try every setting, write the best and print them all.

        Raises:
            ValueError: this is one of several processes, --out is another file, models and data cannot be read or do
                not fit each other, the models were trained on these data, there is no object to find, a case is
                unlabelled or failed, or the folder of candidates is of other models or settings.
            OSError: a file cannot be written.
        """
        refuse_shares()
        check_place(self.out)
        looking = self.inference.resolve()
        ensemble = load_ensemble(self.model)
        store = open_store(self.data, ensemble)
        if survey(store).sha256 in ensemble.trained_on:
            raise ValueError(
                f"{self.data} is what a model was trained on, where it finds more than elsewhere: choose other cases"
            )
        truths = read_truths(store, ensemble.classes)
        checksums = dict(zip(store.case_ids, store.index.contents.tolist(), strict=True))
        shapes = {name: (z, y, x) for name, (z, y, x) in zip(store.case_ids, store.index.shapes.tolist(), strict=True)}
        folder, start = CandidateFolder(self.out.with_suffix(".candidates"), shapes), Merging()
        record = {"models": list(ensemble.models), **looking.record}
        folder.begin({**record, "pool": start.pool})

        def work(scan: Scan, on_tiles: OnTiles) -> str | None:
            if folder.holds(scan.case_id, checksums[scan.case_id]):
                return None
            image, _ = scan.open()
            found = looking.collect(ensemble, image, pool=start.pool, progress=on_tiles)
            folder.write(scan.case_id, checksums[scan.case_id], found)
            return f"{sum(len(one['scores']) for one in found)} boxes, not merged"

        scans = cases_of(store, ensemble)
        refuse_failures(case_by_case(scans, work, quiet=False), len(scans))
        with Progress(console=Console(stderr=True)) as progress:
            bar = progress.add_task("settings", total=None)
            result = sweep(
                folder,
                score_of(store, truths, IOUS),
                start=start,
                progress=lambda done, total: progress.update(bar, completed=done, total=total),
            )
        write_merging(self.out, result, record, metric=f"AP, mean over IoU {', '.join(map(str, IOUS))}")
        show(result)


def show(result: SweepResult) -> None:
    """Print all trials, and say which value of each setting was kept."""
    kept = dataclasses.asdict(result.merging)
    table = Table("setting", "value", "AP", "", title=f"AP from {result.start_score:.4f} to {result.score:.4f}")
    for row in result.rows:
        mark = "kept" if kept[row["parameter"]] == row["value"] else ""
        table.add_row(row["parameter"], str(row["value"]), f"{row['score']:.4f}", mark)
    Console().print(table)
    print("note: the settings were chosen on these cases; on others expect a lower AP than the one found here")
