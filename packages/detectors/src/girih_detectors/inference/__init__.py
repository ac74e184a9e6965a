"""Whole-volume inference: tiles, mirrors, merging, and the way back to the source scan."""

from .merging import Candidates, Merging, merge
from .restore import restore
from .sweep import GRID, RawCase, SweepResult, SweepRow, sweep
from .tiling import centre_weight, read_tile, tile_grid, tile_starts
from .volume import MIRRORINGS, collect, detect_volume, unmirror

__all__ = [
    "GRID",
    "MIRRORINGS",
    "Candidates",
    "Merging",
    "RawCase",
    "SweepResult",
    "SweepRow",
    "centre_weight",
    "collect",
    "detect_volume",
    "merge",
    "read_tile",
    "restore",
    "sweep",
    "tile_grid",
    "tile_starts",
    "unmirror",
]
