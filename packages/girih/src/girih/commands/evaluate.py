"""`girih evaluate`: AP and FROC of predicted boxes, with bootstrap intervals and paired differences."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

import girih_metrics
from girih.atomic import write_json

# Where the plotted curve and its band are read: every quarter of an octave around the seven operating points.
CURVE_FPPI = tuple(float(2**exponent) for exponent in np.arange(-4, 4.001, 0.25))
CONFIDENCE = 0.95
Scores = dict[str, Any]


@dataclass(frozen=True)
class Evaluate:
    """Score predicted boxes against the truth: AP and FROC at one overlap, with bootstrap intervals."""

    predictions: tuple[Path, ...]
    """Folders of one JSON file per case, as `girih predict` writes them; several are compared draw by draw."""
    truth: Path
    """Folder of truth files, as `girih prepare` writes them to DATASET/truth."""
    iou: float = 0.1
    """Overlap from which a prediction counts as a hit."""
    resample: Literal["patients", "images"] = "patients"
    """What the bootstrap draws; images understate the spread when one patient gave several."""
    draws: int = 1000
    """Bootstrap draws."""
    seed: int = 0
    """Seed of the draws."""

    def run(self) -> None:
        """Score, write <folder>.scores.json beside each folder, and print the table.

        Raises:
            ValueError: a file cannot be read, predictions and truth are not of the same cases, or two folders have one
                name.
        """
        folders = by_name(self.predictions)
        scores = evaluate(folders, self.truth, iou=self.iou, resample=self.resample, draws=self.draws, seed=self.seed)
        for name, folder in folders.items():
            write_json(scores_path(folder), scores[name])
        show(scores)


def evaluate(
    folders: Mapping[str, Path],
    truth: Path,
    *,
    iou: float = 0.1,
    resample: str = "patients",
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Scores]:
    """Return the content of scores.json for each method: scores, intervals, FROC curve with band, and who hit what.

    All methods see the same draws, so that "difference" holds paired intervals of one method minus each other.

    Args:
        folders: method -> folder of predictions.
        truth: folder of truth files.
        iou: overlap of a hit.
        resample: "patients" or "images".
        draws: how many.
        seed: of the draws.

    Raises:
        ValueError: a file cannot be read, or predictions and truth are not of the same cases.
    """
    classes, found, drawn = girih_metrics.read_classes(truth), {}, {}
    for name, folder in folders.items():
        cases = girih_metrics.read_cases(folder, truth)
        matches = girih_metrics.match(cases, classes=classes, iou=iou, ignored="once")
        patients = len(set(matches.groups))
        units = patients if resample == "patients" else len(cases)
        drawn[name] = girih_metrics.bootstrap(
            matches, draws=draws, seed=seed, group=resample == "patients", level=CONFIDENCE, band_fppi=CURVE_FPPI
        ).isel(threshold=0)
        by_class = girih_metrics.average_precision(matches).isel(threshold=0)
        found[name] = {
            "schema": "girih-scores/1",
            "iou": iou,
            "n_images": len(cases),
            "n_patients": patients,
            "n_objects": int(matches.gt_counted.sum()),
            "draws": draws,
            "seed": seed,
            "confidence": CONFIDENCE,
            "ap": _with_interval(drawn[name], "ap", units),
            "froc": _with_interval(drawn[name], "froc", units),
            "per_class": {label: _class_scores(by_class.sel({"class": label})) for label in classes},
            "froc_curve": _curve(drawn[name]),
            "cases": {case["case_id"]: _hits(matches, case) for case in cases},
            "notes": _notes(resample, len(cases), patients),
        }
    for name, scores in found.items():
        others = [other for other in found if other != name]
        scores["difference"] = {other: _difference(drawn[name], drawn[other], units) for other in others}
    return found


def by_name(folders: Sequence[Path]) -> dict[str, Path]:
    """Return name -> folder of predictions.

    Raises:
        ValueError: two folders have one name; it is named.
    """
    names = [folder.resolve().name for folder in folders]
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise ValueError(f"folders of predictions are told apart by their names, found more than once: {twice}")
    return dict(zip(names, folders, strict=True))


def scores_path(folder: Path) -> Path:
    """Return where the scores of a folder of predictions are kept: beside it."""
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}.scores.json")


def show(scores: Mapping[str, Scores]) -> None:
    """Print one row per method, and what the reader has to know of the numbers."""
    first = next(iter(scores.values()))
    title = f"{first['n_images']} images, {first['n_objects']} objects, IoU >= {first['iou']:g}"
    table = Table("", "AP [95 %]", "FROC [95 %]", title=title)
    for name, row in scores.items():
        table.add_row(name, _shown(row["ap"]), _shown(row["froc"]))
    for name, row in list(scores.items())[1:]:
        for other, difference in list(row["difference"].items())[:1]:
            table.add_row(f"{name} minus {other}", _shown(difference["ap"]), _shown(difference["froc"]))
    console = Console()
    console.print(table)
    console.print("FROC: mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per image")
    for note in first["notes"]:
        console.print(f"note: {note}")


def _notes(resample: str, images: int, patients: int) -> list[str]:
    if (patients if resample == "patients" else images) < 2:
        return [f"no intervals: a single {resample.removesuffix('s')} cannot be resampled"]
    notes = [f"intervals: percentile bootstrap over {resample}"]
    if resample == "images" and patients < images:
        notes.append(f"{images} images of {patients} patient(s): the intervals understate the spread over patients")
    return notes


def _hits(matches: girih_metrics.Matches, case: girih_metrics.Case) -> dict[str, list[bool]]:
    rows = matches.outcome(case["case_id"])
    tp, fp, found = (set(rows[name].tolist()) for name in ("tp", "fp", "found"))
    return {
        "tp": [row in tp for row in range(len(case["pred_scores"]))],
        "fp": [row in fp for row in range(len(case["pred_scores"]))],  # neither: not judged by the rules
        "hit": [row in found for row in range(len(case["gt_labels"]))],
    }


def _class_scores(one_class: xr.Dataset) -> dict[str, float | int | None]:
    return {"ap": _number(one_class["ap_class"]), "n_objects": int(one_class["n_objects"])}


def _curve(drawn: xr.Dataset) -> dict[str, list[Any]]:
    low, high = drawn["band_interval"].transpose("bound", "band_fppi")
    columns = {"sensitivity": drawn["band_point"], "low": low, "high": high}
    return {"fppi": list(CURVE_FPPI), **{name: [_number(value) for value in row] for name, row in columns.items()}}


def _with_interval(drawn: xr.Dataset, name: str, units: int) -> dict[str, float | None]:
    return _scored(drawn[f"{name}_point"], drawn[f"{name}_interval"], units)


def _scored(value: xr.DataArray, interval: xr.DataArray, units: int) -> dict[str, float | None]:
    """A score with its interval; one patient or image, drawn again and again, has none."""
    low, high = (_number(bound) if units > 1 else None for bound in interval.transpose("bound", ...))
    return {"value": _number(value), "low": low, "high": high}


def _difference(mine: xr.Dataset, other: xr.Dataset, units: int) -> dict[str, dict[str, float | None]]:
    """Paired differences: draw b of one method minus draw b of the other."""
    scores = {}
    for name in ("ap", "froc"):
        interval = girih_metrics.percentile_interval(mine[name] - other[name], level=CONFIDENCE)
        scores[name] = _scored(mine[f"{name}_point"] - other[f"{name}_point"], interval, units)
    return scores


def _number(value: Any) -> float | None:
    """A float, or None where the score is not defined: JSON has no NaN."""
    return None if math.isnan(float(value)) else float(value)


def _shown(score: Mapping[str, float | None]) -> str:
    if score["value"] is None:
        return "undefined"
    if score["low"] is None:
        return f"{score['value']:.3f}"
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
