"""Figures of results. Needs the extra `plot` (matplotlib); every function returns a Figure to save or show."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from girih_metrics.bootstrap import bootstrap
from girih_metrics.froc import FPPI, froc_curve
from girih_metrics.matches import Matches
from girih_metrics.ranking import critical_difference
from girih_metrics.sweep import operating_points


def plot_froc(
    methods: Mapping[str, Matches],
    *,
    threshold: float | int | None = None,
    draws: int = 1000,
    seed: int = 0,
    group: bool = True,
    level: float | int = 0.95,
) -> Figure:
    """Draw FROC curves with bootstrap bands, false positives per image on a logarithmic axis.

    Args:
        methods: matches by name.
        threshold: one of those matched at; None if there is only one.
        draws: of the band; 0: no band.
        seed: of the draws.
        group: resample patients; False: images.
        level: of the band.

    Raises:
        ValueError: an unknown threshold.
    """
    figure, axes = _canvas("false positives per image", "sensitivity")
    grid = np.geomspace(FPPI[0], FPPI[-1], 61)
    for k, (name, matches) in enumerate(methods.items()):
        at = matches.at(float(matches.thresholds[matches.threshold_index(threshold)]))
        curve = froc_curve(at)
        # On a logarithmic axis straight lines bend: draw the curve on a fine grid.
        axes.plot(grid, np.interp(grid, curve["fppi"], curve["sensitivity"]), color=f"C{k}", label=name)
        if draws:
            band = bootstrap(at, draws=draws, seed=seed, group=group, level=level, band_fppi=grid)["band_interval"]
            lower, upper = (band.sel(bound=bound).isel(threshold=0) for bound in ("lower", "upper"))
            axes.fill_between(grid, lower, upper, color=f"C{k}", alpha=0.2, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(FPPI, ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    axes.set_xlim(FPPI[0], FPPI[-1])
    axes.set_ylim(0, 1)
    axes.legend()
    return figure


def plot_precision_recall(
    methods: Mapping[str, Matches], *, threshold: float | int | None = None, label: int | None = None
) -> Figure:
    """Draw precision over recall, as measured and (dashed) as the 101-point AP reads it.

    Args:
        methods: matches by name.
        threshold: one of those matched at; None if there is only one.
        label: one class; None: all pooled.

    Raises:
        ValueError: an unknown threshold.
    """
    figure, axes = _canvas("recall", "precision")
    for k, (name, matches) in enumerate(methods.items()):
        counted = matches.gt_counted if label is None else matches.gt_counted & (matches.gt_label == label)
        _, tp, fp = operating_points(matches, matches.threshold_index(threshold), label)
        recall, precision = tp[1:] / (counted.sum() or np.nan), tp[1:] / (tp + fp)[1:]
        axes.plot(recall, precision, color=f"C{k}", label=name)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        axes.step(recall, envelope, color=f"C{k}", linestyle="--", linewidth=1, where="pre")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.legend()
    return figure


def plot_ranks(
    scores: xr.Dataset,
    ranks: xr.Dataset,
    *,
    families: Mapping[str, str] | None = None,
    baselines: Mapping[str, str] | None = None,
    scale: float | int = 100,
) -> Figure:
    """Draw the distribution of each method's rank over datasets and draws, beside its gain over a baseline (Fig. 2).

    Args:
        scores: from `score_methods`, with draws.
        ranks: from `ranking(scores)`.
        families: {method: family}, say the architecture; None: one family.
        baselines: {family: method}; adds a panel per metric with the mean difference over datasets to it.
        scale: of the scores; counts of errors (lower is better) are not scaled.

    Raises:
        ValueError: no draws, a method without a family, or a family or method unknown in `baselines`.
    """
    methods = [str(name) for name in scores["method"].values]
    family = dict.fromkeys(methods, "") if families is None else dict(families)
    known = {family[name] for name in methods if name in family}
    if "draw_rank" not in ranks:
        raise ValueError("ranks hold no draws; wanted scores of at least one bootstrap draw")
    if set(methods) - set(family):
        raise ValueError(f"families lack {sorted(set(methods) - set(family))}; wanted one for each method")
    if baselines is not None and (set(baselines) != known or set(baselines.values()) - set(methods)):
        raise ValueError(f"baselines are {dict(baselines)}; wanted a known method for each of {sorted(known)}")
    names = list(dict.fromkeys(family[name] for name in methods))
    methods.sort(key=lambda name: names.index(family[name]))
    metrics = [str(metric) for metric in scores["metric"].values]
    panels = len(metrics) * (1 if baselines is None else 2)
    figure = Figure(figsize=(2 + 3 * panels, 1 + 0.35 * len(methods)), layout="constrained")
    columns = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    places = np.arange(len(methods))[::-1]
    for k, metric in enumerate(metrics):
        drawn = ranks["draw_rank"].sel({"metric": metric, "method": methods})
        violins = columns[k].violinplot(
            [drawn.sel({"method": name}).values.ravel() for name in methods],
            positions=places,
            orientation="horizontal",
            showextrema=False,
            widths=0.9,
        )
        for body, name in zip(violins["bodies"], methods, strict=True):
            body.set_facecolor(f"C{names.index(family[name])}")
        means = ranks["mean_rank"].sel({"metric": metric, "method": methods})
        columns[k].plot(means, places, "k|", label="mean rank")
        columns[k].set_xlabel(f"rank by {metric}")
        columns[k].set_xlim(0.5, len(methods) + 0.5)
        if baselines is not None:
            size = 1 if bool(scores["lower_is_better"].sel(metric=metric)) else scale
            mean = scores["score"].sel(metric=metric).mean("dataset", skipna=False) * size
            gains = [float(mean.sel({"method": n}) - mean.sel({"method": baselines[family[n]]})) for n in methods]
            bars = columns[len(metrics) + k].barh(places, gains, color=[f"C{names.index(family[n])}" for n in methods])
            columns[len(metrics) + k].bar_label(bars, fmt="%+.1f", padding=2, fontsize=7)
            columns[len(metrics) + k].set_xlabel(f"gain in {metric}")
            columns[len(metrics) + k].margins(x=0.25)
    columns[0].set_yticks(places, methods)
    return figure


def plot_critical_difference(ranks: xr.Dataset, metric: str, *, alpha: float = 0.05) -> Figure:
    """Draw the mean ranks on a line and join the methods that the Nemenyi test cannot tell apart (Demsar 2006).

    Args:
        ranks: from `ranking`.
        metric: one of its metrics.
        alpha: of the test.

    Raises:
        ValueError: ranks other than averages over datasets, ties averaged, which the test is about.
    """
    found = (ranks.attrs.get("order"), ranks.attrs.get("ties"))
    if found != ("rank_then_aggregate", "average"):
        raise ValueError(f"ranks are by order, ties {found}; wanted ('rank_then_aggregate', 'average')")
    means = ranks["mean_rank"].sel(metric=metric)
    means = means.isel({"method": np.argsort(means.values, kind="stable")})
    values, n = means.values, means.sizes["method"]
    width = critical_difference(n, ranks.sizes["dataset"], alpha=alpha)
    figure, axes = _canvas(f"mean rank by {metric}", "", height=1.5 + 0.3 * n)
    for row, (name, value) in enumerate(zip(means["method"].values, values, strict=True)):
        axes.plot([value, value], [0, -1 - row], color="0.6", linewidth=1)
        label = f"{name} ({value:.2f})"
        axes.annotate(
            label, (value, -1 - row), xytext=(4, 0), textcoords="offset points", va="center", backgroundcolor="w"
        )
    groups = [(value, values[values <= value + width].max()) for value in values]
    kept = [g for g in groups if g[1] > g[0] and not any(o[0] < g[0] and o[1] >= g[1] for o in groups)]
    for k, (low, high) in enumerate(kept):
        axes.plot([low, high], [0.4 + 0.3 * k] * 2, color="k", linewidth=3)
    axes.set_title(f"critical difference {width:.2f}")
    axes.set_xlim(0.5, n + 1.5)
    axes.margins(y=0.1)
    axes.set_yticks([])
    return figure


def plot_significance(comparison: xr.Dataset, metric: str, *, alpha: float = 0.05, scale: float | int = 100) -> Figure:
    """Draw a grid of pairs: the difference (row minus column), framed where Holm's p is at most `alpha`.

    Args:
        comparison: from `compare` without baseline.
        metric: one of its metrics.
        alpha: limit of the adjusted p-value.
        scale: of the differences; those of counts of errors (lower is better) are not scaled.
    """
    pairs = comparison.sel(metric=metric)
    size = 1 if bool(pairs["lower_is_better"]) else scale
    first, second = (pairs[name].values.tolist() for name in ("first", "second"))
    names = list(dict.fromkeys([*first, *second]))
    grid = np.full((len(names), len(names)), np.nan)
    figure, axes = _canvas("", "", height=1.5 + 0.6 * len(names))
    figure.set_figwidth(3 + 0.6 * len(names))
    for k, (a, b) in enumerate(zip(first, second, strict=True)):
        row, column, value = names.index(a), names.index(b), size * pairs["difference"].values[k]
        grid[row, column], grid[column, row] = value, -value
        if pairs["p_holm"].values[k] <= alpha:
            for corner in ((column - 0.45, row - 0.45), (row - 0.45, column - 0.45)):
                axes.add_patch(Rectangle(corner, 0.9, 0.9, fill=False, linewidth=2))
    reach = max(float(np.nanmax(np.abs(grid))), 1e-9)
    for (row, column), value in np.ndenumerate(grid):
        if row != column and not np.isnan(value):
            ink = "w" if abs(value) > 0.6 * reach else "k"
            axes.text(column, row, f"{value:+.1f}", ha="center", va="center", color=ink)
    image = axes.imshow(grid, cmap="RdBu", vmin=-reach, vmax=reach)
    figure.colorbar(image, ax=axes, label=f"{metric}, row minus column")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    return figure


def _canvas(x: str, y: str, *, height: float = 4.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.5, height), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes
