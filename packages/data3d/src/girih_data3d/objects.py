"""The objects of a prepared case as arrays, however they were labelled: masks, boxes, or points with a diameter."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64


@dataclass(frozen=True)
class Objects:
    """Objects in voxel edges (z, y, x) of the prepared grid, one row each; those to ignore come last."""

    boxes: Float32[np.ndarray, "n 6"]
    """(z0, y0, x0, z1, y1, x1), inside the grid."""
    labels: Int64[np.ndarray, " n"]
    """Index of the class."""
    ignore: Bool[np.ndarray, " n"]
    """Real, but neither trained on nor scored."""
    voxels: Int64[np.ndarray, " n"]
    """Size of the mask; 0: there is none."""
    layer: Int64[np.ndarray, " n"]
    """Instance layer in which row k has the value k + 1; -1: no mask."""
    centres_zyx: Float64[np.ndarray, "n 3"]
    """Of a sphere, which may reach out of the grid; NaN: not a sphere."""
    radii_zyx: Float64[np.ndarray, "n 3"]
    """Of a sphere, in voxels along each axis; NaN: not a sphere."""

    @classmethod
    def from_record(cls, records: Sequence[dict[str, Any]]) -> "Objects":
        """Return the objects of a case's record.

        Each is {"id", "class", "ignore", "box"}, with a mask also {"voxels", "layer"}, as a sphere {"centre", "radii"};
        those to ignore come last.
        """
        nowhere = [np.nan] * 3
        return cls(
            boxes=np.array([o["box"] for o in records], np.float32).reshape(-1, 6),
            labels=np.array([o["class"] for o in records], np.int64),
            ignore=np.array([o["ignore"] for o in records], bool),
            voxels=np.array([o.get("voxels", 0) for o in records], np.int64),
            layer=np.array([o.get("layer", -1) for o in records], np.int64),
            centres_zyx=np.array([o.get("centre", nowhere) for o in records], np.float64).reshape(-1, 3),
            radii_zyx=np.array([o.get("radii", nowhere) for o in records], np.float64).reshape(-1, 3),
        )

    def __len__(self) -> int:
        return len(self.labels)
