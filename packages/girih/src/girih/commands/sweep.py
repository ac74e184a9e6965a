"""`girih sweep`: how the boxes of a detector are best merged, found on labelled cases that it was not trained on."""

import dataclasses
import math
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
from girih.atomic import write_json
from girih.candidates import CandidateFolder, RawCases
from girih.casewise import OnTiles, case_by_case, refuse_failures
from girih.ensembles import load_ensemble
from girih.inference import Inference
from girih.scans import Scan, cases_of, open_store
from girih_detectors import Detections
from girih_detectors.inference import Merging, SweepResult, restore, sweep

IOUS = girih_metrics.iou_range(0.1, 0.5, 0.05)


@dataclass(frozen=True)
class Sweep:
    """Search how the boxes of a detector are best merged; `girih predict --merging` takes the result.

    The networks look at every case once, and what they find is kept, so that a second call or one after a kill goes on.
    Then the settings of merging are tried one after the other, as nnDetection searches its empirical parameters. The
    score is the mean AP over IoU 0.1, 0.15, ... 0.5.
    """

    model: tuple[Path, ...]
    """The folder of a fine-tuning run; several are an ensemble, as in `girih predict`."""
    data: Path
    """A labelled dataset made by `girih prepare`, of cases that the models were not trained on."""
    out: Path
    """The JSON file to write. What the networks find goes into the folder of this name with .candidates for .json."""
    inference: OmitArgPrefixes[Inference] = field(default_factory=Inference)

    def run(self) -> None:
        """Look at every case, try every setting, write the best and print them all.

        Raises:
            ValueError: models and data cannot be read or do not fit each other, there is no object to find, a case is
                unlabelled or failed, or the folder of candidates is of other models or settings.
            OSError: a file cannot be written.
        """
        looking = self.inference.resolve()
        ensemble = load_ensemble(self.model)
        store = open_store(self.data, ensemble)
        truths = read_truths(store, ensemble.classes)
        checksums = dict(zip(store.case_ids, store.index.contents.tolist(), strict=True))
        folder, start = CandidateFolder(self.out.with_name(f"{self.out.stem}.candidates")), Merging()
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
        shapes = {name: (z, y, x) for name, (z, y, x) in zip(store.case_ids, store.index.shapes.tolist(), strict=True)}
        with Progress(console=Console(stderr=True)) as progress:
            bar = progress.add_task("settings", total=None)
            result = sweep(
                RawCases(folder, shapes),
                score_of(store, truths),
                start=start,
                progress=lambda done, total: progress.update(bar, completed=done, total=total),
            )
        write_json(
            self.out,
            {
                "schema": "girih-merging/1",
                "merging": dataclasses.asdict(result.merging),
                "score": _number(result.score),
                "start_score": _number(result.start_score),
                "metric": f"AP, mean over IoU {', '.join(map(str, IOUS))}",
                "n_images": len(truths),
                "rows": [{**row, "score": _number(row["score"])} for row in result.rows],
                **record,
            },
        )
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


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
