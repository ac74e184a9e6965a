"""Presets of public challenges. Cases hold one scan each; all of them ignore classes."""

import numpy as np
import xarray as xr

from girih_metrics.ap import average_precision
from girih_metrics.boxes import centers
from girih_metrics.case_level import case_level
from girih_metrics.froc import froc
from girih_metrics.interfaces import Case
from girih_metrics.matches import Matches
from girih_metrics.operating import operating_point
from girih_metrics.preset import Preset, Score

ANY_HIT = {"assignment": "each_object", "duplicates": "ignored", "max_detections": None}
"""Every object is found by its best-scored hit; its further hits count as nothing."""


def luna16() -> Preset:
    """LUNA16, competition performance metric (Setio et al. 2017; the challenge's evaluation script).

    Rule: a mark hits a nodule if the squared distance of its point to the centre is below the squared radius, in world
    millimetres. Every nodule counts once, with its best mark; its other marks, and marks on excluded findings
    (`gt_ignore`), count as nothing. Of a scan with more than 100 marks those above the 101st score are kept. CPM is
    the mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per scan, linearly interpolated.
    Corrected: a set without any hit scores 0 instead of NaN. The script reads its curve on a grid of 10001 points, we
    read it exactly. A diameter below 0 stands for 10 mm: the reader of that format does that.
    """
    return Preset(
        "luna16",
        {"criterion": "center_distance", "boundary": "exclusive", **ANY_HIT},
        {"CPM": _cpm},
        prepare=lambda case: _marks(_one_class(case), 100),
        classes=("nodule",),
    )


def pn9() -> Preset:
    """PN9 as evaluated for SANet (Mei et al. 2021; its copy of the LUNA16 script).

    Rule: as `luna16`, with the diameter taken as the larger of the y and x extents of the box, its centre as the
    nodule's, voxels as millimetres (the images are 1 mm), at most 300 marks, and no classes although there are nine.
    Corrected: as `luna16`. Of more than 300 marks those above the 301st score are kept, as there; the copy lowers that
    limit by 1e-8 and keeps the first 300 in the file of 301 or more, which depends on the order of the file. The copy
    prints two means: this one, and one of the next operating points at or above each rate, not interpolated.
    """

    def prepare(case: Case) -> Case:
        boxes = np.asarray(case["gt_boxes"], dtype=np.float64).reshape(-1, 6)
        diameters = (boxes[:, 4:] - boxes[:, 1:3]).max(axis=1)
        return {**_marks(_one_class(case), 300), "gt_diameters": diameters, "gt_centers": centers(boxes)}

    return Preset(
        "pn9",
        {"criterion": "center_distance", "boundary": "exclusive", **ANY_HIT},
        {"CPM": _cpm},
        prepare=prepare,
        classes=("nodule",),
    )


def ribfrac() -> Preset:
    """RibFrac, detection track (Jin et al. 2020; the challenge's evaluation.py).

    Rule: overlap = voxels of a connected piece of (truth and prediction) / voxels of the connected piece of (truth or
    prediction) that holds it; pieces connect over faces, edges and corners. A piece belongs to the prediction and the
    object at its rounded centroid. A hit is above 0.2. Each prediction stands for the object it overlaps most; further
    hits on an object count as nothing. The curve has the score thresholds 0, 0.01 ... 0.99; recall is read at 0.5, 1,
    2, 4 and 8 false positives per scan, linearly, 0 left of its first point, and averaged.
    Corrected: more than 255 instances (the script casts to 8 bits); thresholds are decimal (its 0.35 misses a score of
    0.35); false positives are counted without its 1e-8, which pushed points off the FPPI they lie on; of several
    pieces between one pair the largest overlap counts, not the last; a piece whose centroid lies outside it (a curved
    fracture) belongs to the pair with most of its voxels, where the script drops it. Masks that overlap are refused:
    the challenge's files are label maps.
    """

    def prepare(case: Case) -> Case:
        scores = np.asarray(case["pred_scores"], dtype=np.float64)
        if ((scores < 0) | (scores > 1)).any():
            raise ValueError(f"case {case['case_id']!r}: pred_scores reach outside [0, 1]; ribfrac wants probabilities")
        grid = np.arange(100) / 100
        return {**_one_class(case), "pred_scores": grid[np.searchsorted(grid, scores, side="right") - 1]}

    def score(matches: Matches, weights: np.ndarray) -> xr.DataArray:
        read = froc(matches, fppi=(0.5, 1.0, 2.0, 4.0, 8.0), weights=weights)["sensitivity"].isel(threshold=0)
        first = operating_point(matches, min_score=0.99, weights=weights)["fppi"].isel(threshold=0)
        return read.where((read["fppi"] >= first) | read.isnull(), 0.0).mean("fppi", skipna=False)

    return Preset(
        "ribfrac",
        {
            "criterion": "component_iou",
            "iou": 0.2,
            "boundary": "exclusive",
            "assignment": "max_overlap",
            "duplicates": "ignored",
            "max_detections": None,
        },
        {"FROC": score},
        prepare=prepare,
        classes=("fracture",),
    )


def picai() -> Preset:
    """PI-CAI (Saha et al. 2022; picai_eval).

    Rule: mask IoU of at least 0.1; as many pairs as possible, of these the largest total overlap (Hungarian); further
    candidates that overlap enough count as nothing. AP is the uninterpolated sum, AUROC tells cases with a lesion from
    those without by their best candidate, the score is their mean.
    Corrected: the last threshold of its FROC, lost when every lesion is found, is kept (see
    `froc(interpolation="step")`).
    """

    def precision(matches: Matches, weights: np.ndarray) -> xr.DataArray:
        return average_precision(matches, curve="step", weights=weights)["ap"].isel(threshold=0)

    def auroc(matches: Matches, weights: np.ndarray) -> xr.DataArray:
        return case_level(matches, weights=weights)["auroc"]

    return Preset(
        "picai",
        {
            "criterion": "mask_iou",
            "iou": 0.1,
            "assignment": "hungarian",
            "duplicates": "ignored",
            "max_detections": None,
        },
        {"score": lambda m, w: (precision(m, w) + auroc(m, w)) / 2, "AP": precision, "AUROC": auroc},
        prepare=_one_class,
        classes=("lesion",),
    )


def adam() -> Preset:
    """ADAM, detection task (Timmins et al. 2021).

    Rule: a point hits an aneurysm if it lies within the largest radius around its centre of mass (`gt_centers`,
    `gt_diameters`); further hits count as nothing; treated aneurysms are ignored (`gt_ignore`). Points have no scores:
    all count. Sensitivity is that of each scan with an untreated aneurysm, averaged over these scans.
    Different: a point on a treated site is recognised by that site's radius, as on any other; the challenge looks up
    the voxel in the mask of treated sites.
    Not included: the challenge's rank, a min-max normalisation over the teams.
    """
    return Preset(
        "adam",
        {"criterion": "center_distance", **ANY_HIT},
        {"sensitivity": _scan_sensitivity, "false positives per image": _at_all("fppi")},
        prepare=_one_class,
        classes=("aneurysm",),
        lower_is_better=frozenset({"false positives per image"}),
    )


def cada() -> Preset:
    """CADA, detection task (Ivantsits et al. 2022).

    Rule: a point hits an aneurysm if it lies inside its mask; further hits count as nothing. Points have no scores:
    all count. F2 weighs recall twice.
    Not included: coverage and fit of the submitted boxes.
    """
    return Preset(
        "cada",
        {"criterion": "point_in_mask", **ANY_HIT},
        {
            "F2": _at_all("f_beta", beta=2.0),
            "precision": _at_all("precision"),
            "recall": _at_all("sensitivity"),
        },
        prepare=_one_class,
        classes=("aneurysm",),
    )


def _cpm(matches: Matches, weights: np.ndarray) -> xr.DataArray:
    return froc(matches, weights=weights)["froc"].isel(threshold=0)


def _at_all(name: str, beta: float = 1.0) -> Score:
    def score(matches: Matches, weights: np.ndarray) -> xr.DataArray:
        return operating_point(matches, beta=beta, weights=weights)[name].isel(threshold=0)

    return score


def _scan_sensitivity(matches: Matches, weights: np.ndarray) -> xr.DataArray:
    objects, found = matches.n_objects().sum(axis=1), np.zeros(matches.n_images)
    np.add.at(found, matches.gt_case, matches.gt_counted & (matches.found_by[0] >= 0))
    positive = objects > 0
    share = np.divide(found, objects, out=np.zeros_like(found), where=positive)
    n_positive = weights @ positive.astype(np.float64)
    return xr.DataArray(weights @ share / np.where(n_positive > 0, n_positive, np.nan), dims="draw")


def _one_class(case: Case) -> Case:
    return {
        **case,
        "gt_labels": np.zeros(len(case["gt_labels"]), dtype=np.int64),
        "pred_labels": np.zeros(len(case["pred_labels"]), dtype=np.int64),
    }


def _marks(case: Case, most: int) -> Case:
    """Keep the predictions above the score that follows the `most` best ones: all of a tie there are dropped."""
    scores = np.asarray(case["pred_scores"], dtype=np.float64)
    if len(scores) <= most:
        return case
    kept = np.flatnonzero(scores > np.sort(scores)[::-1][most])
    fewer: Case = {
        **case,
        "pred_boxes": np.asarray(case["pred_boxes"])[kept],
        "pred_scores": scores[kept],
        "pred_labels": np.asarray(case["pred_labels"])[kept],
    }
    if "pred_points" in case:
        fewer["pred_points"] = np.asarray(case["pred_points"])[kept]
    if "pred_masks" in case:
        fewer["pred_masks"] = [case["pred_masks"][k] for k in kept]
    return fewer
