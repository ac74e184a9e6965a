"""Ranks: by hand, against scipy, and the published tables."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from girih_metrics import critical_difference, mean_rank, preset, rank, rank_table, ranking, save, score_methods

PUBLISHED = json.loads((Path(__file__).parent / "data" / "published_tables.json").read_text())


def scores_of(values, methods, metrics=("mAP@0.1",), datasets=None):
    data = np.asarray(values, dtype=float)
    return xr.Dataset(
        {
            "score": (("metric", "method", "dataset"), data),
            "lower_is_better": ("metric", np.zeros(len(metrics), dtype=int)),
        },
        coords={
            "metric": list(metrics),
            "method": list(methods),
            "dataset": datasets or [f"D{k + 1:02}" for k in range(data.shape[2])],
        },
    )


def table3():
    rows = PUBLISHED["table3"]
    values = [[row[metric] for row in rows] for metric in ("mAP@0.1", "FROC@0.1")]
    return scores_of(values, [f"{row['family']} {row['method']}" for row in rows], ("mAP@0.1", "FROC@0.1")), rows


def test_mean_ranks_of_table_2():
    for family in dict.fromkeys(row["family"] for row in PUBLISHED["table2"]):
        rows = [row for row in PUBLISHED["table2"] if row["family"] == family]
        values = [[[np.nan if v is None else v for v in row["mAP@0.1"]] for row in rows]]
        scores = scores_of(values, [row["method"] for row in rows])
        assert ranking(scores)["mean_rank"].values[0].tolist() == [row["mean rank"] for row in rows]
        for row in rows:
            assert row["mean"] is None or np.mean(row["mAP@0.1"]) == pytest.approx(row["mean"], abs=0.0051)


def test_mean_columns_of_table_3():
    scores, rows = table3()
    for metric, column in (("mAP@0.1", "mAP mean"), ("FROC@0.1", "FROC mean")):
        means = scores["score"].sel(metric=metric).mean("dataset").values
        assert means == pytest.approx([row[column] for row in rows], abs=0.0051)


def test_table_3_mean_ranks_are_not_the_mean_of_ranks():
    """No tie rule gives the printed ones: 20 ranks must sum to 210, the printed sum to 189.1 and 166.1."""
    scores, rows = table3()
    for ties in ("average", "min", "max", "dense"):
        ours = ranking(scores, ties=ties)["mean_rank"]
        for metric, column in (("mAP@0.1", "mAP mean rank"), ("FROC@0.1", "FROC mean rank")):
            assert np.abs(ours.sel(metric=metric).values - [row[column] for row in rows]).max() > 1
    assert ranking(scores)["mean_rank"].sum("method").values == pytest.approx([210, 210])
    assert sum(row["mAP mean rank"] for row in rows) == pytest.approx(189.1, abs=0.1)
    assert sum(row["FROC mean rank"] for row in rows) == pytest.approx(166.1, abs=0.1)


def test_agreement_of_the_datasets_in_table_3():
    scores, _ = table3()
    result = ranking(scores)
    assert result["kendall_w"].values == pytest.approx([0.28, 0.35], abs=0.005)
    assert result["friedman_p"].values == pytest.approx([0.0016, 6e-5], rel=0.1)
    for metric in scores["metric"].values:
        columns = scores["score"].sel(metric=metric).values
        assert result["friedman_p"].sel(metric=metric).item() == pytest.approx(stats.friedmanchisquare(*columns).pvalue)
    assert critical_difference(20, 8) == pytest.approx(10.5, abs=0.05)
    assert critical_difference(2, 10) == pytest.approx(1.960 * np.sqrt(2 * 3 / 60), abs=1e-3)  # Demsar 2006, Table 5
    with pytest.raises(ValueError, match="wanted at least 2"):
        critical_difference(1, 8)


def test_tie_rules_and_missing_scores():
    column = xr.DataArray([0.5, 0.7, 0.5, np.nan, np.nan], dims="method")
    for ties, wanted in (
        ("average", [2.5, 1, 2.5, 4.5, 4.5]),
        ("min", [2, 1, 2, 4, 4]),
        ("max", [3, 1, 3, 5, 5]),
        ("dense", [2, 1, 2, 3, 3]),
    ):
        assert rank(column, ties=ties).values.tolist() == wanted
    assert rank(column, lower_is_better=True).values.tolist() == [1.5, 3, 1.5, 4.5, 4.5]


def test_the_two_orders_differ():
    """a is best twice by a little, b once by far."""
    scores = scores_of([[[0.51, 0.51, 0.0], [0.5, 0.5, 0.9]]], ["a", "b"])["score"]
    assert mean_rank(scores).values[0].tolist() == [4 / 3, 5 / 3]
    assert mean_rank(scores, order="aggregate_then_rank").values[0].tolist() == [2, 1]


@pytest.mark.usefixtures("plain_types")
def test_unknown_order():
    with pytest.raises(ValueError, match="order is 'median'"):
        mean_rank(table3()[0]["score"], order="median")


def methods_of(case_a):
    def keep(low):
        kept = []
        for case in case_a:
            rows = np.flatnonzero(case["pred_scores"] > low)
            kept.append(case | {key: case[key][rows] for key in ("pred_boxes", "pred_scores", "pred_labels")})
        return preset("paper").match(kept, classes=["a"])

    return {
        "all": {"x": keep(0), "y": keep(0)},
        "some": {"x": keep(0.65), "y": keep(0.65)},
        "gone": {"y": keep(0.99)},
    }


def test_scores_and_ranks_of_methods(case_a):
    scores = score_methods(methods_of(case_a), draws=300)
    assert scores["draws"].dims == ("metric", "method", "dataset", "draw")
    assert np.isnan(scores["score"].sel({"method": "gone", "dataset": "x"})).all()
    x, y = (scores["draws"].sel({"method": "all", "dataset": name}).values for name in "xy")
    assert not np.array_equal(x, y, equal_nan=True)  # datasets draw on their own, methods together
    result = ranking(scores)
    assert result["mean_rank"].sel(metric="mAP@0.1").values.tolist() == [1, 2, 3]
    assert result["p_best"].sum("method").values == pytest.approx([1, 1])
    assert result["p_best"].sel({"method": "all"}).values == pytest.approx([1, 1], abs=0.2)
    assert result["draw_rank"].sum("method").values == pytest.approx(6)
    assert result["kendall_tau"].max() == pytest.approx(1)
    assert result["bootstrap_mean_rank"].dims == ("metric", "method")
    assert "draws" not in score_methods(methods_of(case_a), draws=0)
    with pytest.raises(ValueError, match="no matches"):
        score_methods({})
    broken = methods_of(case_a)
    broken["some"]["y"] = preset("paper").match(case_a[:2], classes=["a"])
    with pytest.raises(ValueError, match="dataset 'y': case '3' is scored for 'all' but not for 'some'"):
        score_methods(broken)


def test_results_save_and_load(case_a, tmp_path):
    scores = score_methods(methods_of(case_a), draws=5)
    for result, name in ((scores, "scores"), (ranking(scores), "ranking")):
        save(result, tmp_path / f"{name}.nc")
        with xr.open_dataset(tmp_path / f"{name}.nc", engine="scipy") as loaded:
            xr.testing.assert_equal(loaded.load(), result)
            assert loaded.attrs == result.attrs
    save(scores, tmp_path / "scores.csv")
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert lines[0] == "variable,metric,method,dataset,draw,value"
    assert lines[1].startswith("score,mAP@0.1,all,x,,0.299")
    assert len(lines) == 1 + 2 * 3 * 2 + 2 * 3 * 2 * 5 + 2
    with pytest.raises(ValueError, match=r"suffix is '\.xlsx'"):
        save(scores, tmp_path / "scores.xlsx")


def test_table_layout():
    scores, rows = table3()
    families = {f"{row['family']} {row['method']}": row["family"] for row in rows}
    lines = rank_table(scores, families=families, scale=1).splitlines()
    assert len(lines) == 22
    assert lines[0].startswith("| family | method | mAP@0.1 D01 |")
    mae = next(line for line in lines if "ResEnc-DefDETR MAE" in line)
    assert "<u>**71.56**</u>" in mae  # best of D07, hence best of its family
    assert "**81.82**" not in mae
    missing = scores_of([[[0.5, np.nan], [0.25, 0.5]]], ["a", "b"])
    assert rank_table(missing).splitlines()[2] == ("| a | <u>**50.00**</u> | - | - | <u>**1.50**</u> |")
    counts = missing.assign(lower_is_better=("metric", [1]))  # false positives per image: no percentages
    assert rank_table(counts).splitlines()[2].startswith("| a | 0.50 |")
    with pytest.raises(ValueError, match=r"families lack \['b'\]"):
        rank_table(missing, families={"a": "x"})


def test_results_save_as_zarr(case_a, tmp_path):
    scores = score_methods(methods_of(case_a), draws=3)
    save(scores, tmp_path / "scores.zarr")
    with xr.open_zarr(tmp_path / "scores.zarr") as loaded:
        xr.testing.assert_equal(loaded.load(), scores)
