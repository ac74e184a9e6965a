"""Is one method better than another? Paired differences on the same cases, and what chance alone would give."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import xarray as xr
from jaxtyping import Float64, Int64

from girih_metrics.bootstrap import leave_one_out, resample
from girih_metrics.interfaces import Numbers
from girih_metrics.intervals import Interval, bca_interval, check_interval, percentile_interval
from girih_metrics.matches import Matches, merge
from girih_metrics.preset import Preset
from girih_metrics.protocols import preset


def compare(
    methods: Mapping[str, Matches],
    *,
    protocol: str | Preset = "paper",
    baseline: str | None = None,
    draws: int = 1000,
    permutations: int = 1000,
    seed: int = 0,
    group: bool = True,
    level: float | int = 0.95,
    interval: Interval = "percentile",
) -> xr.Dataset:
    """Compare methods in pairs, scored on the same cases.

    The interval comes from a bootstrap in which both methods see the same draws. The p-value comes from exchanging
    the two methods' predictions patient by patient (or image by image) at random: the share of exchanges, the actual
    assignment included, whose difference is at least as large in size; one without a defined difference (no object
    left on one side) counts as such. Holm's correction (1979) is over the pairs, for each metric alone.

    Args:
        methods: matches by name, made by the protocol's rules.
        protocol: a name of `PRESETS`, or a preset.
        baseline: compare every other method with this one; None: all pairs.
        draws: of the bootstrap; 0: no intervals.
        permutations: random exchanges.
        seed: of both.
        group: resample and exchange patients; False: images.
        level: of the intervals.
        interval: "percentile", or "bca" (from the differences without one patient or image each).

    Returns:
        Over (pair, metric): difference (first minus second), with draws interval (also bound), p, p_holm; coordinates
        first and second along pair; lower_is_better (metric). For a metric in which lower is better, a negative
        difference favours the first.

    Raises:
        ValueError: fewer than two methods, an unknown baseline or interval, methods scored on different cases or by
            different rules.
    """
    rules = preset(protocol) if isinstance(protocol, str) else protocol
    check_interval(interval)
    if len(methods) < 2 or (baseline is not None and baseline not in methods):
        raise ValueError(f"methods are {list(methods)}, baseline {baseline!r}; wanted at least two, baseline included")
    check_same_cases(methods)
    if permutations < 1:
        raise ValueError(f"permutations is {permutations}; wanted at least 1")
    pairs = list(combinations(methods, 2))
    if baseline is not None:
        pairs = [(name, baseline) for name in methods if name != baseline]
    units = {name: matches.groups if group else matches.case_ids for name, matches in methods.items()}
    point = {name: rules.score(matches) for name, matches in methods.items()}
    difference = xr.concat([point[a] - point[b] for a, b in pairs], "pair")
    p_values = np.stack(
        [_permutation_p(rules, (methods[a], methods[b]), (units[a], units[b]), permutations, seed) for a, b in pairs]
    )
    result = xr.Dataset({"difference": difference})
    if draws:
        drawn = {name: rules.score(m, resample(units[name], draws=draws, seed=seed)) for name, m in methods.items()}
        left_out = {
            name: rules.score(m, leave_one_out(units[name])) for name, m in methods.items() if interval == "bca"
        }
        bounds = [
            bca_interval(
                drawn[a] - drawn[b],
                point[a] - point[b],
                (left_out[a] - left_out[b]).rename(draw="left_out"),
                level=level,
            )
            if interval == "bca"
            else percentile_interval(drawn[a] - drawn[b], level=level)
            for a, b in pairs
        ]
        result["interval"] = xr.concat(bounds, "pair")
    result["p"] = (("pair", "metric"), p_values)
    result["p_holm"] = (("pair", "metric"), np.stack([holm(column) for column in p_values.T], axis=1))
    result["lower_is_better"] = ("metric", [int(name in rules.lower_is_better) for name in rules.scores])
    result.attrs = {"protocol": rules.name, "draws": draws, "permutations": permutations, "seed": seed}
    result.attrs |= {"interval": interval, "level": float(level), **dict(methods[pairs[0][0]].settings)}
    return result.assign_coords(first=("pair", [a for a, _ in pairs]), second=("pair", [b for _, b in pairs]))


def check_same_cases(methods: Mapping[str, Matches]) -> None:
    """Check that all methods were scored on the same cases and objects by the same rules.

    Raises:
        ValueError: matching rules, thresholds, classes, cases, patients, or number or sizes of objects differ; names
            the methods and the rule or the first case that differs.
    """
    (first, reference), *others = methods.items()
    wanted, objects = _truth(reference), _objects(reference)
    for name, matches in others:
        if matches.classes != reference.classes:
            raise ValueError(f"{name!r} has classes {matches.classes}, {first!r} has {reference.classes}")
        if matches.settings != reference.settings:
            rule, ours, theirs = next(
                (a[0], a[1], b[1]) for a, b in zip(matches.settings, reference.settings, strict=True) if a != b
            )
            raise ValueError(f"{name!r} was matched with {rule} {ours!r}, {first!r} with {theirs!r}; wanted the same")
        if not np.array_equal(matches.thresholds, reference.thresholds):
            raise ValueError(
                f"{name!r} was matched at {matches.thresholds.tolist()}, {first!r} at "
                f"{reference.thresholds.tolist()}; wanted the same thresholds"
            )
        found = _truth(matches)
        for case_id in sorted(set(wanted) ^ set(found)):
            here, there = (name, first) if case_id in found else (first, name)
            raise ValueError(f"case {case_id!r} is scored for {here!r} but not for {there!r}; wanted the same cases")
        for case_id in sorted(wanted):
            if wanted[case_id] != found[case_id]:
                raise ValueError(
                    f"case {case_id!r} has (group, objects per class) {found[case_id]} for {name!r} and "
                    f"{wanted[case_id]} for {first!r}; wanted the same truth"
                )
        sizes = _objects(matches)
        n = min(sizes.shape[1], objects.shape[1])
        differ = np.append(np.flatnonzero((sizes[:, :n] != objects[:, :n]).any(axis=0)), n)[0]
        if differ < max(sizes.shape[1], objects.shape[1]):
            case = min(int(table[0, differ]) for table in (sizes, objects) if differ < table.shape[1])
            raise ValueError(
                f"case {sorted(wanted)[case]!r} has objects of other sizes, or others to ignore, for {name!r} than for "
                f"{first!r}; wanted the same truth"
            )


def holm(p_values: Numbers) -> Float64[np.ndarray, " n"]:
    """Return p-values adjusted for their number by Holm's step-down rule (1979); NaN stays NaN and does not count."""
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def _permutation_p(
    rules: Preset,
    pair: tuple[Matches, Matches],
    units: tuple[Sequence[str], Sequence[str]],
    permutations: int,
    seed: int,
) -> Float64[np.ndarray, " metrics"]:
    joined = merge([replace(m, case_ids=tuple(f"{k} {c}" for c in m.case_ids)) for k, m in enumerate(pair)])
    swaps = _swaps(units, permutations, seed)
    exchanged = rules.score(joined, swaps) - rules.score(joined, 1 - swaps)
    actual = exchanged.isel(draw=0)
    # The first row exchanges nothing; 1e-12 forgives the rounding of equal differences; NaN is not below anything.
    as_large = ~(abs(exchanged) < abs(actual) - 1e-12)
    share: np.ndarray = as_large.mean("draw").where(actual.notnull()).values
    return share


def _swaps(
    units: tuple[Sequence[str], Sequence[str]], permutations: int, seed: int
) -> Int64[np.ndarray, "permutations images"]:
    """Weights that pick, group by group, the cases of one method or the other; the first row picks the first method."""
    names, member = np.unique(np.asarray([*units[0], *units[1]], dtype=str), return_inverse=True)
    taken = np.random.default_rng(seed).integers(0, 2, size=(permutations + 1, len(names)))
    taken[0] = 1
    weights = taken[:, member]
    weights[:, len(units[0]) :] = 1 - weights[:, len(units[0]) :]
    return weights.astype(np.int64)


def _truth(matches: Matches) -> dict[str, tuple[str, tuple[int, ...]]]:
    counts = matches.n_objects().tolist()
    return {
        case_id: (group, tuple(row))
        for case_id, group, row in zip(matches.case_ids, matches.groups, counts, strict=True)
    }


def _objects(matches: Matches) -> Float64[np.ndarray, "4 m"]:
    """Case (place of its id), label, counted or not, and size of all objects, in an order free of that of the input."""
    place = np.argsort(np.argsort(np.asarray(matches.case_ids, dtype=str), kind="stable"), kind="stable")
    columns = np.stack([place[matches.gt_case], matches.gt_label, matches.gt_counted, matches.gt_size])
    return columns[:, np.lexsort(columns[::-1])]
