"""The sampler: which case, how often, and where; independent of everything but the item's number."""

import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import girih_data3d as d3
from girih_data3d.case_table import CaseTable
from girih_data3d.geometry import is_flip, patch_affine
from girih_data3d.places import Placement, Places

Shape = tuple[int, int, int]
PATCH = (16, 16, 16)


def table(
    shapes: list[Shape],
    boxes: list[tuple[int, list[float]]],
    *,
    labels: list[int] | None = None,
    dataset: list[int] | None = None,
    semantic: list[bool] | None = None,
    annotated: list[bool] | None = None,
) -> CaseTable:
    dataset = [0] * len(shapes) if dataset is None else dataset
    return CaseTable(
        case_ids=tuple(f"c{i}" for i in range(len(shapes))),
        datasets=tuple("abc"[: max(dataset, default=0) + 1]),
        dataset=np.array(dataset, np.int64),
        shapes=np.array(shapes, np.int64).reshape(-1, 3),
        spacings_mm=np.ones((len(shapes), 3)),
        annotated=np.array([True] * len(shapes) if annotated is None else annotated, bool),
        semantic=np.array([False] * len(shapes) if semantic is None else semantic, bool),
        boxes=np.array([box for _, box in boxes], np.float32).reshape(-1, 6),
        labels=np.array([0] * len(boxes) if labels is None else labels, np.int64),
        box_case=np.array([case for case, _ in boxes], np.int64),
    )


def nothing(case: int) -> Any:
    raise AssertionError(f"asked for the foreground of case {case}")


def draw(sampler: d3.PatchSampler, cases: CaseTable, items: int, foreground: Any = nothing) -> list[Placement]:
    places = Places(sampler, cases)
    return [places.place(g, foreground) for g in range(items)]


def assert_shares(found: Counter[Any], wanted: Mapping[Any, float]) -> None:
    """Every count lies within five standard deviations of its binomial."""
    n = sum(found.values())
    assert set(found) <= set(wanted)
    for key, p in wanted.items():
        assert abs(found[key] - n * p) <= 5 * math.sqrt(n * p * (1 - p)), (key, found[key] / n, p)


BOXES = [[5, 5, 5, 9, 9, 9], [40, 50, 60, 50, 60, 70], [1, 2, 3, 2, 3, 4]]
THREE = table([(50, 60, 70)] * 3, [(0, BOXES[0]), (2, BOXES[1]), (2, BOXES[2])])


@pytest.mark.parametrize("p", [0.0, 0.1, 1 / 3, 0.5, 0.7, 1.0])
def test_share_of_object_items(p: float) -> None:
    sampler = d3.PatchSampler(PATCH, object_fraction=p)
    assert sum(sampler.is_object_item(g) for g in range(1000)) == int(1000 * p)
    if p == 0.5:
        assert [sampler.is_object_item(g) for g in range(4)] == [False, True, False, True]


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5])
def test_random_items_go_through_all_cases_before_repeating(p: float) -> None:
    sampler = d3.PatchSampler(PATCH, object_fraction=p)
    turns = [place.case for g, place in enumerate(draw(sampler, THREE, 80)) if not sampler.is_object_item(g)]
    for at in range(0, len(turns) - 2, 3):
        assert sorted(turns[at : at + 3]) == [0, 1, 2]
    assert len({tuple(turns[at : at + 3]) for at in range(0, 30, 3)}) > 1


def test_object_items_are_uniform_over_objects() -> None:
    assert_shares(
        Counter(place.case for place in draw(d3.PatchSampler(PATCH, object_fraction=1.0), THREE, 1200)),
        {0: 1 / 3, 2: 2 / 3},
    )


CLASSES = table([(50, 60, 70)] * 4, [(case, BOXES[0]) for case in (0, 0, 0, 1, 1, 2)], labels=[0, 0, 0, 0, 1, 7])
"""Class 0: three objects of case 0 and one of case 1; class 1: one of case 1; class 7: one of case 2; case 3: empty."""


def test_class_balanced_draws_classes_then_objects() -> None:
    sampler = d3.PatchSampler(PATCH, object_fraction=1, class_balanced=True)
    assert_shares(
        Counter(place.case for place in draw(sampler, CLASSES, 2000)), {0: 1 / 4, 1: 1 / 12 + 1 / 3, 2: 1 / 3}
    )


@pytest.mark.parametrize(
    ("kwargs", "wanted"),
    [
        ({"object_fraction": 0}, {0: 0, 1: 1 / 5, 2: 3 / 5, 3: 1 / 5}),
        ({"object_fraction": 1}, {1: 2 / 5, 2: 3 / 5}),
        ({"object_fraction": 1, "class_balanced": True}, {1: 2 / 3, 2: 1 / 3}),
    ],
)
def test_case_weights(kwargs: dict[str, Any], wanted: dict[int, float]) -> None:
    sampler = d3.PatchSampler(PATCH, case_weights={"c0": 0, "c2": 3}, **kwargs)
    assert_shares(Counter(place.case for place in draw(sampler, CLASSES, 1500)), wanted)


TWO_SETS = table(
    [(50, 60, 70)] * 4,
    [(0, BOXES[0]), (1, BOXES[0]), (1, BOXES[0]), (3, BOXES[0])],
    labels=[0, 1, 1, 0],
    dataset=[0, 0, 0, 1],
    semantic=[True, False, True, True],
)
"""Dataset a: one object in case 0, two of another class in case 1, none in case 2; dataset b: one in case 3."""


@pytest.mark.parametrize(
    ("kwargs", "wanted"),
    [
        ({"object_fraction": 0}, {0: 1 / 12, 1: 1 / 12, 2: 1 / 12, 3: 3 / 4}),
        ({"object_fraction": 1}, {0: 1 / 12, 1: 2 / 12, 3: 3 / 4}),
        ({"object_fraction": 1, "class_balanced": True}, {0: 1 / 8, 1: 1 / 8, 3: 3 / 4}),
        ({"object_fraction": 1, "around": "semantic"}, {0: 1 / 8, 2: 1 / 8, 3: 3 / 4}),
        ({"object_fraction": 0, "case_weights": {"c1": 3, "c2": 0}}, {0: 1 / 16, 1: 3 / 16, 3: 3 / 4}),
    ],
)
def test_dataset_weights(kwargs: dict[str, Any], wanted: dict[int, float]) -> None:
    sampler = d3.PatchSampler(PATCH, dataset_weights={"a": 2, "b": 6}, **kwargs)
    places = draw(sampler, TWO_SETS, 1500, lambda case: np.array([[1, 5, 5, 5]], np.uint16))
    assert_shares(Counter(place.case for place in places), wanted)


def test_without_weights_classes_of_two_datasets_are_two_classes() -> None:
    sampler = d3.PatchSampler(PATCH, object_fraction=1, class_balanced=True)
    assert_shares(Counter(p.case for p in draw(sampler, TWO_SETS, 1200)), {0: 1 / 3, 1: 1 / 3, 3: 1 / 3})


def test_semantic_items_lie_around_a_voxel_of_a_uniform_class() -> None:
    rng = np.random.default_rng(0)
    voxels = np.concatenate([np.full((997, 1), 3), rng.integers(0, 50, (997, 3))], axis=1)
    tables = {0: np.concatenate([voxels, [[9, 30, 30, 30]]] * 1).astype(np.uint16), 2: np.zeros((0, 4), np.uint16)}
    cases = table([(50, 60, 70)] * 3, [], semantic=[True, False, True])
    sampler = d3.PatchSampler((16, 15, 80), object_fraction=1, around="semantic")
    places = draw(sampler, cases, 1200, tables.__getitem__)
    assert_shares(Counter(place.case for place in places), {0: 1 / 2, 2: 1 / 2})
    first = [place.centre - (8, 7.5, 40) for place in places if place.case == 0]
    # centred on (30, 30, 30): start 30 - 16 // 2, 30 - 15 // 2; x is deeper than the case
    assert_shares(Counter(bool((start == (22, 23, -5)).all()) for start in first), {True: 0.5, False: 0.5})
    assert all((start >= (0, 0, -5)).all() and (start <= (34, 45, -5)).all() for start in first)
    anywhere = np.array([place.centre[0] - 8 for place in places if place.case == 2])  # no tissue: uniform
    assert set(anywhere) == set(range(35))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_places_without_objects_are_uniform(p: float) -> None:
    cases = table([(20, 16, 40)], [(0, [8, 0, 3, 9, 16, 36])])  # x: longer than the patch
    starts = np.array([place.centre - 8 for place in draw(d3.PatchSampler(PATCH, object_fraction=p), cases, 2000)])
    wanted = [range(5), [0], range(25)]  # with p = 1: z holds the object, the middle of x lies in [3, 36)
    for axis in range(3):
        low, high = starts[:, axis].min(), starts[:, axis].max()
        assert (low, high) == (wanted[axis][0], wanted[axis][-1])
    assert_shares(Counter(starts[:, 0].tolist()), dict.fromkeys(map(float, range(5)), 1 / 5))
    if p == 0:
        assert_shares(Counter(starts[:, 2].tolist()), dict.fromkeys(map(float, range(25)), 1 / 25))


def test_seed_is_a_hash_of_run_and_item() -> None:
    a, b = d3.PatchSampler((8, 8, 8)), d3.PatchSampler((8, 8, 8), seed=1)
    seeds = [a.item_seed(g) for g in range(1000)] + [b.item_seed(g) for g in range(1000)]
    assert len(set(seeds)) == 2000
    assert min(seeds) >= 0
    assert max(seeds) < 2**63
    assert a.item_seed(3) == d3.PatchSampler((9, 9, 9), object_fraction=0).item_seed(3)


def test_an_item_costs_the_same_however_many_cases_there_are() -> None:
    n, m = 100_000, 1_000_000
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 90, (m, 3))
    cases = CaseTable(
        case_ids=tuple(f"c{i:06}" for i in range(n)),
        datasets=("a", "b"),
        dataset=np.arange(n) % 2,
        shapes=np.full((n, 3), 100),
        spacings_mm=np.ones((n, 3)),
        annotated=np.ones(n, bool),
        semantic=np.zeros(n, bool),
        boxes=np.concatenate([low, low + 9], axis=1).astype(np.float32),
        labels=rng.integers(0, 30, m),
        box_case=np.sort(rng.integers(0, n, m)),
    )
    for kwargs in ({}, {"class_balanced": True, "dataset_weights": {"a": 1, "b": 5}}):
        places = Places(d3.PatchSampler((128, 128, 128), geometry=d3.Geometry(), **kwargs), cases)
        places.place(0, nothing)  # shuffles the cases
        start = time.process_time()
        for g in range(200):
            places.place(g, nothing)
        assert (time.process_time() - start) / 200 < 5e-3  # about 0.2 ms; a walk over all objects takes 10 ms


triple = st.tuples(*[st.integers(1, 40)] * 3)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**9), triple, triple, st.booleans(), st.data())
def test_whole_object_inside_when_it_fits(g: int, shape: Any, patch: Any, whole: bool, data: st.DataObject) -> None:
    edge = (lambda n: st.integers(0, n)) if whole else (lambda n: st.floats(0, n, width=32))
    box = [sorted(data.draw(st.lists(edge(n), min_size=2, max_size=2, unique=True))) for n in shape]
    low, high = np.array(box, float).T
    objects = table([shape], [(0, [*low, *high])])
    plain = Places(d3.PatchSampler(patch, object_fraction=1), objects).place(g, nothing)
    start = plain.centre - np.array(patch) / 2
    assert (start == np.round(start)).all()
    for axis in range(3):
        if shape[axis] <= patch[axis]:
            assert start[axis] == -((patch[axis] - shape[axis]) // 2)
        else:
            assert 0 <= start[axis] <= shape[axis] - patch[axis]
        if math.ceil(high[axis]) - math.floor(low[axis]) <= patch[axis]:
            assert start[axis] <= low[axis]
            assert high[axis] <= start[axis] + patch[axis]
        else:
            assert low[axis] - patch[axis] < start[axis] < high[axis]
    always = d3.Geometry(p_rotation=1, p_scale=1)
    turned = Places(d3.PatchSampler(patch, object_fraction=1, geometry=always), objects).place(g, nothing)
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
    scales = [abs(np.linalg.det(m)) ** (1 / 3) for m in draws]
    turned = [bool(np.abs(np.abs(m / s) - np.eye(3)).max() > 1e-9) for m, s in zip(draws, scales, strict=True)]
    assert_shares(Counter(turned), {True: 0.2, False: 0.8})
    assert_shares(
        Counter(round(math.log(s) * 1e9) // 10 > 0 for s in scales if abs(s - 1) > 1e-9), {True: 0.5, False: 0.5}
    )
    assert_shares(Counter(bool(abs(s - 1) > 1e-9) for s in scales), {True: 0.2, False: 0.8})
    flips = [m for m, t, s in zip(draws, turned, scales, strict=True) if not t and abs(s - 1) < 1e-9]
    for axis in range(3):
        assert_shares(Counter(bool(m[axis, axis] < 0) for m in flips), {True: 0.5, False: 0.5})


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
        ({"patch_zyx": (8, 0, 8)}, "three positive"),
        ({"object_fraction": 1.5}, "object_fraction is 1.5"),
        ({"min_visible": -1}, "min_visible is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"case_weights": {"a": -1}}, "case_weights"),
        ({"dataset_weights": {"a": math.nan}}, "dataset_weights"),
        ({"class_balanced": True, "object_fraction": 0}, "class_balanced is about items drawn around objects"),
        ({"class_balanced": True, "around": "semantic"}, "class_balanced is about items drawn around objects"),
    ],
)
def test_refusals(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        d3.PatchSampler(**{"patch_zyx": (8, 8, 8), **kwargs})


def test_unlabelled_cases_are_no_negatives() -> None:
    cases = table(
        [(50, 60, 70)] * 4,
        [(0, BOXES[0])],
        dataset=[0, 0, 1, 1],
        semantic=[True] * 4,
        annotated=[True, True, False, False],
    )
    with pytest.raises(ValueError, match=r"dataset 'b': case 'c2' is unlabelled \(2 of all 4 cases are\)"):
        Places(d3.PatchSampler(PATCH, object_fraction=0.1), cases)
    Places(d3.PatchSampler(PATCH, object_fraction=0), cases)
    Places(d3.PatchSampler(PATCH, around="semantic"), cases)


def test_nothing_to_draw_from() -> None:
    bare = table([(9, 9, 9)], [])
    Places(d3.PatchSampler((8, 8, 8), object_fraction=0), bare)
    twice = table([(9, 9, 9)] * 2, [], dataset=[0, 1])
    same = CaseTable(**{**vars(twice), "case_ids": ("c0", "c0")})
    for kwargs, cases, message in [
        ({}, bare, "none of the cases has an object"),
        ({}, table([], []), "no cases"),
        ({"around": "semantic"}, bare, "none of the cases has semantic labels"),
        ({"case_weights": {"x": 1}}, THREE, "names 'x', which is not among the 3 cases"),
        ({"case_weights": {"c0": 0, "c2": 0}}, THREE, "every object has weight 0"),
        ({"case_weights": {"c0": 0}, "object_fraction": 0}, bare, "every case has weight 0"),
        ({"dataset_weights": {"a": 1, "x": 1}}, THREE, r"dataset_weights names \['a', 'x'\], wanted each of \['a'\]"),
        ({"dataset_weights": {"a": 1}, "object_fraction": 0}, twice, r"names \['a'\], wanted each of \['a', 'b'\]"),
        ({"case_weights": {"c0": 1}, "object_fraction": 0}, same, "'c0', which several datasets have"),
    ]:
        with pytest.raises(ValueError, match=message):
            Places(d3.PatchSampler((8, 8, 8), **kwargs), cases)
    for kwargs, message in [({"p_scale": 2}, "p_scale"), ({"scale": (0, 1)}, "scale"), ({"rotation_deg": 200}, "rot")]:
        with pytest.raises(ValueError, match=message):
            d3.Geometry(**kwargs)
