"""Boxes back on the source grid and in patient space."""

import json
from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from girih_detectors import restore
from girih_detectors.testing.subject import run_time_types_off


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


GOOD = detections([[0, 0, 0, 1, 1, 1], [1, 1, 1, 2, 2, 2]])
GRID = prepared((2, 3, 4), np.eye(4), np.eye(4))


def matrix(row, column, value):
    affine = np.eye(4)
    affine[row, column] = value
    return affine


BOX = "finite edges, z0 <= z1, y0 <= y1, x0 <= x1"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("boxes", [[0, 0, 0, 1, 1, 1], [0, 0, np.nan, 1, 1, 1]], rf"row 1 is \[0.0, 0.0, nan, .*\], wanted {BOX}"),
        ("boxes", [[0, 0, 0, np.inf, 1, 1], [0, 0, 0, 1, 1, 1]], f"row 0 is .*inf.*, wanted {BOX}"),
        ("boxes", [[0, 0, 0, 1, 1, 1], [0, 2, 0, 1, 1, 1]], f"row 1 is .*, wanted {BOX}"),
        ("boxes", [[0, 0, 0, 1, 1, 1]], r"holds int64 of shape \(1, 6\), wanted numbers of shape \(2, 6\)"),
        ("boxes", [[0, 0, 0, 1, 1, 1], [0]], r"is no array, wanted numbers of shape \(2, 6\)"),
        ("boxes", None, r"holds object of shape \(\), wanted numbers of shape \(2, 6\)"),
        ("scores", [0.5, 7.0], r"row 1 is 7.0, wanted 0\.\.1"),
        ("scores", [-0.1, 0.5], r"row 0 is -0.1, wanted 0\.\.1"),
        ("scores", [np.nan, 0.5], r"row 0 is nan, wanted 0\.\.1"),
        ("scores", [[0.5], [0.5]], r"holds float64 of shape \(2, 1\), wanted numbers along one axis"),
        ("scores", ["a", "b"], r"holds <U1 of shape \(2,\), wanted numbers along one axis"),
        ("labels", [0.7, 0.0], r"holds float64 of shape \(2,\), wanted integers of shape \(2,\)"),
        ("labels", [True, False], r"holds bool of shape \(2,\), wanted integers"),
        ("labels", [0], r"holds int64 of shape \(1,\), wanted integers of shape \(2,\)"),
        ("labels", [0, 1], "row 1 is 1, wanted one of 1 classes"),
        ("labels", [-1, 0], "row 0 is -1, wanted one of 1 classes"),
        ("source_shape_zyx", (1, 2, 3, 4), r"holds int64 of shape \(4,\), wanted integers of shape \(3,\)"),
        ("source_shape_zyx", (2.0, 3.0, 4.0), "holds float64 .*, wanted integers"),
        ("source_shape_zyx", (2, 0, 4), "row 1 is 0, wanted at least one voxel"),
        ("affine", matrix(1, 1, 0), r"is not an invertible \(4, 4\) matrix"),
        ("affine", matrix(0, 3, np.nan), r"is not an invertible \(4, 4\) matrix"),
        ("affine", matrix(3, 3, 2), r"has the last row \[0.0, 0.0, 0.0, 2.0\], wanted \[0, 0, 0, 1\]"),
        ("affine", matrix(3, 0, 0.5), r"has the last row \[0.5, 0.0, 0.0, 1.0\], wanted"),
        ("source_affine", matrix(0, 3, 10).T, r"has the last row \[10.0, 0.0, 0.0, 1.0\], wanted"),  # transposed
        ("source_affine", np.eye(3), r"holds float64 of shape \(3, 3\), wanted numbers of shape \(4, 4\)"),
        ("source_affine", "abc", r"holds <U3 of shape \(\), wanted numbers"),
    ],
)
def test_bad_fields_are_named_with_their_case(field, value, words) -> None:
    found, grid = (one | ({field: value} if field in one else {}) for one in (GOOD, GRID))
    with run_time_types_off(), pytest.raises(ValueError, match=f"^case c1: `{field}` {words}"):
        restore(found, grid, case_id="c1", classes=("a",))


@pytest.mark.parametrize("field", [*GOOD, *GRID])
def test_missing_fields_are_named_with_their_case(field) -> None:
    found, grid = ({key: value for key, value in one.items() if key != field} for one in (GOOD, GRID))
    with run_time_types_off(), pytest.raises(ValueError, match=f"^case c1: `{field}` is missing, wanted"):
        restore(found, grid, case_id="c1", classes=("a",))


def test_tensors_and_lists_are_taken() -> None:
    wanted = restore(GOOD, GRID, case_id="c", classes=("a",))
    tensors = {key: torch.from_numpy(value) for key, value in GOOD.items()}
    lists = {key: value.tolist() if isinstance(value, np.ndarray) else list(value) for key, value in GRID.items()}
    assert restore(tensors, lists, case_id="c", classes=("a",)) == wanted
