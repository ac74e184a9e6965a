"""Objects per patch against a count by hand and by brute force."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import girih_data3d as d3
from girih_data3d.planning.objects_per_patch import count_around, queries_for


def with_objects(index: d3.CaseIndex, boxes: list[list[float]], case: list[int]) -> d3.CaseIndex:
    """The index with other objects; the rest of it does not matter here."""
    labels, rows = np.zeros(len(boxes), np.int64), np.array(case, np.int64)
    return replace(index, boxes=np.array(boxes, np.float32).reshape(-1, 6), labels=labels, box_case=rows)


def cube(z: float, y: float, x: float) -> list[float]:
    return [z - 1, y - 1, x - 1, z + 1, y + 1, x + 1]


def test_a_hand_counted_dataset(prepared: d3.Store) -> None:
    # patch (8, 16, 16): at z 10 and 14 half a patch apart, which counts; 15 is too far from 10
    boxes = [cube(10, 5, 5), cube(14, 5, 5), cube(15, 5, 5), cube(10, 5, 5)]
    index = with_objects(prepared.index, boxes, [0, 0, 0, 1])
    centres = (index.boxes[:, :3] + index.boxes[:, 3:]) / 2
    assert count_around(centres, index.box_case, (8, 16, 16)).tolist() == [2, 3, 2, 1]
    assert d3.objects_per_patch(index, (8, 16, 16)) == pytest.approx(2.85)  # numpy's linear rule on 1, 2, 2, 3
    assert d3.queries_for(2.85) == 12
    assert d3.queries_for(4.1) == 13


def test_without_objects_there_are_none_per_patch(prepared: d3.Store) -> None:
    assert d3.objects_per_patch(with_objects(prepared.index, [], []), (8, 8, 8)) == 0
    assert queries_for(0) == 12


@pytest.mark.parametrize("patch", [(8, 8), (8, 8, 0), (8, 8, float("nan"))])
def test_a_patch_that_is_none_is_refused(patch: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"patch_zyx is .* wanted three positive sizes"):
        count_around(np.zeros((1, 3)), np.zeros(1, np.int64), patch)


@given(
    st.lists(st.tuples(st.integers(0, 3), *[st.integers(0, 40)] * 3), max_size=30),
    st.tuples(*[st.integers(1, 60)] * 3),
)
def test_as_counted_by_brute_force(objects: list[tuple[int, ...]], patch: tuple[int, int, int]) -> None:
    case = np.array([o[0] for o in objects], np.int64)
    centres = np.array([o[1:] for o in objects], np.float64).reshape(-1, 3)
    near = (2 * np.abs(centres[:, None] - centres) <= np.array(patch)).all(axis=-1) & (case[:, None] == case)
    assert count_around(centres, case, patch).tolist() == near.sum(axis=1).tolist()


def test_a_hundred_thousand_objects_of_one_case_are_counted_in_seconds() -> None:
    centres = np.random.default_rng(0).uniform(0, 1000, (100_000, 3))
    counts = count_around(centres, np.zeros(len(centres), np.int64), (32, 32, 32))
    assert 3 < counts.mean() < 5
