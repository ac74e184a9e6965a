"""Cut one patch out of a case: plain, mirrored, or resampled once under a linear map."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int16, Int32, Shaped

from girih_data3d.case import Case
from girih_data3d.geometry import Triplet, first_voxel, is_flip, read_window, warp

Read = Callable[[Triplet, Triplet], Shaped[np.ndarray, "*channel z y x"]]


@dataclass(frozen=True)
class Cut:
    """Where a patch lies: its centre (voxel edges of the case), its size, the map from patch to case voxels."""

    matrix: Float64[np.ndarray, "3 3"]
    centre: Float64[np.ndarray, "3"]
    size: Triplet

    @property
    def start(self) -> Triplet:
        """First voxel of the unturned patch."""
        z, y, x = np.floor(self.centre - np.array(self.size) / 2 + 0.5).astype(int).tolist()
        return z, y, x

    def part(self, window: tuple[slice, slice, slice]) -> "Cut":
        """Return the cut of some of the patch's voxels."""
        low, high = np.array([s.start for s in window]), np.array([s.stop for s in window])
        z, y, x = (high - low).tolist()
        return Cut(self.matrix, self.centre + self.matrix @ ((low + high - self.size) / 2), (z, y, x))

    def holds(self, start: Triplet, extent: Triplet) -> Bool[np.ndarray, "z y x"]:
        """Return which voxels of a window of the case have their centre in the patch."""
        inverse = np.linalg.inv(self.matrix)
        centre: np.ndarray = inverse @ (np.array(start) + np.array(extent) / 2 - self.centre) + np.array(self.size) / 2
        return Cut(inverse, centre, extent).inside(self.size)

    def image(self, case: Case, order: int) -> Float32[np.ndarray, "c z y x"]:
        """Return the intensities; 0 outside the case."""
        if is_flip(self.matrix) or case.dtype.kind == "f":
            return self._read(case.read_patch, order)
        out = self._read(partial(case.read_patch, raw=True), order)  # half the bytes to turn
        out *= np.float32(case.scale)
        out += np.float32(case.offset)
        return out

    def semantic(self, case: Case) -> Int16[np.ndarray, "z y x"]:
        """Return the tissue labels, each from the nearest voxel; -1 outside the case."""
        return self._read(partial(case.read_label_patch, "semantic"), 0)

    def valid(self, case: Case) -> Bool[np.ndarray, "z y x"]:
        """Return which voxels show the patient, each from the nearest voxel; False outside the case."""
        return self._read(lambda *window: case.read_label_patch("valid", *window).view(np.uint8), 0) > 0

    def instance_layers(self, case: Case) -> list[Int32[np.ndarray, "z y x"]]:
        """Return the instance layers, each label from the nearest voxel."""
        return [*self._read(lambda start, extent: np.stack(case.read_instance_layers(start, extent)), 0)]

    def inside(self, shape: Triplet) -> Bool[np.ndarray, "z y x"]:
        """Return which voxels lie inside a case of this shape: those whose nearest voxel is one of the case's."""
        out = np.ones(self.size, bool)
        for row, first, n in zip(self.matrix, first_voxel(self.matrix, self.centre, self.size), shape, strict=True):
            z, y, x = (m * np.arange(k) if m else np.zeros(1) for m, k in zip(row, self.size, strict=True))
            lowest, highest = (first + sum(f(along) for along in (z, y, x)) for f in (np.min, np.max))
            if lowest < -0.5 or highest >= n - 0.5:
                index = first + z[:, None, None] + (y[:, None] + x)
                out &= (index >= -0.5) & (index < n - 0.5)
        return out

    def _read(self, read: Read, order: int) -> Shaped[np.ndarray, "*channel z y x"]:
        if is_flip(self.matrix):
            mirrored = tuple(axis - 3 for axis in range(3) if self.matrix[axis, axis] < 0)
            return np.ascontiguousarray(np.flip(read(self.start, self.size), mirrored))
        start, extent = read_window(self.matrix, self.centre, self.size, order)
        window = read(start, extent)
        out = np.empty((*window.shape[:-3], *self.size), window.dtype if order == 0 else np.float32)
        offset = first_voxel(self.matrix, self.centre, self.size) - start
        for channel in np.ndindex(window.shape[:-3]):
            flat = order == 0 and bool((window[channel] == window[channel].flat[0]).all())
            out[channel] = (
                window[channel].flat[0] if flat else warp(window[channel], self.matrix, offset, self.size, order)
            )
        return out
