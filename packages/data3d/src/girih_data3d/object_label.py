"""One object as somebody labelled it without a mask: a box, or a point with a diameter."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from girih_data3d.affine import move_boxes, world_to_voxel
from girih_data3d.checked_json import Checked, is_number, is_whole
from girih_data3d.errors import ManifestError
from girih_data3d.resampling import Number

FARTHEST = 1e6
"""Largest coordinate in voxels or millimetres (a kilometre); a larger one is a broken file."""
SHAPES = ("box_zyx", "box_ras_mm", "center_ras_mm")


@dataclass(frozen=True)
class ObjectLabel:
    """An object's class and exactly one of a box in voxels, a box in millimetres, a centre with a diameter.

    Raises:
        ValueError: none or two of them, another number of values, one that is not finite or beyond 1e6, a box whose low
            edge is not below its high one, a diameter that is not positive.
    """

    class_index: int
    ignore: bool = False
    """Real, but neither trained on nor scored."""
    box_zyx: tuple[Number, ...] | None = None
    """(z0, y0, x0, z1, y1, x1), voxel edges of the image file's array, whose axes as (x, y, z) are the file's own. It
    may reach out of the array by a voxel."""
    box_ras_mm: tuple[Number, ...] | None = None
    """(x0, y0, z0, x1, y1, z1) in the patient, RAS."""
    center_ras_mm: tuple[Number, ...] | None = None
    """(x, y, z) in the patient, RAS."""
    diameter_mm: Number | None = None

    def __post_init__(self) -> None:
        given = [name for name in SHAPES if getattr(self, name) is not None]
        if len(given) != 1 or (self.center_ras_mm is None) != (self.diameter_mm is None):
            raise ValueError(
                f"{', '.join(given) or 'nothing'} given and diameter_mm {self.diameter_mm}, wanted exactly one of "
                "box_zyx, box_ras_mm, and center_ras_mm with diameter_mm"
            )
        for name, count in (*zip(SHAPES, (6, 6, 3), strict=True), ("diameter_mm", None)):
            value = getattr(self, name)
            numbers = [] if value is None else [value] if count is None else list(value)
            if value is not None and count is not None and len(numbers) != count:
                raise ValueError(f"{name} has {len(numbers)} values, wanted {count}")
            if not all(abs(v) <= FARTHEST for v in numbers):  # NaN compares as false
                raise ValueError(f"{name} is {value}, wanted finite numbers of at most {FARTHEST:g}")
        for name in ("box_zyx", "box_ras_mm"):
            box = getattr(self, name)
            if box is not None and not all(low < high for low, high in zip(box[:3], box[3:], strict=True)):
                raise ValueError(f"{name} is {list(box)}, wanted every low edge below its high edge")
        if self.diameter_mm is not None and self.diameter_mm <= 0:
            raise ValueError(f"diameter_mm is {self.diameter_mm}, wanted a positive length")

    @classmethod
    def from_json(cls, content: Any, where: str, classes: Sequence[str]) -> "ObjectLabel":
        """Return the object of one entry of "objects" in a dataset.json.

        Raises:
            ManifestError: an unknown or missing key, a value of another type, an unknown class, or as the class itself.
        """
        given = Checked(content, where, {"class"}, {"ignore", "diameter_mm", *SHAPES})
        if not is_whole(given["class"], 0, len(classes) - 1):
            raise given.wrong("class", f"0 to {len(classes) - 1}")
        if not isinstance(given.get("ignore", False), bool):
            raise given.wrong("ignore", "true or false")
        for name in SHAPES:
            if name in given and not (isinstance(given[name], list) and all(map(is_number, given[name]))):
                raise given.wrong(name, "a list of numbers")
        if "diameter_mm" in given and not is_number(given["diameter_mm"]):
            raise given.wrong("diameter_mm", "a number")
        try:
            return cls(
                class_index=given["class"],
                ignore=given.get("ignore", False),
                diameter_mm=given.get("diameter_mm"),
                **{name: tuple(given[name]) for name in SHAPES if name in given},
            )
        except ValueError as error:
            raise ManifestError(f"{where}: {error}") from error

    def box_in(
        self, affine: Float64[np.ndarray, "4 4"], source_affine: Float64[np.ndarray, "4 4"]
    ) -> Float64[np.ndarray, "6"]:
        """Return the box in voxel edges (z, y, x) of the grid of `affine`, the hull of the object."""
        if self.box_zyx is not None:
            boxes = move_boxes(np.array([self.box_zyx], np.float64), source_affine, affine)
        elif self.box_ras_mm is not None:  # the identity's index (x, y, z) is the position itself
            box = np.array(self.box_ras_mm, np.float64).reshape(2, 3)[:, ::-1].reshape(1, 6) + 0.5
            boxes = move_boxes(box, np.eye(4), affine)
        else:
            centre, radii = self.sphere_in(affine)
            boxes = np.concatenate([centre - radii, centre + radii])[None]
        only: np.ndarray = boxes[0]
        return only

    def sphere_in(
        self, affine: Float64[np.ndarray, "4 4"]
    ) -> tuple[Float64[np.ndarray, "3"], Float64[np.ndarray, "3"]]:
        """Return a sphere's centre (voxel edges) and its extent to each side of it along (z, y, x); NaN for a box.

        On orthogonal axes the extent is the radius divided by the voxel size.
        """
        if self.center_ras_mm is None or self.diameter_mm is None:
            return np.full(3, np.nan), np.full(3, np.nan)
        centre = world_to_voxel(affine, np.array([self.center_ras_mm], np.float64))[0] + 0.5
        rows = np.linalg.norm(np.linalg.inv(affine[:3, :3]), axis=1)[::-1]
        return centre, rows * (float(self.diameter_mm) / 2)
