"""Volumes of which only what is sliced is read: as a plain array, and inside xarray."""

from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped
from xarray.backends import BackendArray
from xarray.core import indexing

from girih_data3d.resampling import Number
from girih_data3d.window import Reader


class LazyVolume:
    """An array (C, Z, Y, X) of float32 from which four slices can be read; nothing is kept in memory."""

    def __init__(self, reader: Reader, scale: Number, offset: Number) -> None:
        self._reader, self._scale, self._offset = reader, scale, offset
        c, z, y, x = reader.shape
        self.shape = (c, z, y, x)
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, window: Any) -> Float32[np.ndarray, "c z y x"]:
        """Return the intensities of a window inside the volume; slices have no step.

        Raises:
            IndexError: not four slices, a step, or an empty window.
        """
        if not isinstance(window, tuple) or len(window) != 4 or not all(isinstance(s, slice) for s in window):
            raise IndexError(f"wanted four slices (c, z, y, x), found {window!r}")
        spans = [range(*s.indices(n)) for s, n in zip(window, self.shape, strict=True)]
        if any(s.step != 1 or len(s) == 0 for s in spans):
            raise IndexError(f"wanted four slices without a step that are not empty in {self.shape}, found {window!r}")
        out = np.empty([len(s) for s in spans], np.float32)
        self._reader.read_into(out, tuple(s.start for s in spans), scale=self._scale, offset=self._offset)
        return out


def lazy_array(volume: LazyVolume) -> indexing.LazilyIndexedArray:
    """Return a volume as data of an xarray object, which reads what is indexed when its values are asked for."""
    return indexing.LazilyIndexedArray(_Backend(volume))


class _Backend(BackendArray):
    """What xarray asks an array for: any index is reduced to slices and numbers."""

    def __init__(self, volume: LazyVolume) -> None:
        self.volume, self.shape, self.dtype = volume, volume.shape, volume.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> Shaped[np.ndarray, "..."]:
        """Read the smallest window that holds what numbers and slices (of any step) ask for, and pick."""
        lines = [range(n)[k if isinstance(k, slice) else slice(k, k + 1)] for k, n in zip(key, self.shape, strict=True)]
        if not all(lines):
            return np.empty([len(line) for line in lines], np.float32)[tuple(_pick(k) for k in key)]
        window = tuple(slice(min(line[0], line[-1]), max(line[0], line[-1]) + 1) for line in lines)
        return self.volume[window][tuple(_pick(k) for k in key)]


def _pick(key: Any) -> int | slice:
    return slice(None, None, key.step) if isinstance(key, slice) else 0
