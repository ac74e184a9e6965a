"""Results as text and files."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr

from girih_metrics.ranking import Order, Ties, mean_rank


def rank_table(
    scores: xr.Dataset,
    *,
    families: Mapping[str, str] | None = None,
    order: Order = "rank_then_aggregate",
    ties: Ties = "average",
    scale: float | int = 100,
) -> str:
    """Return a Markdown table of all scores, their mean over datasets and the mean rank, as the study's Table 3.

    The best of a column is underlined, the best of each family bold; missing scores are a dash.

    Args:
        scores: from `score_methods`.
        families: {method: family}, say the architecture; families come together in the order of their first method.
            None: one family.
        order: how datasets are combined for the mean rank, see `mean_rank`.
        ties: see `rank`.
        scale: of the scores; counts of errors (lower is better) are not scaled.

    Raises:
        ValueError: a method without a family.
    """
    methods = [str(name) for name in scores["method"].values]
    family = dict.fromkeys(methods, "") if families is None else dict(families)
    if set(methods) - set(family):
        raise ValueError(f"families lack {sorted(set(methods) - set(family))}; wanted one for each method")
    names = list(dict.fromkeys(family[name] for name in methods))
    methods.sort(key=lambda name: names.index(family[name]))
    headers, columns = [], []
    for metric in scores["metric"].values:
        part = scores.sel(metric=metric)
        lower = bool(part["lower_is_better"])
        values = part["score"].sel({"method": methods}) * (1 if lower else scale)
        for dataset in scores["dataset"].values:
            headers.append(f"{metric} {dataset}")
            columns.append(_column(values.sel(dataset=dataset).values, methods, family, lower))
        headers += [f"{metric} mean", f"{metric} mean rank"]
        columns.append(_column(values.mean("dataset", skipna=False).values, methods, family, lower))
        ranks = mean_rank(part["score"], order=order, ties=ties, lower_is_better=lower).sel({"method": methods})
        columns.append(_column(ranks.values, methods, family, lower=True))
    lead = (["family"] if families is not None else []) + ["method"]
    lines = [[*lead, *headers], ["---"] * len(lead) + ["---:"] * len(headers)]
    for row, name in enumerate(methods):
        lines.append([*([family[name]] if families is not None else []), name, *(column[row] for column in columns)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def save(result: xr.Dataset, path: Path | str) -> None:
    """Write a result: .nc (NetCDF), .zarr (needs zarr), or .csv, a row per number with the name of its variable.

    Raises:
        ValueError: another suffix.
    """
    target = Path(path)
    check_suffix(target)
    if target.suffix == ".nc":
        result.to_netcdf(target, engine="scipy")
    elif target.suffix == ".zarr":
        result.to_zarr(target, mode="w", zarr_format=2)  # version 3 has no stable strings yet
    else:
        target.write_text(long_csv(result), encoding="utf-8")


def check_suffix(path: Path) -> None:
    """Check that `save` knows the suffix of a path.

    Raises:
        ValueError: another suffix than .nc, .zarr or .csv.
    """
    if path.suffix not in (".nc", ".zarr", ".csv"):
        raise ValueError(f"{path}: suffix is {path.suffix!r}; wanted .nc, .zarr or .csv")


def long_csv(result: xr.Dataset) -> str:
    """Return comma-separated text: variable, a column per dimension and per label along one, value."""
    dims = [str(dim) for dim in result.sizes]
    labels_of = {str(name): str(c.dims[0]) for name, c in result.coords.items() if c.ndim == 1 and name not in dims}
    lines = [",".join(["variable", *dims, *labels_of, "value"])]
    for name, values in result.data_vars.items():
        for index in np.ndindex(values.shape):
            at = dict(zip((str(dim) for dim in values.dims), index, strict=True))
            labels = [_label(result, dim, at[dim]) if dim in at else "" for dim in dims]
            labels += [str(result[key].values[at[dim]]) if dim in at else "" for key, dim in labels_of.items()]
            lines.append(",".join(_quoted(text) for text in [str(name), *labels, str(values.values[index])]))
    return "\n".join(lines) + "\n"


def _label(result: xr.Dataset, dim: str, index: int) -> str:
    return str(result[dim].values[index]) if dim in result.coords else str(index)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\n') else text


def _column(values: np.ndarray, methods: list[str], family: Mapping[str, str], lower: bool) -> list[str]:
    good = np.where(np.isnan(values), -np.inf, -values if lower else values)
    cells = []
    for row, name in enumerate(methods):
        if np.isnan(values[row]):
            cells.append("-")
            continue
        rivals = [k for k, other in enumerate(methods) if family[other] == family[name]]
        text = f"{values[row]:.2f}"
        text = f"**{text}**" if good[row] == good[rivals].max() else text
        cells.append(f"<u>{text}</u>" if good[row] == good.max() else text)
    return cells
