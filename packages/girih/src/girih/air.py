"""Where a scan is air: tiles of nothing else need not be looked at."""

from typing import Any

import numpy as np
from jaxtyping import Bool

CORNER = 32
"""Edge in voxels of the corner of a scan that says whether air is one number there; a chunk of a prepared dataset."""


def not_air(image: Any) -> "NotAir | None":
    """Return where an image (c, z, y, x) is not air; None if air is not one number in its corner, but noise.

    Where a window of intensities, a mask or a scanner has made air or padding one number, whole tiles hold nothing
    else, and nothing can be found in them.
    """
    mask = NotAir(image)
    z, y, x = (slice(0, min(CORNER, side)) for side in mask.shape)
    return None if mask[z, y, x].any() else mask


class NotAir:
    """The voxels (z, y, x) of an image that differ from its first one, in any channel."""

    def __init__(self, image: Any) -> None:
        self._image = image
        self._channels, *shape = image.shape
        self.shape = tuple(shape)
        self._air = image[0 : self._channels, 0:1, 0:1, 0:1]

    def __getitem__(self, window: tuple[slice, slice, slice]) -> Bool[np.ndarray, "z y x"]:
        """Return the voxels of three in-bounds slices."""
        found: np.ndarray = (self._image[(slice(0, self._channels), *window)] != self._air).any(axis=0)
        return found
