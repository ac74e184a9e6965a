"""Whole-volume inference: tiles, mirrors, merging, and the way back to the source scan."""

from .merging import Candidates, Merging, merge
from .restore import restore
from .tiling import centre_weight, read_tile, tile_grid, tile_starts
from .volume import MIRRORINGS, collect, detect_volume, unmirror

__all__ = [
    "MIRRORINGS",
    "Candidates",
    "Merging",
    "centre_weight",
    "collect",
    "detect_volume",
    "merge",
    "read_tile",
    "restore",
    "tile_grid",
    "tile_starts",
    "unmirror",
]
