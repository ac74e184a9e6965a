"""`girih evaluate`: AP and FROC of predicted boxes, with bootstrap intervals."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

import girih_metrics
from girih.runs import write_json

# Where the plotted curve and its band are read: every quarter of an octave around the seven operating points.
CURVE_FPPI = tuple(float(2**exponent) for exponent in np.arange(-4, 4.001, 0.25))


@dataclass(frozen=True)
class Evaluate:
    """Score predicted boxes against the truth: AP and FROC at one overlap, with bootstrap intervals."""

    predictions: Path
    """Folder of one JSON file per case, as `girih predict` writes them."""
    truth: Path
    """Folder of truth files, as `girih prepare` writes them to DATASET/truth."""
    out: Path | None = None
    """Where the scores go; default: beside the predictions' folder, as <its name>.scores.json."""
    iou: float = 0.1
    """Overlap from which a prediction counts as a hit."""
    resample: Literal["patients", "images"] = "patients"
    """What the bootstrap draws; images understate the spread when one patient gave several."""
    draws: int = 1000
    """Bootstrap draws."""
    seed: int = 0
    """Seed of the draws."""

    def run(self) -> None:
        """Score, write the scores as JSON, and print them.

        Raises:
            ValueError: a file cannot be read, predictions and truth are not of the same cases, or there is only one
                patient to resample.
        """
        scores = evaluate(
            self.predictions, self.truth, iou=self.iou, resample=self.resample, draws=self.draws, seed=self.seed
        )
        out = self.out or self.predictions.with_name(f"{self.predictions.name}.scores.json")
        write_json(out, scores)
        console = Console()
        console.print(scores_table({self.predictions.name: scores}))
        for note in scores["notes"]:
            console.print(f"note: {note}")
        console.print(f"written to {out}")


def evaluate(
    predictions: Path, truth: Path, *, iou: float = 0.1, resample: str = "patients", draws: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Return the content of scores.json: AP and FROC with intervals, the FROC curve with its band, and who hit what."""
    cases = girih_metrics.read_cases(predictions, truth)
    matches = girih_metrics.match(cases, classes=girih_metrics.read_classes(truth), iou=iou)
    patients = len(set(matches.groups))
    if resample == "patients" and patients < 2:
        raise ValueError(
            f"{truth}: all {len(cases)} cases are of one patient, so there is nothing to resample; "
            "pass --resample images, and read the intervals as those of this patient alone"
        )
    drawn = girih_metrics.bootstrap(
        matches, draws=draws, seed=seed, group=resample == "patients", band_fppi=CURVE_FPPI
    ).isel(threshold=0)
    by_class = girih_metrics.average_precision(matches).isel(threshold=0)
    band = drawn["band_interval"]
    notes = [f"intervals: percentile bootstrap over {resample}"]
    if resample == "images" and patients < len(cases):
        notes.append(
            f"the {len(cases)} images are of {patients} patient(s): the intervals understate the spread over patients"
        )
    return {
        "schema": "girih-scores/1",
        "iou": iou,
        "n_images": len(cases),
        "n_patients": patients,
        "n_objects": int(matches.gt_counted.sum()),
        "draws": draws,
        "seed": seed,
        "confidence": 0.95,
        "ap": _with_interval(drawn, "ap"),
        "froc": _with_interval(drawn, "froc"),
        "per_class": {
            str(name): {
                "ap": _number(by_class["ap_class"].sel({"class": name})),
                "n_objects": int(by_class["n_objects"].sel({"class": name})),
            }
            for name in matches.classes
        },
        "froc_curve": {
            "fppi": list(CURVE_FPPI),
            "sensitivity": [_number(value) for value in drawn["band_point"]],
            "low": [_number(value) for value in band.isel(bound=0)],
            "high": [_number(value) for value in band.isel(bound=1)],
        },
        "cases": {case["case_id"]: _hits(matches, case) for case in cases},
        "notes": notes,
    }


def scores_table(scores: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return one row per method for the terminal."""
    first = next(iter(scores.values()))
    title = f"{first['n_images']} images, {first['n_objects']} objects, IoU >= {first['iou']}"
    table = Table("", "AP [95 %]", "FROC [95 %]", title=title)
    for name, row in scores.items():
        table.add_row(name, _shown(row["ap"]), _shown(row["froc"]))
    return table


def _hits(matches: girih_metrics.Matches, case: Mapping[str, Any]) -> dict[str, list[bool]]:
    rows = matches.outcome(case["case_id"])
    tp, found = set(rows["tp"].tolist()), set(rows["found"].tolist())
    return {
        "tp": [row in tp for row in range(len(case["pred_scores"]))],
        "hit": [row in found for row in range(len(case["gt_labels"]))],
    }


def _with_interval(drawn: Any, name: str) -> dict[str, float | None]:
    low, high = (_number(value) for value in drawn[f"{name}_interval"])
    return {"value": _number(drawn[f"{name}_point"]), "low": low, "high": high}


def _number(value: Any) -> float | None:
    """A float, or None where the score is not defined: JSON has no NaN."""
    return None if math.isnan(float(value)) else float(value)


def _shown(score: Mapping[str, float | None]) -> str:
    if score["value"] is None:
        return "undefined"
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
