"""How a benchmark counts: named presets of matching rules and scores.

A preset says how to match and which scores to count. `evaluate` runs one; `bootstrap`, comparison and ranking take
any. Each preset's docstring states the rule, where it comes from, and what we do differently.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xarray as xr

from girih_metrics.ap import average_precision
from girih_metrics.bootstrap import draws_lacking, leave_one_out, resample
from girih_metrics.challenges import adam, cada, luna16, picai, pn9, ribfrac
from girih_metrics.froc import froc
from girih_metrics.interfaces import Case
from girih_metrics.intervals import Interval, bca_interval, check_interval, percentile_interval
from girih_metrics.matches import Matches
from girih_metrics.preset import Preset, Score
from girih_metrics.thresholds import iou_range


def evaluate(
    cases: Sequence[Case],
    *,
    classes: Sequence[str],
    protocol: str | Preset = "paper",
    draws: int = 1000,
    seed: int = 0,
    group: bool = True,
    level: float | int = 0.95,
    interval: Interval = "percentile",
) -> xr.Dataset:
    """Match the cases by a protocol and return its scores with intervals.

    Args:
        cases: see `Case`.
        classes: names; label i is `classes[i]`.
        protocol: a name of `PRESETS`, or a preset.
        draws: of the bootstrap; 0: no intervals.
        seed: of the bootstrap.
        group: resample patients; False: images.
        level: of the intervals.
        interval: "percentile" or "bca".

    Returns:
        score (metric); with draws, interval (metric, bound) and draws (metric, draw). A draw without any object of a
        class averages the other classes: attrs["n_dropped_class"] counts those draws, attrs["n_undefined"] those
        without any object, whose AP and FROC are NaN and left out of the interval.

    Raises:
        ValueError: bad cases, an unknown protocol or interval, no case.
    """
    rules = preset(protocol) if isinstance(protocol, str) else protocol
    matches = rules.match(cases, classes=classes)
    return evaluate_matches(
        matches, protocol=rules, draws=draws, seed=seed, group=group, level=level, interval=interval
    )


def evaluate_matches(
    matches: Matches,
    *,
    protocol: str | Preset = "paper",
    draws: int = 1000,
    seed: int = 0,
    group: bool = True,
    level: float | int = 0.95,
    interval: Interval = "percentile",
) -> xr.Dataset:
    """Return the scores of a protocol, with intervals, from matches made by its rules.

    Arguments, result and errors are those of `evaluate`.
    """
    rules = preset(protocol) if isinstance(protocol, str) else protocol
    check_interval(interval)
    if not matches.n_images:
        raise ValueError("no cases; wanted at least one")
    result = xr.Dataset({"score": rules.score(matches)})
    lacking: dict[str, int] = {}
    if draws:
        units = matches.groups if group else matches.case_ids
        weights = resample(units, draws=draws, seed=seed)
        lacking = draws_lacking(matches, weights)
        result["draws"] = rules.score(matches, weights)
        if interval == "bca":
            left_out = rules.score(matches, leave_one_out(units)).rename(draw="left_out")
            result["interval"] = bca_interval(result["draws"], result["score"], left_out, level=level)
        else:
            result["interval"] = percentile_interval(result["draws"], level=level)
    counted = matches.n_objects()
    result.attrs = {
        "protocol": rules.name,
        "n_images": matches.n_images,
        "n_negative_images": int((counted.sum(axis=1) == 0).sum()),
        "n_groups": len(set(matches.groups)),
        "n_objects": int(counted.sum()),
        "absent": ", ".join(matches.classes[label] for label in np.flatnonzero(counted.sum(axis=0) == 0)),
        "level": float(level),
        "interval": interval,
        **lacking,
        **dict(matches.settings),
    }
    return result


def paper() -> Preset:
    """The comparison of pre-trained 3D detectors ("The Missing Piece", section 2.4, Tables 2 and 3).

    Rule: box IoU of at least 0.1, greedy by score, one object per prediction, further hits are false positives, at
    most 100 predictions per image and class; an ignored object takes one prediction, further hits on it are false
    positives. mAP@0.1 is the mean over classes of 101-point AP; FROC@0.1 the mean
    sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per image, all classes in one curve.
    Source: nnDetection's evaluator (Baumgartner et al. 2021), which the study uses.
    Corrected: as `nndetection`.
    """
    return Preset(
        "paper",
        {"criterion": "box_iou", "iou": 0.1, "ignored": "once"},
        {"mAP@0.1": _ap(0.1), "FROC@0.1": _froc(0.1)},
    )


def nndetection() -> Preset:
    """NnDetection's evaluation (Baumgartner et al. 2021; nndet/evaluator/detection).

    Rule: as `paper`, at IoU 0.1 and 0.5, and mAP over IoU 0.1, 0.15 ... 0.5.
    Corrected: a class without ground truth is left out instead of entering the mean as -1; FROC is 0 instead of NaN
    when nothing is hit, and works with ignored objects; IoU thresholds are decimal, so that 0.3 is 0.3; AP does not
    depend on the order of images when scores are equal; boxes without volume match nothing.
    `nndetection_compat` gives the evaluator's own numbers. Its boxes are one voxel wider than the object: convert
    with `from_nndetection` first, both sides alike.
    """
    over = iou_range(0.1, 0.5, 0.05)

    def mean_ap(matches: Matches, weights: np.ndarray) -> xr.DataArray:
        return average_precision(matches, weights=weights)["mean_ap"]

    return Preset(
        "nndetection",
        {"criterion": "box_iou", "iou": over, "ignored": "once"},
        {
            "AP@0.1": _ap(0.1),
            "AP@0.5": _ap(0.5),
            "mAP@0.1:0.5:0.05": mean_ap,
            "FROC@0.1": _froc(0.1),
            "FROC@0.5": _froc(0.5),
        },
    )


PRESETS: Mapping[str, Callable[[], Preset]] = {
    "paper": paper,
    "nndetection": nndetection,
    "luna16": luna16,
    "pn9": pn9,
    "ribfrac": ribfrac,
    "picai": picai,
    "adam": adam,
    "cada": cada,
}


def preset(name: str) -> Preset:
    """Return the preset called `name`.

    Raises:
        ValueError: an unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"protocol is {name!r}; wanted one of {sorted(PRESETS)}")
    return PRESETS[name]()


def _ap(threshold: float) -> Score:
    def score(matches: Matches, weights: np.ndarray) -> xr.DataArray:
        at = matches.at(threshold)
        return average_precision(at, weights=weights)["ap"].isel(threshold=0)

    return score


def _froc(threshold: float) -> Score:
    def score(matches: Matches, weights: np.ndarray) -> xr.DataArray:
        return froc(matches.at(threshold), weights=weights)["froc"].isel(threshold=0)

    return score
