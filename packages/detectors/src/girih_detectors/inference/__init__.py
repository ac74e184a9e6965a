"""Whole-volume inference: tiles, mirrors, merging, and the way back to the source scan."""

from .restore import restore
from .tiling import centre_weight, read_tile, tile_grid, tile_starts
from .volume import Merging, detect_volume, unmirror

__all__ = [
    "Merging",
    "centre_weight",
    "detect_volume",
    "read_tile",
    "restore",
    "tile_grid",
    "tile_starts",
    "unmirror",
]
