"""Whole-volume inference: tiles, mirrors, merging, and the way back to the source scan."""

from .merging import Candidates, Merging, merge
from .restore import restore
from .tiling import centre_weight, read_tile, tile_grid, tile_starts
from .volume import detect_volume, unmirror

__all__ = [
    "Candidates",
    "Merging",
    "centre_weight",
    "detect_volume",
    "merge",
    "read_tile",
    "restore",
    "tile_grid",
    "tile_starts",
    "unmirror",
]
