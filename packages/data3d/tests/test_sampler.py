"""The sampler: which case, how often, and where; independent of everything but the item's number."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import girih_data3d as d3
from girih_data3d.geometry import is_flip, patch_affine
from girih_data3d.sampler import CaseTable


def table(shapes: list[tuple[int, int, int]], boxes: list[tuple[int, list[float]]]) -> CaseTable:
    return CaseTable(
        tuple(f"c{i}" for i in range(len(shapes))),
        np.array(shapes, np.int64).reshape(-1, 3),
        np.ones((len(shapes), 3)),
        np.array([box for _, box in boxes], np.float64).reshape(-1, 6),
        np.array([case for case, _ in boxes], np.int64),
    )


THREE = table([(50, 60, 70)] * 3, [(0, [5, 5, 5, 9, 9, 9]), (2, [40, 50, 60, 50, 60, 70]), (2, [1, 2, 3, 2, 3, 4])])


@pytest.mark.parametrize("p", [0.0, 0.1, 1 / 3, 0.5, 0.7, 1.0])
def test_share_of_object_items(p: float) -> None:
    sampler = d3.PatchSampler((16, 16, 16), object_fraction=p)
    assert sum(sampler.is_object_item(g) for g in range(1000)) == int(1000 * p)
    if p == 0.5:
        assert [sampler.is_object_item(g) for g in range(4)] == [False, True, False, True]


def test_random_items_go_through_all_cases_before_repeating() -> None:
    sampler = d3.PatchSampler((16, 16, 16), object_fraction=0.5)
    turns = [sampler.place(g, THREE).case for g in range(60) if not sampler.is_object_item(g)]
    for at in range(0, 30, 3):
        assert sorted(turns[at : at + 3]) == [0, 1, 2]
    assert len({tuple(turns[at : at + 3]) for at in range(0, 30, 3)}) > 1


def test_object_items_are_uniform_over_objects() -> None:
    sampler = d3.PatchSampler((16, 16, 16), object_fraction=1.0)
    count = Counter(sampler.place(g, THREE).case for g in range(3000))
    assert count[1] == 0
    assert abs(count[0] - 1000) < 100


def test_weights() -> None:
    weights = {"c0": 0, "c2": 3}
    for p, expected in [(0.0, {1: 500, 2: 1500}), (1.0, {2: 2000})]:
        sampler = d3.PatchSampler((16, 16, 16), object_fraction=p, case_weights=weights)
        count = Counter(sampler.place(g, THREE).case for g in range(2000))
        assert count.keys() == expected.keys()
        assert all(abs(count[case] - n) < 100 for case, n in expected.items())


def test_seed_is_a_hash_of_run_and_item() -> None:
    a, b = d3.PatchSampler((8, 8, 8)), d3.PatchSampler((8, 8, 8), seed=1)
    seeds = [a.item_seed(g) for g in range(1000)] + [b.item_seed(g) for g in range(1000)]
    assert len(set(seeds)) == 2000
    assert min(seeds) >= 0
    assert max(seeds) < 2**63
    assert a.item_seed(3) == d3.PatchSampler((9, 9, 9), object_fraction=0).item_seed(3)


triple = st.tuples(*[st.integers(1, 40)] * 3)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**9), triple, triple, st.data())
def test_whole_object_inside_when_it_fits(g: int, shape: Any, patch: Any, data: st.DataObject) -> None:
    box = [sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in shape]
    low, high = np.array(box).T
    objects = table([shape], [(0, [*low, *high])])
    plain = d3.PatchSampler(patch, object_fraction=1).place(g, objects)
    start = plain.centre - np.array(patch) / 2
    assert (start == np.round(start)).all()
    for axis in range(3):
        if shape[axis] <= patch[axis]:
            assert start[axis] == -((patch[axis] - shape[axis]) // 2)
        else:
            assert 0 <= start[axis] <= shape[axis] - patch[axis]
        if high[axis] - low[axis] <= patch[axis]:
            assert start[axis] <= low[axis]
            assert high[axis] <= start[axis] + patch[axis]
        else:
            assert low[axis] - patch[axis] < start[axis] < high[axis]
    always = d3.Geometry(p_rotation=1, p_scale=1)
    turned = d3.PatchSampler(patch, object_fraction=1, geometry=always).place(g, objects)
    corners = np.array(np.meshgrid(*np.array(box, float))).reshape(3, -1).T
    seen = (corners - turned.centre) @ np.linalg.inv(turned.matrix).T  # offsets from the centre in the patch's frame
    fits = np.ptp(seen, axis=0) <= patch
    assert (np.abs(seen).max(axis=0) <= np.array(patch) / 2 + 1e-9)[fits].all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**9))
def test_geometry_draws(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spacing = (3.0, 1.0, 0.5)
    mm = np.diag(spacing)
    matrix = mm @ d3.Geometry(p_rotation=1, p_scale=1).draw(rng, spacing) @ np.linalg.inv(mm)
    scale = abs(np.linalg.det(matrix)) ** (1 / 3)
    assert 0.7 <= scale <= 1.4
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3) * scale**2, atol=1e-9)  # a rotation in millimetres
    assert is_flip(d3.Geometry(p_rotation=0, p_scale=0).draw(rng, spacing))


def test_share_of_draws() -> None:
    rng, geometry = np.random.default_rng(0), d3.Geometry()
    draws = [geometry.draw(rng, (1, 1, 1)) for _ in range(4000)]
    scales = np.array([abs(np.linalg.det(m)) ** (1 / 3) for m in draws])
    turned = np.mean([np.abs(np.abs(m / s) - np.eye(3)).max() > 1e-9 for m, s in zip(draws, scales, strict=True)])
    assert turned == pytest.approx(0.2, abs=0.03)
    assert (scales < 1 - 1e-9).mean() == pytest.approx(0.1, abs=0.02)
    assert (scales > 1 + 1e-9).mean() == pytest.approx(0.1, abs=0.02)
    mirrored = np.mean([np.linalg.det(m) < 0 for m in draws])
    assert mirrored == pytest.approx(0.5, abs=0.04)


def test_patch_affine_by_hand() -> None:
    affine = np.diag([1.0, 2, 3, 1])
    flip = np.diag([1.0, 1, -1])  # x mirrored
    moved = patch_affine(affine, flip, np.array([10.0, 20, 30]), (4, 6, 8))  # starts at (8, 17, 26)
    np.testing.assert_allclose(
        d3.voxel_to_world(moved, np.array([[0, 0, 0], [1, 1, 1]])), [[33.0, 34, 24], [32.0, 36, 27]]
    )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"patch_zyx": (8, 8)}, "three positive"),
        ({"patch_zyx": (8, 0, 8)}, "three positive"),
        ({"object_fraction": 1.5}, "object_fraction is 1.5"),
        ({"min_visible": -1}, "min_visible is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"case_weights": {"a": -1}}, "case_weights"),
    ],
)
def test_refusals(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        d3.PatchSampler(**{"patch_zyx": (8, 8, 8), **kwargs})


def test_nothing_to_draw_from() -> None:
    bare = table([(9, 9, 9)], [])
    d3.PatchSampler((8, 8, 8), object_fraction=0).check(bare)
    for sampler, cases, message in [
        (d3.PatchSampler((8, 8, 8)), bare, "none of the cases has an object"),
        (d3.PatchSampler((8, 8, 8)), table([], []), "no cases"),
        (d3.PatchSampler((8, 8, 8), case_weights={"x": 1}), THREE, "names 'x'"),
        (d3.PatchSampler((8, 8, 8), case_weights={"c0": 0, "c2": 0}), THREE, "leaves nothing"),
    ]:
        with pytest.raises(ValueError, match=message):
            sampler.check(cases)
    for kwargs, message in [({"p_scale": 2}, "p_scale"), ({"scale": (0, 1)}, "scale"), ({"rotation_deg": 200}, "rot")]:
        with pytest.raises(ValueError, match=message):
            d3.Geometry(**kwargs)
