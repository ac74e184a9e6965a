"""Intervals against scipy's, and thresholds that are what they say."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from girih_metrics import bca_interval, bootstrap, iou_range, leave_one_out, match, percentile_interval


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_intervals_equal_scipys(method):
    data = np.random.default_rng(5).lognormal(size=23)
    result = stats.bootstrap((data,), np.mean, method=method, n_resamples=499)
    draws = xr.DataArray(result.bootstrap_distribution, dims="draw")
    if method == "percentile":
        found = percentile_interval(draws)
    else:
        single = xr.DataArray([np.delete(data, k).mean() for k in range(len(data))], dims="left_out")
        found = bca_interval(draws, xr.DataArray(data.mean()), single)
    wanted = result.confidence_interval
    np.testing.assert_allclose(found.values, [wanted.low, wanted.high], rtol=1e-12)


def test_bca_exists_where_all_draws_agree_or_fall_on_one_side():
    draws = xr.DataArray(np.stack([np.ones(50), np.linspace(0, 1, 50)], axis=1), dims=("draw", "k"))
    point = xr.DataArray([1.0, 2.0], dims="k")
    left_out = xr.DataArray(np.ones((4, 2)), dims=("left_out", "k"))
    found = bca_interval(draws, point, left_out)
    assert found.sel(k=0).values.tolist() == [1, 1]
    assert np.isfinite(found).all()
    assert bca_interval(draws, point, left_out * np.nan).equals(found)


def test_nan_draws_are_left_out():
    draws = xr.DataArray([np.nan, 0.0, 1.0, 2.0], dims="draw")
    assert percentile_interval(draws, level=0.5).values.tolist() == np.quantile([0, 1, 2], [0.25, 0.75]).tolist()


def test_bootstrap_with_bca(case_a):
    grouped = [case | {"group": "ab"[i // 2]} for i, case in enumerate(case_a)]
    result = bootstrap(match(grouped, classes=["a"]), draws=100, interval="bca")
    assert result.attrs["n_groups"] == 2
    assert np.isfinite(result["froc_interval"]).all()
    with pytest.raises(ValueError, match="1 group; wanted at least two"):
        leave_one_out(["p", "p"])
    assert leave_one_out(["p", "q", "p"]).tolist() == [[0, 1, 0], [1, 0, 1]]


def test_decimal_thresholds():
    assert iou_range(0.1, 0.5, 0.05) == (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
    assert np.linspace(0.1, 0.5, 9)[4] != 0.3
    assert iou_range(0.1, 0.1, 1) == (0.1,)
    for broken in ((0.5, 0.1, 0.1), (0.1, 0.5, 0.0)):
        with pytest.raises(ValueError, match="start <= stop"):
            iou_range(*broken)
