"""Boxes back on the source grid and in patient space."""

import json
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from girih_detectors import restore


def detections(boxes):
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 6)
    n = len(boxes)
    return {
        "boxes": boxes,
        "scores": np.linspace(0.9, 0.1, n).astype(np.float32),
        "labels": np.zeros(n, dtype=np.int64),
    }


def prepared(source_shape, source_affine, affine):
    return {"source_shape_zyx": source_shape, "source_affine": source_affine, "affine": affine}


def test_identity_keeps_the_boxes_and_gives_ras_millimetres() -> None:
    affine = np.diag([0.5, 0.75, 2.0, 1.0])
    affine[:3, 3] = [10, 20, 30]
    found = restore(detections([1, 2, 3, 4, 6, 9]), prepared((8, 9, 10), affine, affine), case_id="c", classes=("a",))
    assert found["boxes"] == [[1, 2, 3, 4, 6, 9]]
    # voxel edge e is index e - 0.5: x0 = 10 + 0.5 * 2.5
    assert found["boxes_ras_mm"] == [[11.25, 21.125, 31.0, 14.25, 24.125, 37.0]]
    assert {k: v for k, v in found.items() if "boxes" not in k} == {
        "schema": "girih-detections/1",
        "case_id": "c",
        "classes": ["a"],
        "shape_zyx": [8, 9, 10],
        "affine": affine.tolist(),
        "space": "source",
        "scores": [pytest.approx(0.9)],
        "labels": [0],
    }
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_crop_and_resampling_by_hand() -> None:
    # source 1 mm; prepared: cropped at x = 4 voxels, 2 mm: its voxel 0 spans source edges 4..6, centre at index 4.5
    source, affine = np.eye(4), np.diag([2.0, 1, 1, 1])
    affine[0, 3] = 4.5
    found = restore(detections([0, 0, 0, 1, 1, 3]), prepared((9, 9, 20), source, affine), case_id="c", classes=("a",))
    assert found["boxes"] == [[0, 0, 4, 1, 1, 10]]


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("flips", list(product((1, -1), repeat=3)))
def test_all_48_orientations_give_back_the_same_world_box(axes, flips) -> None:
    shape_xyz = np.array([20, 30, 40])
    spacing = np.array([0.7, 0.8, 2.5])
    source = np.eye(4)  # source voxel (i, j, k) lies along world axes `axes`, some reversed
    for column, axis in enumerate(axes):
        source[:, column] = 0
        source[axis, column] = flips[column] * spacing[axis]
    source[:3, 3] = [-30, 12, 5]
    source[3, 3] = 1
    canonical = np.diag([*spacing, 1.0])
    canonical[:3, 3] = [-100, -100, -200]
    boxes = np.array([[100, 120, 90, 103, 128, 95.5]])
    found = restore(detections(boxes), prepared(shape_xyz[::-1], source, canonical), case_id="c", classes=("a",))
    low, high = boxes[0, [2, 1, 0]] - 0.5, boxes[0, [5, 4, 3]] - 0.5
    want = [*(low * spacing + canonical[:3, 3]), *(high * spacing + canonical[:3, 3])]
    np.testing.assert_allclose(found["boxes_ras_mm"][0], want, atol=1e-3)


ORIENTATIONS = list(product(permutations(range(3)), product((False, True), repeat=3)))


@given(
    st.sampled_from(ORIENTATIONS),
    st.tuples(*[st.integers(20, 300)] * 3),
    st.tuples(*[st.floats(0.3, 6)] * 3),
    st.tuples(*[st.floats(0.4, 3)] * 3),
    st.integers(0, 1000),
)
def test_boxes_come_back_through_crop_and_resampling(orientation, shape, spacing, factor, seed) -> None:
    """Planted in the file's voxels, moved to the prepared grid axis by axis in float32, restored within 1e-3 mm."""
    (axes, flips), rng = orientation, np.random.default_rng(seed)
    low = rng.uniform(0, 0.8, (5, 3)) * shape
    planted = np.concatenate([low, low + rng.uniform(0.02, 0.2, (5, 3)) * shape], axis=1)
    crop = [int(rng.integers(0, n // 2)) for n in shape]  # of the patient's grid, as all that follows
    origin = rng.uniform(-300, 300, 3)
    boxes, affine, source = np.empty((5, 6)), np.eye(4), np.eye(4)
    for axis, (file_axis, flipped) in enumerate(zip(axes, flips, strict=True)):  # all (z, y, x)
        n, mm = shape[file_axis], spacing[file_axis]
        edges = planted[:, [file_axis, file_axis + 3]]
        edges = n - edges[:, ::-1] if flipped else edges
        boxes[:, [axis, axis + 3]] = (edges - crop[axis]) / factor[axis]
        world, column = 2 - axis, 2 - file_axis  # affines are (x, y, z)
        affine[world, world] = mm * factor[axis]
        affine[world, 3] = origin[axis] + mm * (crop[axis] + 0.5 * factor[axis])
        source[world, column] = -mm if flipped else mm
        source[world, 3] = origin[axis] + mm * (n - 0.5 if flipped else 0.5)
        source[world, [i for i in range(3) if i != column]] = 0
    found = restore(detections(boxes), prepared(shape, source, affine), case_id="c", classes=("a",))
    errors_mm = np.abs(np.array(found["boxes"]) - planted) * [*spacing, *spacing]
    assert errors_mm.max() < 1e-3


def test_oblique_source_encloses_the_box() -> None:
    turn = np.deg2rad(30)
    source = np.eye(4)
    source[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    found = restore(detections([2, 2, 2, 4, 4, 4]), prepared((9, 9, 9), source, np.eye(4)), case_id="c", classes=("a",))
    z0, y0, x0, z1, y1, x1 = found["boxes"][0]
    assert (z0, z1) == (2, 4)
    side = 2 * (np.cos(turn) + np.sin(turn))
    np.testing.assert_allclose([y1 - y0, x1 - x0], side)


def test_no_detections() -> None:
    found = restore(detections([]), prepared((2, 2, 2), np.eye(4), np.eye(4)), case_id="c", classes=("a",))
    assert found["boxes"] == found["scores"] == found["labels"] == found["boxes_ras_mm"] == []


def test_bad_input_names_the_case() -> None:
    good = prepared((2, 2, 2), np.eye(4), np.eye(4))
    with pytest.raises(ValueError, match=r"case c1, row 1: .*nan"):
        restore(detections([[0, 0, 0, 1, 1, 1], [0, 0, np.nan, 1, 1, 1]]), good, case_id="c1", classes=("a",))
    with pytest.raises(ValueError, match=r"case c1, row 0: .*label 0; wanted"):
        restore(detections([[0, 0, 0, 1, 1, 1]]), good, case_id="c1", classes=())
    with pytest.raises(ValueError, match="case c1: `affine` is not an invertible"):
        restore(detections([]), prepared((2, 2, 2), np.eye(4), np.diag([1, 0, 1, 1])), case_id="c1", classes=("a",))
