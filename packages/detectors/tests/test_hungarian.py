"""The matcher against trying every assignment, and its short cut against the whole matrix."""

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from girih_detectors import match_hungarian, matching_costs

PAPER = {"classification": 2.0, "l1": 5.0, "giou_weight": 2.0, "gamma": 1.0, "alpha": 0.75}


def least_total(costs):
    """The least total of any assignment of n objects to q queries, by trying all; costs (n, q)."""
    n, q = costs.shape
    if n > q:
        return least_total(costs.T)
    return min(sum(float(costs[i, j]) for i, j in enumerate(chosen)) for chosen in permutations(range(q), n))


def total(costs, pairs, image, first, last):
    """What the pairs of an image cost whose queries are first..last - 1, and how many they are."""
    mine = (pairs[0] == image) & (pairs[1] >= first) & (pairs[1] < last)
    return costs[image, pairs[2, mine], pairs[1, mine]].double().sum().item(), int(mine.sum())


def check_unique(pairs):
    for columns in (pairs[[0, 1]], pairs[[0, 2]]):
        assert columns.shape[1] == columns.unique(dim=1).shape[1]


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=3),
    st.integers(1, 5),
    st.integers(0, 2**31),
    st.sampled_from([3, 10**6]),  # few values: many ties
)
def test_the_matching_is_the_cheapest_of_all(objects, queries, seed, values) -> None:
    generator = torch.Generator().manual_seed(seed)
    costs = torch.randint(-values, values, (len(objects), max(objects), queries), generator=generator) / 8
    pairs = match_hungarian(costs, objects, [queries])
    check_unique(pairs)
    for image, n in enumerate(objects):
        found, count = total(costs, pairs, image, 0, queries)
        assert count == min(n, queries)
        assert found == least_total(costs[image, :n])


@given(st.integers(1, 4), st.lists(st.booleans(), min_size=1, max_size=6), st.integers(0, 2**31))
def test_what_is_not_usable_takes_no_part(objects, usable, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    costs = torch.randint(-9, 9, (1, objects, len(usable)), generator=generator).float()
    mask = torch.tensor([usable])
    spoilt = costs.masked_fill(~mask[:, None], math.nan)
    pairs = match_hungarian(spoilt, [objects], [len(usable)], mask)
    check_unique(pairs)
    assert mask[0, pairs[1]].all()
    assert pairs.shape[1] == min(objects, sum(usable))
    assert costs[0, pairs[2], pairs[1]].sum() == least_total(costs[0][:, mask[0]])


def test_layers_are_matched_one_by_one() -> None:  # 2 queries, 4 and 3; every layer has its own pairs, in its order
    costs = torch.randn(2, 3, 9)
    objects = [3, 1]
    pairs = match_hungarian(costs, objects, [2, 4, 3])
    assert (pairs[1].diff()[pairs[0].diff() < 0] > 0).all()
    for image, n in enumerate(objects):
        for first, last in ((0, 2), (2, 6), (6, 9)):
            found, count = total(costs, pairs, image, first, last)
            assert count == min(n, last - first)
            assert found == pytest.approx(least_total(costs[image, :n, first:last]))


@pytest.mark.parametrize("objects", [12, 40])
def test_the_cheapest_of_each_object_tell_what_all_do(objects) -> None:
    # all objects want the same few queries, so that many go without their first choice
    costs = torch.randn(1, objects, 5000) + 10 * torch.rand(5000)
    pairs = match_hungarian(costs, [objects], [5000])
    chosen, queries = linear_sum_assignment(costs[0].double().numpy())
    assert pairs[2].tolist() == chosen.tolist()
    assert pairs[1].tolist() == queries.tolist()
    assert torch.equal(match_hungarian(costs.double(), [objects], [5000]), pairs)


@pytest.mark.parametrize("values", [2, 20])
def test_with_ties_the_total_is_the_same(values) -> None:
    costs = torch.randint(0, values, (1, 12, 3000)).float()
    pairs = match_hungarian(costs, [12], [3000])
    check_unique(pairs)
    whole = costs[0].numpy()
    assert costs[0, pairs[2], pairs[1]].sum() == whole[linear_sum_assignment(whole)].sum()


def test_nothing_to_match() -> None:
    assert match_hungarian(torch.empty(2, 0, 5), [0, 0], [5]).shape == (3, 0)
    assert match_hungarian(torch.zeros(2, 1, 5), [0, 1], [5])[0].tolist() == [1]
    assert match_hungarian(torch.zeros(1, 1, 5), [1], [5], torch.zeros(1, 5, dtype=torch.bool)).shape == (3, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_costs_that_are_not_finite_are_named(value) -> None:
    costs = torch.zeros(2, 3, 7)
    costs[1, 2, 4] = value
    with pytest.raises(ValueError, match="image 1, layer 1: a matching cost is NaN or infinite"):
        match_hungarian(costs, [1, 3], [4, 3])
    with pytest.raises(ValueError, match="the second, layer 0"):
        match_hungarian(costs, [1, 3], [7], names=["the first", "the second"])


def test_costs_by_hand() -> None:
    # classes at p = 1/2 and 1/5; cubes of side 0.4 around 0.5, and shifted by 0.2 along z: IoU 1/3, no empty hull
    logits = torch.tensor([[[0.0, -math.log(4.0)]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 0.4, 0.4, 0.4]]])
    objects = torch.tensor([[[0.5, 0.5, 0.5, 0.4, 0.4, 0.4], [0.7, 0.5, 0.5, 0.4, 0.4, 0.4]]])
    found = matching_costs(logits, boxes, objects, torch.tensor([[0, 1]]), **PAPER)
    first = 0.75 * 0.5 * math.log(2) - 0.25 * 0.5 * math.log(2)
    second = 0.75 * 0.8 * math.log(5) - 0.25 * 0.2 * math.log(1.25)
    want = torch.tensor([[[2 * first - 2], [2 * second + 5 * 0.2 - 2 / 3]]])
    torch.testing.assert_close(found, want)
    squared = matching_costs(
        logits,
        boxes,
        objects,
        torch.tensor([[0, 1]]),
        classification=1.0,
        l1=0.0,
        giou_weight=0.0,
        gamma=2.0,
        alpha=0.25,
    )
    second = 0.25 * 0.64 * math.log(5) - 0.75 * 0.04 * math.log(1.25)
    torch.testing.assert_close(squared[0, :, 0], torch.tensor([(0.25 - 0.75) * 0.25 * math.log(2), second]))


def test_costs_are_float32_and_finite_at_the_extremes() -> None:
    logits = torch.tensor([[[-1e4], [1e4]]], dtype=torch.bfloat16)
    flat = torch.zeros(1, 2, 6, dtype=torch.bfloat16)
    costs = matching_costs(logits, flat, torch.full((1, 1, 6), 0.5), torch.zeros(1, 1, dtype=torch.int64), **PAPER)
    assert costs.dtype == torch.float32
    assert costs.isfinite().all()
    assert not costs.requires_grad


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_query_of_which_anything_is_not_finite_costs_nan(value) -> None:
    logits, boxes = torch.zeros(1, 4, 2), torch.full((1, 4, 6), 0.5)
    logits[0, 1, 1] = boxes[0, 3, 5] = value  # no object is of class 1
    costs = matching_costs(logits, boxes, torch.full((1, 2, 6), 0.5), torch.zeros(1, 2, dtype=torch.int64), **PAPER)
    assert costs[0].isnan().tolist() == [[False, True, False, True]] * 2
