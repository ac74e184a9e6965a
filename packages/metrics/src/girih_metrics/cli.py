"""The command line: girih-metrics evaluate | compare | convert."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from girih_metrics.compare import check_same_cases, compare
from girih_metrics.formats import FORMATS, Loaded, common_classes, read_format, write_format
from girih_metrics.nndetection import nndetection_compat
from girih_metrics.operating import operating_point
from girih_metrics.protocols import PRESETS, evaluate_matches, preset
from girih_metrics.stratify import by_size
from girih_metrics.tables import check_suffix, save

PROTOCOLS = sorted(set(PRESETS) - {"ribfrac", "picai", "cada"})
"""Those whose rules need no masks: no file format here holds any."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, or 2 after one line about what is wrong with the input."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"girih-metrics: {error}\n")
    except ModuleNotFoundError as error:
        sys.stderr.write(f"girih-metrics: needs {error.name}, which is not installed\n")
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="girih-metrics", description="Scores for 3D object detection.")
    commands = parser.add_subparsers(required=True, metavar="evaluate | compare | convert")
    one = commands.add_parser("evaluate", help="score predictions against the truth, with intervals")
    one.add_argument("predictions", type=Path, help="file or folder, as the format has it")
    one.add_argument("truth", type=Path, help="file or folder, as the format has it")
    _add_common(one)
    one.add_argument("--min-score", type=float, help="also print sensitivity, precision, F1 from this score on")
    one.add_argument("--size-edges", type=float, nargs="+", help="also print the scores by object size")
    one.add_argument(
        "--size-false-positives",
        choices=("own_size", "all"),
        default="own_size",
        help="false positives belong to the bin of their own box, or (point marks) to every bin",
    )
    one.add_argument("--nndetection-compat", action="store_true", help="also print nnDetection's own raw numbers")
    one.add_argument("--plot", type=Path, help="write the FROC curve here (.png, .pdf, .svg; needs matplotlib)")
    one.set_defaults(run=_evaluate)
    many = commands.add_parser("compare", help="compare methods on the same cases: paired differences, p-values")
    many.add_argument("truth", type=Path, help="file or folder, as the format has it")
    many.add_argument("methods", nargs="+", metavar="NAME=PREDICTIONS", help="at least two")
    _add_common(many)
    many.add_argument("--baseline", help="compare every other method with this one; default: all pairs")
    many.add_argument("--permutations", type=int, default=1000, help="random exchanges for the p-value")
    many.set_defaults(run=_compare)
    other = commands.add_parser("convert", help="from one format to another")
    for name in ("predictions", "truth", "to_predictions", "to_truth"):
        other.add_argument(name, type=Path)
    other.add_argument("--from", dest="source", choices=sorted(FORMATS), required=True)
    other.add_argument("--to", dest="target", choices=sorted(FORMATS), required=True)
    _add_reading(other)
    other.set_defaults(run=_convert)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=sorted(FORMATS), default="girih", help="of the files; default: girih")
    _add_reading(parser)
    parser.add_argument("--protocol", choices=PROTOCOLS, default="paper", help="default: paper")
    parser.add_argument("--draws", type=int, default=1000, help="of the bootstrap; 0: no intervals")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", action="store_true", help="resample images instead of patients")
    parser.add_argument("--level", type=float, default=0.95, help="of the intervals")
    parser.add_argument("--interval", choices=("percentile", "bca"), default="percentile")
    parser.add_argument("--out", type=Path, help="write the result here: .nc, .zarr or .csv")


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--unit", choices=("voxel", "mm"), help="which boxes of girih files to read; default: voxel")
    parser.add_argument("--classes", help="names, as a,b: the classes of csv; those of labels 0, 1 ... elsewhere")


def _evaluate(options: argparse.Namespace) -> int:
    _check_outputs(options)
    loaded = _read(options, options.predictions)
    rules = preset(options.protocol).with_rules(unit=loaded.unit)
    matches = rules.match(loaded.cases, classes=loaded.classes)
    parts = {}
    if options.size_edges:
        parts = by_size(matches, options.size_edges, false_positives=options.size_false_positives)
    result = evaluate_matches(matches, protocol=rules, **_statistics(options))
    sys.stdout.write(_summary(result) + _score_lines(result))
    if options.nndetection_compat:
        raw = nndetection_compat(loaded.cases, classes=loaded.classes)
        sys.stdout.write("".join(f"  {key:<40} {value:.4f}\n" for key, value in raw.items()))
    if options.min_score is not None:
        point = operating_point(matches, min_score=options.min_score)
        for t, threshold in enumerate(matches.thresholds):
            shown = {name: float(point[name].values[t]) for name in ("sensitivity", "precision", "f_beta", "fppi")}
            line = ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
            sys.stdout.write(f"from score {options.min_score:g} on, at threshold {threshold:g}: {line}\n")
    for name, part in parts.items():
        scores = rules.score(part)
        line = ", ".join(f"{metric} {value:.4f}" for metric, value in scores.to_series().items())
        sys.stdout.write(f"size {name} {loaded.unit}, {int(part.gt_counted.sum())} objects: {line}\n")
    if options.plot:
        from girih_metrics.plots import plot_froc  # matplotlib is an extra

        first = matches.at(float(matches.thresholds[0]))
        figure = plot_froc(
            {options.predictions.stem: first},
            draws=options.draws,
            seed=options.seed,
            group=not options.images,
            level=options.level,
        )
        figure.savefig(options.plot, dpi=150)
    if options.out:
        save(result, options.out)
    return 0


def _compare(options: argparse.Namespace) -> int:
    _check_outputs(options)
    paths: dict[str, str] = {}
    for text in options.methods:
        name, separator, path = text.partition("=")
        if not separator or not name or not path or name in paths:
            raise ValueError(f"method is {text!r}; wanted NAME=PREDICTIONS, every name once")
        paths[name] = path
    loaded = {name: _read(options, path) for name, path in paths.items()}
    if len({found.classes for found in loaded.values()}) > 1:
        options.classes = common_classes(options.format, list(loaded.values()))
        loaded = {name: _read(options, path) for name, path in paths.items()}
    rules = preset(options.protocol).with_rules(unit=next(iter(loaded.values())).unit)
    methods = {name: rules.match(found.cases, classes=found.classes) for name, found in loaded.items()}
    check_same_cases(methods)
    scored = {name: evaluate_matches(m, protocol=rules, **_statistics(options)) for name, m in methods.items()}
    differences = compare(
        methods,
        protocol=rules,
        baseline=options.baseline,
        permutations=options.permutations,
        **_statistics(options),
    )
    sys.stdout.write(_summary(next(iter(scored.values()))))
    for name, result in scored.items():
        sys.stdout.write(f"{name}\n{_score_lines(result)}")
    for pair in range(differences.sizes["pair"]):
        row = differences.isel(pair=pair)
        sys.stdout.write(f"{row['first'].item()} - {row['second'].item()}\n")
        for metric in row["metric"].values:
            at = row.sel(metric=metric)
            line = f"  {metric:<24} {at['difference'].item():+.4f}"
            if "interval" in at:
                low, high = at["interval"].values
                line += f"  [{low:+.4f}, {high:+.4f}]"
            sys.stdout.write(f"{line}  p {at['p'].item():.4f}  Holm {at['p_holm'].item():.4f}\n")
    if options.out:
        save(differences, options.out)
    return 0


def _convert(options: argparse.Namespace) -> int:
    loaded = read_format(
        options.source, options.predictions, options.truth, unit=options.unit, classes=_names(options.classes)
    )
    dropped = write_format(options.target, loaded, options.to_predictions, options.to_truth)
    sys.stdout.write(f"{len(loaded.cases)} cases, classes {', '.join(loaded.classes)}, boxes in {loaded.unit}\n")
    if dropped:
        sys.stdout.write(f"left out, as {options.target} does not hold them: {', '.join(dropped)}\n")
    return 0


def _read(options: argparse.Namespace, predictions: Path | str) -> Loaded:
    classes = _names(options.classes)
    return read_format(options.format, predictions, options.truth, unit=options.unit, classes=classes)


def _names(classes: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if classes is None:
        return None
    return tuple(name.strip() for name in classes.split(",")) if isinstance(classes, str) else tuple(classes)


def _check_outputs(options: argparse.Namespace) -> None:
    """Refuse names of files that cannot be written before anything is counted."""
    if options.out:
        check_suffix(options.out)
    plot = getattr(options, "plot", None)
    if plot and plot.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"{plot}: suffix is {plot.suffix!r}; wanted .png, .pdf or .svg")


def _statistics(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "draws": options.draws,
        "seed": options.seed,
        "group": not options.images,
        "level": options.level,
        "interval": options.interval,
    }


def _summary(result: xr.Dataset) -> str:
    about = result.attrs
    text = (
        f"protocol {about['protocol']}: {about['n_images']} images ({about['n_negative_images']} without objects), "
        f"{about['n_groups']} patients, {about['n_objects']} objects\n"
    )
    return text + (f"without ground truth: {about['absent']}\n" if about["absent"] else "")


def _score_lines(result: xr.Dataset) -> str:
    lines = []
    for metric in result["metric"].values:
        line = f"  {metric:<24} {result['score'].sel(metric=metric).item():.4f}"
        if "interval" in result:
            low, high = result["interval"].sel(metric=metric).values
            line += f"  [{low:.4f}, {high:.4f}]"
        lines.append(line)
    return "\n".join(lines) + "\n"
