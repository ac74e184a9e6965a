"""Whole-volume inference: tiles, mirrors, merging, and the way back to the source scan."""

from .merging import Candidates, Merging, merge
from .restore import restore
from .sweep import GRID, RawCase, SweepResult, SweepRow, sweep
from .tile_boxes import MIRRORINGS, unmirror
from .tiling import centre_weight, tile_grid, tile_starts
from .volume import collect, detect_volume

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
    "restore",
    "sweep",
    "tile_grid",
    "tile_starts",
    "unmirror",
]
