"""Curves of a training and of a score as PNG: loss and learning rate over steps, FROC with its bootstrap band."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from girih.atomic import write_bytes
from girih.report.files import FrocCurve, read_curves
from girih.report.lettering import drawable

OPERATING_POINTS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
"""False positives per image at which FROC is averaged (Setio et al. 2017, LUNA16, section 3.3)."""
ARM_COLOURS = ("#0072B2", "#CC79A7", "#000000", "#56B4E9", "#999999")
"""Okabe and Ito's palette without the colours that mark boxes."""
ARM_MARKERS = ("o", "s", "^", "D", "v")
ARM_LINES = ("-", "--", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)))
"""With the markers: the arms stay apart in grey print."""
MOVING_AVERAGE = 25
"""The moving average spans one part in 25 of the run."""
DPI = 180
FONT_SIZE = 11.0
WIDTH_INCH, HEIGHT_INCH = 5.6, 3.5


def progress_png(metrics_jsonl: Path, png: Path, validation_jsonl: Path | None = None) -> None:
    """Draw a run's loss, its moving average and the learning rate over the steps into `png`, whole or not at all.

    With validations, if the file is there and has any, their AP is drawn between the two.

    Raises:
        ValueError: a file cannot be read; file and line are named.
    """
    curves = read_curves(metrics_jsonl)
    scored = validation_jsonl is not None and validation_jsonl.is_file() and validation_jsonl.stat().st_size > 0
    heights = (2, 1, 1) if scored else (2, 1)
    figure = Figure(figsize=(WIDTH_INCH, (2.3 if scored else 1.7) * HEIGHT_INCH), layout="constrained")
    loss, *middle, rate = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    _draw_loss(loss, curves, 0)
    loss.set_ylabel("loss", fontsize=FONT_SIZE)
    _tidy(loss)
    if validation_jsonl is not None and middle:
        found = read_curves(validation_jsonl, ("step", "ap"))
        middle[0].plot(found["step"], found["ap"], color=ARM_COLOURS[0], marker=ARM_MARKERS[0], markersize=4)
        middle[0].set_ylim(-0.03, 1.03)
        middle[0].set_ylabel("validation AP", fontsize=FONT_SIZE)
        _tidy(middle[0])
    rate.plot(curves["step"], curves["lr"], color=ARM_COLOURS[2], linewidth=1.2)
    rate.set(xlabel="optimiser step", ylabel="learning rate", ylim=(0, None))
    rate.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _tidy(rate)
    write_bytes(png, png_bytes(figure))


def loss_png(runs: Mapping[str, Path]) -> bytes:
    """Draw the losses of runs (name -> metrics.jsonl) into one plot: thin as logged, thick as moving average.

    Raises:
        ValueError: a metrics.jsonl cannot be read; file and line are named.
    """
    figure = Figure(figsize=(WIDTH_INCH, HEIGHT_INCH), layout="constrained")
    axes = figure.subplots()
    named = {name: _draw_loss(axes, read_curves(path), number) for number, (name, path) in enumerate(runs.items())}
    axes.set_xlabel("optimiser step", fontsize=FONT_SIZE)
    axes.set_ylabel("loss", fontsize=FONT_SIZE)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _tidy(axes)
    if len(runs) > 1:
        _legend(axes, named)
    return png_bytes(figure)


def froc_png(curves: Mapping[str, FrocCurve]) -> bytes:
    """Draw FROC curves (name -> curve) on a log2 axis: bootstrap band, the seven operating points as markers.

    Beyond its last point a curve is flat and drawn dotted.
    """
    figure = Figure(figsize=(WIDTH_INCH, 1.1 * HEIGHT_INCH), layout="constrained")
    axes = figure.subplots()
    named: dict[str, Line2D] = {}
    fppi = np.geomspace(OPERATING_POINTS[0], OPERATING_POINTS[-1], 241)
    for number, (name, curve) in enumerate(curves.items()):
        if not len(curve.fppi):
            continue
        colour, line, marker = _arm_style(number)
        sensitivity = at_fppi(curve, fppi)
        measured = fppi <= curve.fppi.max()
        low, high = (np.interp(fppi, curve.fppi, end) for end in (curve.low, curve.high))
        axes.fill_between(fppi, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(fppi, sensitivity, color=colour, linewidth=1, linestyle=":")
        axes.plot(fppi[measured], sensitivity[measured], color=colour, linewidth=1.8, linestyle=line)
        points = np.array(OPERATING_POINTS)
        axes.plot(points, at_fppi(curve, points), color=colour, marker=marker, markersize=6, linestyle="none")
        named[name] = Line2D([], [], color=colour, marker=marker, markersize=6, linestyle=line)
    axes.set_xscale("log", base=2)
    axes.set_xticks(OPERATING_POINTS)
    axes.xaxis.set_major_formatter(FuncFormatter(_eighths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("false positives per image", fontsize=FONT_SIZE)
    axes.set_ylabel("sensitivity", fontsize=FONT_SIZE)
    axes.set_ylim(-0.03, 1.03)
    _tidy(axes)
    _legend(axes, named)
    return png_bytes(figure)


def at_fppi(curve: FrocCurve, fppi: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Return the sensitivity at numbers of false positives per image: linear between points, flat beyond the ends."""
    if not len(curve.fppi):
        return np.full(len(fppi), np.nan)
    return np.asarray(np.interp(fppi, curve.fppi, curve.sensitivity), dtype=np.float64)


def png_bytes(figure: Figure, dpi: int = DPI) -> bytes:
    """Render a figure without any global state of matplotlib."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def moving_average(values: Float64[np.ndarray, " n"], width: int) -> Float64[np.ndarray, " n"]:
    """Return the mean of up to `width` values around each one; the window shrinks at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    half = min(width, len(values)) // 2
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return np.asarray((total[high] - total[low]) / (high - low), dtype=np.float64)


def _draw_loss(axes: Axes, curves: Mapping[str, np.ndarray], number: int) -> Line2D:
    """Draw a loss as logged and as moving average; return the line of the average."""
    colour, line, _ = _arm_style(number)
    step, loss = curves["step"], curves["loss"]
    smooth = moving_average(loss, max(1, len(loss) // MOVING_AVERAGE))
    axes.plot(step, loss, color=colour, linewidth=0.6, alpha=0.35)
    if len(step) == 1:
        axes.plot(step, loss, color=colour, marker="o")
    return axes.plot(step, smooth, color=colour, linewidth=1.8, linestyle=line)[0]


def _arm_style(number: int) -> tuple[str, Any, str]:
    n = number % len(ARM_COLOURS)
    return ARM_COLOURS[n], ARM_LINES[n], ARM_MARKERS[n]


def _legend(axes: Axes, lines: Mapping[str, Line2D]) -> None:
    """Name the lines as they are: matplotlib's own labels hide "_x" and typeset "$x$"."""
    if lines:
        legend = axes.legend(list(lines.values()), ["" for _ in lines], frameon=False, fontsize=FONT_SIZE)
        for text, name in zip(legend.get_texts(), lines, strict=True):
            text.set_parse_math(False)
            text.set_text(drawable(name))


def _tidy(axes: Axes) -> None:
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=FONT_SIZE - 1)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _eighths(value: float, _: Any) -> str:
    return f"{value:g}" if value >= 1 else f"1/{1 / value:g}"
