"""Which method is best over many datasets, and how sure is that order?

Methods may be absent from a dataset (out of memory, say): their score is NaN and they rank last.
"""

from collections.abc import Mapping
from typing import Literal
from zlib import crc32

import numpy as np
import xarray as xr
from scipy import stats

from girih_metrics.bootstrap import resample
from girih_metrics.compare import check_same_cases
from girih_metrics.matches import Matches
from girih_metrics.preset import Preset
from girih_metrics.protocols import preset

Ties = Literal["average", "min", "max", "dense"]
Order = Literal["rank_then_aggregate", "aggregate_then_rank"]


def score_methods(
    matches: Mapping[str, Mapping[str, Matches]],
    *,
    protocol: str | Preset = "paper",
    draws: int = 1000,
    seed: int = 0,
    group: bool = True,
) -> xr.Dataset:
    """Return every method's scores on every dataset, and on the same bootstrap draws of each.

    Args:
        matches: {method: {dataset: matches}}, made by the protocol's rules. A method may lack a dataset.
        protocol: a name of `PRESETS`, or a preset.
        draws: of the bootstrap; 0: none.
        seed: each dataset draws from this seed and its name.
        group: resample patients; False: images.

    Returns:
        score (metric, method, dataset) and, with draws, draws (metric, method, dataset, draw); lower_is_better
        (metric).

    Raises:
        ValueError: no matches; methods scored on different cases of a dataset.
    """
    rules = preset(protocol) if isinstance(protocol, str) else protocol
    datasets = list(dict.fromkeys(name for by_dataset in matches.values() for name in by_dataset))
    if not datasets:
        raise ValueError("no matches; wanted {method: {dataset: matches}}")
    metrics, methods = list(rules.scores), list(matches)
    score = np.full((len(metrics), len(methods), len(datasets)), np.nan)
    drawn = np.full((*score.shape, draws), np.nan)
    for d, dataset in enumerate(datasets):
        present = {method: matches[method][dataset] for method in methods if dataset in matches[method]}
        try:
            check_same_cases(present)
        except ValueError as error:
            raise ValueError(f"dataset {dataset!r}: {error}") from error
        for method, of_method in present.items():
            m = methods.index(method)
            score[:, m, d] = rules.score(of_method)
            if draws:
                units = of_method.groups if group else of_method.case_ids
                weights = resample(units, draws=draws, seed=[seed, crc32(dataset.encode())])
                drawn[:, m, d] = rules.score(of_method, weights)
    coords = {"metric": metrics, "method": methods, "dataset": datasets}
    result = xr.Dataset({"score": (("metric", "method", "dataset"), score)}, coords=coords)
    if draws:
        result["draws"] = (("metric", "method", "dataset", "draw"), drawn)
    result["lower_is_better"] = ("metric", [int(name in rules.lower_is_better) for name in metrics])
    result.attrs = {"protocol": rules.name, "seed": seed, "resampled": "groups" if group else "images"}
    return result


def rank(scores: xr.DataArray, *, ties: Ties = "average", lower_is_better: xr.DataArray | bool = False) -> xr.DataArray:
    """Return the rank of every method, 1 = best, along the dimension method; NaN ranks last.

    Args:
        scores: any dimensions, method among them.
        ties: rank of equal scores: their "average", "min" (competition ranking), "max" or "dense".
        lower_is_better: whether small scores are good; may vary along other dimensions.
    """
    sign = 1 - 2 * xr.DataArray(lower_is_better).astype(np.int64)
    good = (scores * sign).transpose(*scores.dims).fillna(-np.inf)
    ranks = stats.rankdata(-good.values, method=ties, axis=good.dims.index("method"))
    return good.copy(data=ranks.astype(np.float64))


def mean_rank(
    scores: xr.DataArray,
    *,
    order: Order = "rank_then_aggregate",
    ties: Ties = "average",
    lower_is_better: xr.DataArray | bool = False,
) -> xr.DataArray:
    """Return one rank per method over the dimension dataset.

    Args:
        scores: dimensions method and dataset among others.
        order: "rank_then_aggregate": the mean over datasets of the ranks within each (the study's Mean Rank);
            "aggregate_then_rank": the rank of the mean score over datasets; NaN on any dataset ranks last.
        ties: see `rank`.
        lower_is_better: see `rank`.

    Raises:
        ValueError: an unknown order.
    """
    if order == "rank_then_aggregate":
        return rank(scores, ties=ties, lower_is_better=lower_is_better).mean("dataset")
    if order == "aggregate_then_rank":
        return rank(scores.mean("dataset", skipna=False), ties=ties, lower_is_better=lower_is_better)
    raise ValueError(f"order is {order!r}; wanted 'rank_then_aggregate' or 'aggregate_then_rank'")


def ranking(scores: xr.Dataset, *, order: Order = "rank_then_aggregate", ties: Ties = "average") -> xr.Dataset:
    """Return point and bootstrap ranks of the methods, and how stable their order is.

    Args:
        scores: from `score_methods`.
        order: how datasets are combined, see `mean_rank`.
        ties: see `rank`.

    Returns:
        rank (metric, method, dataset) and mean_rank (metric, method) of the scores themselves; kendall_w and
        friedman_p (metric), the agreement of the datasets on the order and the chance of as much without any
        difference. With draws: draw_rank (metric, method, dataset, draw), draw_mean_rank (metric, method, draw),
        bootstrap_mean_rank (metric, method), its mean over draws; p_best (metric, method), the share of draws in
        which a method is first, shared where several are; kendall_tau (metric, draw), the agreement of each draw's
        order with that of the scores themselves.

    Raises:
        ValueError: an unknown order.
    """
    lower = scores["lower_is_better"].astype(bool)
    result = xr.Dataset(attrs={"order": order, "ties": ties})
    result["rank"] = rank(scores["score"], ties=ties, lower_is_better=lower)
    result["mean_rank"] = mean_rank(scores["score"], order=order, ties=ties, lower_is_better=lower)
    averaged = rank(scores["score"], lower_is_better=lower).transpose("metric", "dataset", "method").values
    agreement = [_friedman(ranks) for ranks in averaged]
    result["kendall_w"] = ("metric", [w for w, _ in agreement])
    result["friedman_p"] = ("metric", [p for _, p in agreement])
    if "draws" not in scores:
        return result
    result["draw_rank"] = rank(scores["draws"], ties=ties, lower_is_better=lower)
    drawn = mean_rank(scores["draws"], order=order, ties=ties, lower_is_better=lower)
    result["draw_mean_rank"] = drawn
    result["bootstrap_mean_rank"] = drawn.mean("draw")
    first = (drawn == drawn.min("method")).astype(np.float64)
    result["p_best"] = (first / first.sum("method")).mean("draw")
    result["kendall_tau"] = xr.apply_ufunc(
        lambda a, b: stats.kendalltau(a, b).statistic,
        drawn,
        result["mean_rank"],
        input_core_dims=[["method"], ["method"]],
        vectorize=True,
    )
    return result


def critical_difference(n_methods: int, n_datasets: int, *, alpha: float = 0.05) -> float:
    """Return by how much two mean ranks must differ to be told apart (Nemenyi 1963; Demsar 2006, section 3.2.2).

    Raises:
        ValueError: fewer than two methods, no dataset, alpha outside (0, 1).
    """
    if n_methods < 2 or n_datasets < 1 or not 0 < alpha < 1:
        raise ValueError(
            f"n_methods, n_datasets, alpha are {n_methods}, {n_datasets}, {alpha}; "
            "wanted at least 2, at least 1, between 0 and 1"
        )
    quantile = stats.studentized_range.ppf(1 - alpha, n_methods, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(n_methods * (n_methods + 1) / (6 * n_datasets)))


def _friedman(ranks: np.ndarray) -> tuple[float, float]:
    """Kendall's W and Friedman's p from average ranks (dataset, method), corrected for ties."""
    n_datasets, n_methods = ranks.shape
    if n_methods < 2 or n_datasets < 2:
        return np.nan, np.nan
    spread = ((ranks.sum(axis=0) - n_datasets * (n_methods + 1) / 2) ** 2).sum()
    ties = sum((count**3 - count) for row in ranks for count in np.unique(row, return_counts=True)[1])
    whole = n_datasets**2 * (n_methods**3 - n_methods) - n_datasets * ties
    if whole == 0:  # every dataset has all methods equal
        return np.nan, np.nan
    w = 12 * spread / whole
    return float(w), float(stats.chi2.sf(n_datasets * (n_methods - 1) * w, n_methods - 1))
