"""What a pre-training objective makes of a few patches, as one picture."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from matplotlib.figure import Figure

from girih.atomic import write_bytes
from girih.report.plots import FONT_SIZE, png_bytes
from girih.report.slices import ROBUST_PERCENTILES

PANEL_INCH = 2.0
DPI = 110


def reconstruction_png(pictures: Mapping[str, Float32[np.ndarray, "b c z y x"]], png: Path) -> None:
    """Draw the middle axial slices of patches into `png`, whole or not at all, one row per patch.

    A row has one panel for every entry of `pictures`, all in the grey values of the first one; of several channels
    the first is shown. What is not finite stays blank. The patient's front is up, unless the patch was mirrored.

    Args:
        pictures: heading of a column -> the patches in it.
        png: the file.
    """
    first, *_ = pictures.values()
    rows, columns = len(first), len(pictures)
    figure = Figure(figsize=(columns * PANEL_INCH, rows * PANEL_INCH + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
        shown = _middle(first[row])
        low, high = np.percentile(shown[np.isfinite(shown)], ROBUST_PERCENTILES) if np.isfinite(shown).any() else (0, 1)
        for axes, (name, patches) in zip(grid[row], pictures.items(), strict=True):
            axes.imshow(_middle(patches[row])[::-1, ::-1], cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            axes.set_axis_off()
            if row == 0:
                axes.set_title(name, fontsize=FONT_SIZE)
    write_bytes(png, png_bytes(figure, DPI))


def _middle(patch: Float32[np.ndarray, "c z y x"]) -> Float32[np.ndarray, "y x"]:
    slice_: np.ndarray = patch[0, patch.shape[1] // 2]
    return slice_
