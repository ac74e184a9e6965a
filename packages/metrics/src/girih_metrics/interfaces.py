"""What this package asks for: one dict of numpy arrays per case.

Spatial axes are (z, y, x). A box is (z0, y0, x0, z1, y1, x1): edges, half-open, so that a one-voxel object at index i
is [i, i + 1]. All boxes, centres, points and diameters of one call share one unit, voxels or millimetres.
"""

from collections.abc import Sequence
from typing import NotRequired, TypedDict

import numpy as np

Numbers = Sequence[float | int] | np.ndarray
"""Several real numbers."""


class Case(TypedDict):
    """Ground truth and predictions of one image; m objects, n predictions.

    `gt_diameters` defaults to the longest side of each box, `gt_centers` and `pred_points` to the box centres.
    A mask is (start_zyx, bool array): the array and the voxel where its corner lies.
    """

    case_id: str
    gt_boxes: np.ndarray
    gt_labels: np.ndarray
    pred_boxes: np.ndarray
    pred_scores: np.ndarray
    pred_labels: np.ndarray
    group: NotRequired[str]
    gt_ignore: NotRequired[np.ndarray]
    gt_centers: NotRequired[np.ndarray]
    gt_diameters: NotRequired[np.ndarray]
    pred_points: NotRequired[np.ndarray]
    gt_masks: NotRequired[list[tuple[tuple[int, int, int], np.ndarray]]]
    pred_masks: NotRequired[list[tuple[tuple[int, int, int], np.ndarray]]]
