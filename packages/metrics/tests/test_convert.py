"""Boxes of other tools: known examples, and there and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from girih_metrics import (
    from_coco,
    from_monai,
    from_nndetection,
    from_world_lps,
    lps_to_ras,
    pairwise_iou,
    to_coco,
    to_monai,
    to_nndetection,
    to_world_lps,
)

EIGHTHS = st.integers(-8000, 8000).map(lambda k: k / 8)  # exact in binary, so that round trips are exact
BOXES = st.lists(st.tuples(*[EIGHTHS] * 3, *[st.integers(8, 800).map(lambda k: k / 4)] * 3), max_size=5).map(
    lambda rows: np.array(
        [[*row[:3], *(a + b for a, b in zip(row[:3], row[3:], strict=True))] for row in rows], dtype=float
    ).reshape(-1, 6)
)


def test_one_voxel_is_two_wide_for_nndetection():
    """The voxel at index (3, 5, 7): first index - 1, last index + 1, axes (0, 1, 0, 1, 2, 2)."""
    ours = np.array([[3.0, 5, 7, 4, 6, 8]])
    assert to_nndetection(ours).tolist() == [[2, 4, 4, 6, 6, 8]]
    assert to_nndetection(ours, padded=False).tolist() == [[3, 5, 4, 6, 7, 8]]
    assert from_nndetection(np.array([[2.0, 4, 4, 6, 6, 8]])).tolist() == ours.tolist()
    with pytest.raises(ValueError, match=r"row 1 .* under 1 voxel wide"):
        from_nndetection(np.array([[2.0, 4, 4, 6, 6, 8], [0, 0, 0.5, 2, 0, 2]]))


def test_padding_changes_overlap():
    """Two voxels side by side share nothing, their padded boxes half of each."""
    boxes = np.array([[0.0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 2]])
    assert pairwise_iou(boxes[:1], boxes[1:]).item() == 0
    padded = from_nndetection(to_nndetection(boxes), padded=False)
    assert pairwise_iou(padded[:1], padded[1:]).item() == pytest.approx(1 / 3)


def test_monai_coco_and_world_by_hand():
    ours = np.array([[1.0, 2, 3, 5, 8, 11]])
    assert to_monai(ours).tolist() == [[3, 2, 1, 11, 8, 5]]
    assert to_monai(ours, mode="cccwhd").tolist() == [[7, 5, 3, 8, 6, 4]]
    assert to_monai(ours, mode="xyzwhd").tolist() == to_coco(ours).tolist() == [[3, 2, 1, 8, 6, 4]]
    boxes, centers = from_world_lps(np.array([[10.0, -20, 30]]), np.array([4.0]))
    assert centers.tolist() == [[30, 20, -10]]
    assert boxes.tolist() == [[28, 18, -12, 32, 22, -8]]
    assert lps_to_ras(np.array([[0.0, 1, 2, 3, 4, 5]])).tolist() == [[0, -4, -5, 3, -1, -2]]


@pytest.mark.usefixtures("plain_types")
def test_unknown_mode():
    for convert in (from_monai, to_monai):
        with pytest.raises(ValueError, match="mode is 'xyxy'"):
            convert(np.zeros((1, 6)), mode="xyxy")


@given(BOXES, st.booleans(), st.sampled_from(["xyzxyz", "cccwhd", "xyzwhd"]))
def test_round_trips(boxes, padded, mode):
    np.testing.assert_array_equal(from_nndetection(to_nndetection(boxes, padded=padded), padded=padded), boxes)
    np.testing.assert_array_equal(from_monai(to_monai(boxes, mode=mode), mode=mode), boxes)
    np.testing.assert_array_equal(from_coco(to_coco(boxes)), boxes)
    np.testing.assert_array_equal(lps_to_ras(lps_to_ras(boxes)), boxes)
    points, diameters = to_world_lps(boxes)
    cubes, _ = from_world_lps(points, diameters)
    again = to_world_lps(cubes)
    np.testing.assert_array_equal(again[0], points)
    np.testing.assert_array_equal(again[1], diameters)
