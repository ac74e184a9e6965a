"""Which anchors are drawn: how many, how hard, how evenly, and always the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from girih_detectors import sample_anchors
from girih_detectors.over_ranks import lowest_over_ranks

SETTINGS = {"per_image": 32, "positive_fraction": 0.33, "pool": 20}


def scene(images=4, anchors=2000, positives=0, seed=0):
    """Scores, anchors of objects, background and seeds of the images, all drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(images, anchors, generator=generator)
    chosen = torch.randperm(images * anchors, generator=generator)[:positives].sort().values
    background = torch.ones(images * anchors, dtype=torch.bool)
    background[chosen] = False
    seeds = torch.randint(2**62, (images,), generator=generator)
    return scores, chosen, background.reshape(images, anchors), seeds


@pytest.mark.parametrize(("available", "kept", "negatives"), [(1, 1, 2), (5, 5, 10), (42, 42, 85), (200, 42, 85)])
def test_numbers_measured_on_nndetection(available, kept, negatives) -> None:  # four images
    found = sample_anchors(*scene(positives=available), **SETTINGS)
    assert [len(rows) for rows in found] == [kept, negatives]


def test_a_batch_without_objects_draws_as_many_negatives_as_a_full_one() -> None:
    kept, negatives = sample_anchors(*scene(positives=0), **SETTINGS)
    assert (len(kept), len(negatives)) == (0, 85)  # nnDetection: 2


def test_negatives_are_drawn_once_each_from_the_hardest_of_the_background() -> None:
    scores, positives, background, seeds = scene(positives=5)
    background[:, 1000:] = False  # not valid
    kept, negatives = sample_anchors(scores, positives, background, seeds, **SETTINGS)
    assert sorted(kept.tolist()) == positives.tolist()
    assert len(set(negatives.tolist())) == len(negatives) == 10
    allowed = torch.where(background, scores, -torch.inf).flatten()
    pool = allowed.argsort(descending=True)[:200]
    assert torch.isin(negatives, pool).all()
    assert not torch.isin(negatives, pool[:10]).all()  # drawn, not the very hardest


def test_everything_is_drawn_where_there_is_less_than_wanted() -> None:
    scores, positives, background, seeds = scene(images=1, anchors=12, positives=7)
    kept, negatives = sample_anchors(scores, positives, background, seeds, **SETTINGS)
    assert sorted(kept.tolist()) == positives.tolist()
    assert sorted(negatives.tolist()) == background.flatten().nonzero()[:, 0].tolist()
    _, negatives = sample_anchors(scores, positives, torch.zeros_like(background), seeds, **SETTINGS)
    assert len(negatives) == 0


def test_the_same_batch_draws_the_same_whatever_the_generator_says() -> None:
    batch = scene(positives=200)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = sample_anchors(*batch, **SETTINGS)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    for a, b in zip(first, sample_anchors(*batch, **SETTINGS), strict=True):
        assert torch.equal(a, b)


def test_the_order_of_the_images_does_not_matter() -> None:  # nor, therefore, which rank has which
    scores, positives, background, seeds = scene(positives=200)
    kept, negatives = sample_anchors(scores, positives, background, seeds, **SETTINGS)
    order = torch.tensor([2, 0, 3, 1])

    def moved(rows):
        place = torch.empty(4, dtype=torch.int64).scatter_(0, order, torch.arange(4))
        return (place[rows // 2000] * 2000 + rows % 2000).sort().values

    again = sample_anchors(scores[order], moved(positives), background[order], seeds[order], **SETTINGS)
    assert torch.equal(again[0].sort().values, moved(kept))
    assert torch.equal(again[1].sort().values, moved(negatives))


def test_the_same_image_draws_anew_under_the_next_seed() -> None:
    scores, positives, background, seeds = scene(images=1, positives=200)
    first = sample_anchors(scores, positives, background, seeds, **SETTINGS)
    second = sample_anchors(scores, positives, background, seeds + 1, **SETTINGS)
    assert set(first[0].tolist()) != set(second[0].tolist())
    assert set(first[1].tolist()) != set(second[1].tolist())


def test_every_positive_and_every_negative_of_the_pool_is_drawn_equally_often() -> None:
    scores, positives, background, _ = scene(images=1, positives=40)
    pool = torch.where(background, scores, -torch.inf).flatten().argsort(descending=True)[:400]
    count, draws = torch.zeros(2000), 1000
    for draw in range(draws):
        for rows in sample_anchors(scores, positives, background, torch.tensor([draw]), **SETTINGS):
            count[rows] += 1
    assert count.sum() == count[positives].sum() + count[pool].sum() == draws * (10 + 20)
    for rows, p in ((positives, 10 / 40), (pool, 20 / 400)):
        spread = (draws * p * (1 - p)) ** 0.5
        deviation = (count[rows] - draws * p) / spread
        assert deviation.abs().max() < 4.5
        assert 0.7 < deviation.std() < 1.3


def test_ties_are_broken_by_ticket_not_by_place() -> None:  # as at the start in bfloat16, when all scores are one
    scores, positives, background, seeds = scene(images=1)
    _, negatives = sample_anchors(torch.zeros_like(scores), positives, background, seeds, **SETTINGS)
    assert len(negatives) == 20
    assert negatives.max() > 1000 > negatives.min()


def test_a_score_that_is_not_a_number_is_not_passed_over() -> None:
    scores, positives, background, seeds = scene(images=1)
    scores[0, :1500] = torch.nan
    _, negatives = sample_anchors(scores, positives, background, seeds, **SETTINGS)
    assert (negatives < 1500).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positive_fraction": 0.0}, "positive_fraction is 0.0, wanted between 0 and 1"),
        ({"positive_fraction": 1.0}, "positive_fraction is 1.0"),
        ({"positive_fraction": torch.nan}, "positive_fraction is nan"),
        ({"per_image": 1}, "per_image is 1, wanted enough for one positive"),
        ({"pool": 0}, "pool is 0, wanted 1 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        sample_anchors(*scene(positives=5), **(SETTINGS | changes))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=30), st.integers(0, 35))
def test_lowest_rows_are_those_of_a_sorted_list(rows, k) -> None:
    first, second = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2).T
    want = sorted(range(len(rows)), key=lambda i: (*rows[i], i))[:k]
    assert lowest_over_ranks(k, first.float(), second).tolist() == want
