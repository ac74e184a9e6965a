"""Figures hold what the numbers say."""

from dataclasses import replace

import numpy as np
import pytest

from girih_metrics import compare, preset, ranking, score_methods
from girih_metrics.plots import (
    plot_critical_difference,
    plot_froc,
    plot_precision_recall,
    plot_ranks,
    plot_significance,
)


@pytest.fixture
def methods(case_a):
    def keep(low):
        kept = []
        for case in case_a:
            rows = np.flatnonzero(case["pred_scores"] > low)
            kept.append(case | {key: case[key][rows] for key in ("pred_boxes", "pred_scores", "pred_labels")})
        return preset("paper").match(kept, classes=["a"])

    return {"all": keep(0), "some": keep(0.65), "few": keep(0.92)}


def test_froc_with_band(methods, tmp_path):
    figure = plot_froc(methods, draws=20)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["all", "some", "few"]
    x, y = axes.lines[0].get_data()
    assert y[-1] == pytest.approx(2 / 3)
    assert (x[0], x[-1]) == pytest.approx((0.125, 8))
    assert len(axes.collections) == 3
    assert not plot_froc(methods, draws=0).axes[0].collections
    figure.savefig(tmp_path / "froc.png")


def test_precision_recall(methods, tmp_path):
    figure = plot_precision_recall(methods, label=0)
    x, y = figure.axes[0].lines[0].get_data()
    assert x.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 2 / 3])
    assert y.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 4, 2 / 5])
    figure.savefig(tmp_path / "pr.png")


def test_ranks_and_gains(methods, tmp_path):
    scores = score_methods({name: {"x": m, "y": m} for name, m in methods.items()}, draws=30)
    ranks = ranking(scores)
    families = {"all": "big", "some": "big", "few": "small"}
    figure = plot_ranks(scores, ranks, families=families, baselines={"big": "some", "small": "few"})
    assert len(figure.axes) == 4
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["all", "some", "few"]
    gain = 100 * (scores["score"].sel({"metric": "mAP@0.1", "method": "all", "dataset": "x"}).item() - 17 / 101)
    assert figure.axes[2].patches[0].get_width() == pytest.approx(gain)
    figure.savefig(tmp_path / "ranks.png")
    assert len(plot_ranks(scores, ranks).axes) == 2
    for broken in ({"families": {"all": "x"}}, {"baselines": {"": "none"}}):
        with pytest.raises(ValueError, match="wanted"):
            plot_ranks(scores, ranks, **broken)
    with pytest.raises(ValueError, match="no draws"):
        plot_ranks(scores, ranking(scores.drop_vars("draws")))
    plot_critical_difference(ranks, "mAP@0.1").savefig(tmp_path / "cd.png")


def test_significance_map(methods, tmp_path):
    comparison = compare(methods, draws=5, permutations=20)
    figure = plot_significance(comparison, "mAP@0.1", alpha=1.0)
    grid = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(grid[0, 1], 100 * comparison["difference"].sel(metric="mAP@0.1")[0])
    assert grid[1, 0] == -grid[0, 1]
    assert len(figure.axes[0].patches) == 6
    figure.savefig(tmp_path / "map.png")


def test_the_critical_difference_is_of_average_ranks(methods):
    scores = score_methods({name: {"x": m, "y": m} for name, m in methods.items()}, draws=0)
    for rules in ({"order": "aggregate_then_rank"}, {"ties": "min"}):
        with pytest.raises(ValueError, match=r"wanted \('rank_then_aggregate', 'average'\)"):
            plot_critical_difference(ranking(scores, **rules), "mAP@0.1")


def test_counts_of_errors_are_not_scaled(methods):
    counts = replace(preset("paper"), lower_is_better=frozenset({"mAP@0.1"}))
    comparison = compare({name: methods[name] for name in ("all", "few")}, protocol=counts, draws=0, permutations=5)
    for metric, size in (("mAP@0.1", 1), ("FROC@0.1", 100)):
        grid = plot_significance(comparison, metric).axes[0].images[0].get_array()
        assert grid[0, 1] == pytest.approx(size * comparison["difference"].sel(metric=metric).item())
    scores = score_methods({name: {"x": m} for name, m in methods.items()}, protocol=counts, draws=3)
    figure = plot_ranks(scores, ranking(scores), baselines={"": "few"})
    gain = scores["score"].sel({"metric": "mAP@0.1", "dataset": "x"})
    gain = gain.sel({"method": "all"}).item() - gain.sel({"method": "few"}).item()
    assert figure.axes[2].patches[0].get_width() == pytest.approx(gain)
