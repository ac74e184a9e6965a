"""The outcome of matching, from which every score is counted without looking at a box again."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64


@dataclass(frozen=True)
class Matches:
    """Predictions and objects of all cases, and who found whom at each of t thresholds.

    Predictions: `pred_case`, `pred_row` (row in the case's arrays), `pred_label`, `pred_score`, `pred_size` (cube root
    of the box volume, in the boxes' unit); `judged[t, i]` is False where prediction i counts neither as true nor as
    false positive (a duplicate or a hit on an ignored object, by the rules asked for).
    Objects: `gt_case`, `gt_row`, `gt_label`, `gt_size`, `gt_counted` (False: ignored) and `found_by[t, j]`, the index
    of the prediction credited with object j, -1 if it was missed.
    `settings` are the matching rules, as text.
    """

    classes: tuple[str, ...]
    thresholds: Float64[np.ndarray, " t"]
    case_ids: tuple[str, ...]
    groups: tuple[str, ...]
    pred_case: Int64[np.ndarray, " n"]
    pred_row: Int64[np.ndarray, " n"]
    pred_label: Int64[np.ndarray, " n"]
    pred_score: Float64[np.ndarray, " n"]
    pred_size: Float64[np.ndarray, " n"]
    judged: Bool[np.ndarray, "t n"]
    gt_case: Int64[np.ndarray, " m"]
    gt_row: Int64[np.ndarray, " m"]
    gt_label: Int64[np.ndarray, " m"]
    gt_size: Float64[np.ndarray, " m"]
    gt_counted: Bool[np.ndarray, " m"]
    found_by: Int64[np.ndarray, "t m"]
    settings: tuple[tuple[str, str], ...]

    @property
    def n_images(self) -> int:
        """Number of images, those without objects or predictions included."""
        return len(self.case_ids)

    def n_objects(self) -> Int64[np.ndarray, "images classes"]:
        """Count the objects that can be found, per image and class."""
        counts = np.zeros((self.n_images, len(self.classes)), dtype=np.int64)
        np.add.at(counts, (self.gt_case[self.gt_counted], self.gt_label[self.gt_counted]), 1)
        return counts

    def true_positives(self) -> Int64[np.ndarray, "t n"]:
        """Count the objects that each prediction found (above 1 only where one prediction may find several)."""
        counts = np.zeros(self.judged.shape, dtype=np.int64)
        t, j = np.nonzero((self.found_by >= 0) & self.gt_counted)
        np.add.at(counts, (t, self.found_by[t, j]), 1)
        return counts

    def false_positives(self) -> Bool[np.ndarray, "t n"]:
        """Mark the predictions that count as false positives."""
        wrong: np.ndarray = self.judged & (self.true_positives() == 0)
        return wrong

    def threshold_index(self, threshold: float | int | None) -> int:
        """Return the position of `threshold`; None stands for the only one there is.

        Raises:
            ValueError: it was not matched at, or None with several.
        """
        found = np.flatnonzero(self.thresholds == threshold) if threshold is not None else np.arange(1)
        if len(found) != 1 or (threshold is None and len(self.thresholds) != 1):
            raise ValueError(f"threshold is {threshold}; wanted one of those matched at: {self.thresholds.tolist()}")
        return int(found[0])

    def check_label(self, label: int | None) -> None:
        """Check that `label` is a class, or None for all.

        Raises:
            ValueError: it is not.
        """
        if label is not None and not 0 <= label < len(self.classes):
            raise ValueError(f"label is {label}; wanted None or 0 <= label < {len(self.classes)}, of {self.classes}")

    def at(self, threshold: float | int) -> "Matches":
        """Return the matches at one threshold only.

        Raises:
            ValueError: it was not matched at.
        """
        t = slice(self.threshold_index(threshold), self.threshold_index(threshold) + 1)
        return replace(self, thresholds=self.thresholds[t], judged=self.judged[t], found_by=self.found_by[t])

    def outcome(
        self, case_id: str, *, threshold: float | int | None = None, min_score: float | int = -np.inf
    ) -> dict[str, Int64[np.ndarray, " k"]]:
        """Return the rows of one case that are right and wrong when predictions below `min_score` are hidden.

        Returns:
            {"tp", "fp", "ignored"}: rows of its predictions; {"found", "missed"}: rows of its counted objects.

        Raises:
            ValueError: an unknown case or threshold.
        """
        if case_id not in self.case_ids:
            raise ValueError(f"case_id is {case_id!r}; wanted one of the {self.n_images} matched cases")
        case, t = self.case_ids.index(case_id), self.threshold_index(threshold)
        shown = (self.pred_case == case) & (self.pred_score >= min_score)
        right = self.true_positives()[t] > 0
        objects = (self.gt_case == case) & self.gt_counted
        found = objects & (self.found_by[t] >= 0)
        found[found] = shown[self.found_by[t][found]]
        return {
            "tp": np.sort(self.pred_row[shown & right]),
            "fp": np.sort(self.pred_row[shown & self.judged[t] & ~right]),
            "ignored": np.sort(self.pred_row[shown & ~self.judged[t]]),
            "found": np.sort(self.gt_row[found]),
            "missed": np.sort(self.gt_row[objects & ~found]),
        }


def merge(shards: Sequence[Matches]) -> Matches:
    """Join the matches of disjoint sets of cases; the result is that of matching all of them in one call.

    Raises:
        ValueError: nothing to merge, different classes, thresholds or rules, or a case in two shards.
    """
    if not shards:
        raise ValueError("merge got no matches; wanted at least one")
    first = shards[0]
    for other in shards[1:]:
        for name in ("classes", "settings"):
            if getattr(other, name) != getattr(first, name):
                raise ValueError(f"{name} differ: {getattr(other, name)}; wanted {getattr(first, name)}")
        if not np.array_equal(other.thresholds, first.thresholds):
            raise ValueError(f"thresholds differ: {other.thresholds.tolist()}; wanted {first.thresholds.tolist()}")
    case_ids = tuple(case_id for shard in shards for case_id in shard.case_ids)
    if len(set(case_ids)) < len(case_ids):
        twice = next(case_id for case_id in case_ids if case_ids.count(case_id) > 1)
        raise ValueError(f"case {twice!r} is in more than one of the merged matches")
    case_offset = np.cumsum([0, *(shard.n_images for shard in shards)])
    pred_offset = np.cumsum([0, *(len(shard.pred_case) for shard in shards)])
    moved = [
        replace(
            shard,
            pred_case=shard.pred_case + case_offset[i],
            gt_case=shard.gt_case + case_offset[i],
            found_by=np.where(shard.found_by >= 0, shard.found_by + pred_offset[i], -1),
        )
        for i, shard in enumerate(shards)
    ]
    arrays: dict[str, Any] = {
        field.name: np.concatenate([getattr(shard, field.name) for shard in moved], axis=-1)
        for field in fields(Matches)
        if field.name.startswith(("pred_", "gt_")) or field.name in ("judged", "found_by")
    }
    groups = tuple(group for shard in shards for group in shard.groups)
    return replace(first, case_ids=case_ids, groups=groups, **arrays)
