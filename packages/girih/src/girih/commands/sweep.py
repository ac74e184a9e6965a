"""`girih sweep`: how the boxes of a detector are best merged, found on labelled cases that it was not trained on."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tyro.conf import OmitArgPrefixes

import girih_data3d
import girih_metrics
from girih.batches import survey
from girih.candidates import CandidateFolder
from girih.casewise import OnTiles, case_by_case, refuse_failures
from girih.ensembles import load_ensemble
from girih.inference import Inference
from girih.merging_file import check_place, write_merging
from girih.scans import Scan, cases_of, open_store
from girih.shares import refuse_shares
from girih_detectors import Detections
from girih_detectors.inference import Merging, SweepResult, restore, sweep

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
                score_of(store, truths),
                start=start,
                progress=lambda done, total: progress.update(bar, completed=done, total=total),
            )
        write_merging(self.out, result, record, metric=f"AP, mean over IoU {', '.join(map(str, IOUS))}")
        show(result)


def read_truths(store: girih_data3d.Store, classes: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return the truth of every case in its source's voxels.

    Raises:
        ValueError: other classes than these, an unlabelled case, or no object to find in any of them.
    """
    if store.classes != classes:
        raise ValueError(f"{store.root}: classes are {store.classes}, those of the model are {classes}")
    truths = {}
    for case_id in store.case_ids:
        truth = store[case_id].truth
        if truth is None:
            raise ValueError(f"{store.root}: case {case_id!r} is unlabelled: it cannot be scored")
        truths[case_id] = truth
    if all(all(truth["ignore"]) for truth in truths.values()):
        raise ValueError(f"{store.root}: no case holds an object to find, so that no setting is better than another")
    return truths


def score_of(
    store: girih_data3d.Store, truths: Mapping[str, Mapping[str, Any]]
) -> Callable[[Mapping[str, Detections]], float]:
    """Return a function that scores the detections of all cases on their prepared grids, as `girih evaluate` does."""
    prepared = {case_id: store[case_id].prepared for case_id in truths}

    def score(found: Mapping[str, Detections]) -> float:
        cases = [_case(case_id, truths[case_id], found[case_id], prepared[case_id]) for case_id in truths]
        matches = girih_metrics.match(cases, classes=store.classes, iou=IOUS, ignored="once")
        return float(girih_metrics.average_precision(matches)["mean_ap"])

    return score


def show(result: SweepResult) -> None:
    """Print all trials, and say which value of each setting was kept."""
    kept = dataclasses.asdict(result.merging)
    table = Table("setting", "value", "AP", "", title=f"AP from {result.start_score:.4f} to {result.score:.4f}")
    for row in result.rows:
        mark = "kept" if kept[row["parameter"]] == row["value"] else ""
        table.add_row(row["parameter"], str(row["value"]), f"{row['score']:.4f}", mark)
    Console().print(table)
    print("note: the settings were chosen on these cases; on others expect a lower AP than the one found here")


def _case(
    case_id: str, truth: Mapping[str, Any], found: Detections, prepared: girih_data3d.Prepared
) -> girih_metrics.Case:
    boxes = restore(found, prepared, case_id=case_id, classes=truth["classes"])
    return {
        "case_id": case_id,
        "gt_boxes": _boxes(truth["boxes"]),
        "gt_labels": np.array(truth["labels"], np.int64),
        "gt_ignore": np.array(truth["ignore"], np.bool_),
        "pred_boxes": _boxes(boxes["boxes"]),
        "pred_scores": np.array(boxes["scores"], np.float64),
        "pred_labels": np.array(boxes["labels"], np.int64),
    }


def _boxes(rows: list[list[float]]) -> np.ndarray:
    return np.array(rows, np.float64).reshape(-1, 6)
