"""Which merging suits a trained detector: tried on raw candidates of validation cases, without the network."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from ..interfaces import Detections
from .merging import MERGING, Candidates, Merging, check_sets, merge_sets, merge_tiles

IOUS = (1e-5, 0.1, 0.2, 0.3, 0.4, 0.5)

GRID: Mapping[str, Sequence[float | str]] = {
    "tile_iou": IOUS,
    "tile_nms": ("weighted", "plain"),
    "ensemble_iou": IOUS,
    "score_threshold": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
    "min_side": (0.01, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0),
}
"""Fields of `Merging` in the order in which they are settled, and the values tried, as nnDetection v0.1 has them."""


class RawCase(TypedDict):
    """What the network found in one volume, before any merging."""

    shape_zyx: tuple[int, int, int]
    """Voxels of the volume."""
    candidates: Sequence[Candidates]
    """One set per model and mirroring; as many in every case."""


class SweepRow(TypedDict):
    """One trial; the other fields of its merging are the best known when it was made."""

    parameter: str
    """Field of `Merging`."""
    value: float | str
    """What it was set to."""
    score: float
    """What it reached; NaN where the score is not defined."""


@dataclass(frozen=True)
class SweepResult:
    """The best merging found."""

    merging: Merging
    """`start` if no score was a number."""
    score: float
    """What this merging reached; never less than `start_score`."""
    start_score: float
    """What `start` reached."""
    rows: tuple[SweepRow, ...]
    """All trials in the order they were made."""


def sweep(
    cases: Mapping[str, RawCase],
    score: Callable[[Mapping[str, Detections]], float],
    *,
    start: Merging = MERGING,
    grid: Mapping[str, Sequence[float | str]] = GRID,
    progress: Callable[[int, int], None] | None = None,
) -> SweepResult:
    """Return the merging with the best score, settling one field after the other (nnDetection's empirical parameters).

    For each field in the order of `grid` its values are tried in theirs, the rest as it is by then; the first of the
    best is kept. A value of `start` that is not in the grid is tried after the others. A NaN never wins. No merging is
    scored twice, and tiles are merged again only if a trial changes how. The answer depends on the arguments alone.

    Args:
        cases: by name. Read once per merging of tiles (19 times with `GRID` and `MERGING`), so a mapping that loads its
            values when asked keeps memory low. What stays in memory are two mergings of tiles, the best so far and the
            one on trial: of each at most `max_detections` boxes (40 bytes) per set of every case, so 64 MB for 1000
            cases with 8 sets.
        score: of the detections of all cases, numpy in voxel edges of their volume; greater is better.
        start: fields that are not in `grid` keep its values.
        grid: fields of `Merging` and the values to try.
        progress: called with (trials done, all trials) after each.

    Raises:
        ValueError: no cases, cases with different numbers of sets, candidates that `merge` refuses (case, set and row
            are named), a grid with an unknown field, without values or with a value that `Merging` refuses.
    """
    fields = _fields(grid, start)
    total = sum(len(values) for values in fields.values())
    scores: dict[Merging, float] = {}
    tiles: dict[Merging, dict[str, list[Candidates]]] = {}
    rows: list[SweepRow] = []
    chosen = start
    for name, values in fields.items():
        trials = [_with(chosen, name, value) for value in values]
        highest = -math.inf
        for value, trial in zip(values, trials, strict=True):
            if trial not in scores:
                of_tiles = _of_tiles(trial)
                if of_tiles not in tiles:
                    tiles[of_tiles] = _merge_tiles(cases, of_tiles)
                scores[trial] = float(score({case: merge_sets(sets, trial) for case, sets in tiles[of_tiles].items()}))
            if scores[trial] > highest:
                chosen, highest = trial, scores[trial]
            # of a loser nothing is kept
            tiles = {of_tiles: sets for of_tiles, sets in tiles.items() if of_tiles == _of_tiles(chosen)}
            rows.append({"parameter": name, "value": value, "score": scores[trial]})
            if progress is not None:
                progress(len(rows), total)
    return SweepResult(merging=chosen, score=scores[chosen], start_score=scores[start], rows=tuple(rows))


def _with(merging: Merging, name: str, value: float | str) -> Merging:
    change: dict[str, Any] = {name: value}
    return dataclasses.replace(merging, **change)


def _of_tiles(merging: Merging) -> Merging:
    """The merging, equal for all that merge tiles alike."""
    return dataclasses.replace(
        merging,
        ensemble_iou=MERGING.ensemble_iou,
        ensemble_score_threshold=MERGING.ensemble_score_threshold,
    )


def _merge_tiles(cases: Mapping[str, RawCase], merging: Merging) -> dict[str, list[Candidates]]:
    merged = {}
    for name, case in cases.items():
        try:
            check_sets(case["candidates"])
        except ValueError as error:
            raise ValueError(f"case {name}: {error}") from error
        merged[name] = [merge_tiles(one, case["shape_zyx"], merging) for one in case["candidates"]]
    if not merged:
        raise ValueError("no cases to sweep over, wanted at least one")
    first, *others = merged
    for name in others:
        if len(merged[name]) != len(merged[first]):
            raise ValueError(
                f"case {name} has {len(merged[name])} sets of candidates and case {first} {len(merged[first])}, "
                "wanted one per model and mirroring, as many in every case"
            )
    return merged


def _fields(grid: Mapping[str, Sequence[float | str]], start: Merging) -> dict[str, list[float | str]]:
    """The values to try for each field, all of which `Merging` takes."""
    known = [field.name for field in dataclasses.fields(Merging)]
    if not grid:
        raise ValueError(f"the grid is empty, wanted values for some of {', '.join(known)}")
    fields = {}
    for name, values in grid.items():
        if name not in known:
            raise ValueError(f"the grid has {name!r}, wanted only {', '.join(known)}")
        if len(values) == 0:
            raise ValueError(f"the grid has no values for {name}, wanted at least one")
        for value in values:
            _with(start, name, value)
        fields[name] = [*values] if getattr(start, name) in values else [*values, getattr(start, name)]
    return fields
