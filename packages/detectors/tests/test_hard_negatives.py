"""Which anchors are drawn: how many, how hard, how evenly, and always the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from girih_detectors import sample_anchors
from girih_detectors.over_ranks import lowest_over_ranks

SETTINGS = {"per_image": 32, "positive_fraction": 0.33, "pool": 20}


def scene(images=4, anchors=2000, positives=0, seed=0):
    """Scores, anchors of objects, background and images, all drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(images, anchors, generator=generator)
    chosen = torch.randperm(images * anchors, generator=generator)[:positives].sort().values
    background = torch.ones(images * anchors, dtype=torch.bool)
    background[chosen] = False
    voxels = torch.randn(images, 1, 4, 4, 4, generator=generator)
    return scores, chosen, background.reshape(images, anchors), voxels


@pytest.mark.parametrize(("available", "kept", "negatives"), [(1, 1, 2), (5, 5, 10), (42, 42, 85), (200, 42, 85)])
def test_numbers_measured_on_nndetection(available, kept, negatives) -> None:  # four images
    found = sample_anchors(*scene(positives=available), **SETTINGS)
    assert [len(rows) for rows in found] == [kept, negatives]


def test_a_batch_without_objects_draws_as_many_negatives_as_a_full_one() -> None:
    kept, negatives = sample_anchors(*scene(positives=0), **SETTINGS)
    assert (len(kept), len(negatives)) == (0, 85)  # nnDetection: 2


def test_negatives_are_drawn_once_each_from_the_hardest_of_the_background() -> None:
    scores, positives, background, images = scene(positives=5)
    background[:, 1000:] = False  # not valid
    kept, negatives = sample_anchors(scores, positives, background, images, **SETTINGS)
    assert sorted(kept.tolist()) == positives.tolist()
    assert len(set(negatives.tolist())) == len(negatives) == 10
    allowed = torch.where(background, scores, -torch.inf).flatten()
    pool = allowed.argsort(descending=True)[:200]
    assert torch.isin(negatives, pool).all()
    assert not torch.isin(negatives, pool[:10]).all()  # drawn, not the very hardest


def test_everything_is_drawn_where_there_is_less_than_wanted() -> None:
    scores, positives, background, images = scene(images=1, anchors=12, positives=7)
    kept, negatives = sample_anchors(scores, positives, background, images, **SETTINGS)
    assert sorted(kept.tolist()) == positives.tolist()
    assert sorted(negatives.tolist()) == background.flatten().nonzero()[:, 0].tolist()
    _, negatives = sample_anchors(scores, positives, torch.zeros_like(background), images, **SETTINGS)
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
    scores, positives, background, images = scene(positives=200)
    kept, negatives = sample_anchors(scores, positives, background, images, **SETTINGS)
    order = torch.tensor([2, 0, 3, 1])

    def moved(rows):
        place = torch.empty(4, dtype=torch.int64).scatter_(0, order, torch.arange(4))
        return (place[rows // 2000] * 2000 + rows % 2000).sort().values

    again = sample_anchors(scores[order], moved(positives), background[order], images[order], **SETTINGS)
    assert torch.equal(again[0].sort().values, moved(kept))
    assert torch.equal(again[1].sort().values, moved(negatives))


def test_a_voxel_that_changes_by_a_hair_draws_anew() -> None:
    scores, positives, background, images = scene(images=1, positives=200)
    first = sample_anchors(scores, positives, background, images, **SETTINGS)
    images[0, 0, 1, 2, 3] = torch.nextafter(images[0, 0, 1, 2, 3], torch.tensor(torch.inf))
    second = sample_anchors(scores, positives, background, images, **SETTINGS)
    assert set(first[0].tolist()) != set(second[0].tolist())
    assert set(first[1].tolist()) != set(second[1].tolist())


def test_every_positive_and_every_negative_of_the_pool_is_drawn_equally_often() -> None:
    scores, positives, background, _ = scene(images=1, positives=40)
    pool = torch.where(background, scores, -torch.inf).flatten().argsort(descending=True)[:400]
    count, draws = torch.zeros(2000), 1000
    for draw in range(draws):
        image = torch.full((1, 1, 1, 1, 1), 1.0 + draw)
        for rows in sample_anchors(scores, positives, background, image, **SETTINGS):
            count[rows] += 1
    assert count.sum() == count[positives].sum() + count[pool].sum() == draws * (10 + 20)
    for rows, p in ((positives, 10 / 40), (pool, 20 / 400)):
        spread = (draws * p * (1 - p)) ** 0.5
        deviation = (count[rows] - draws * p) / spread
        assert deviation.abs().max() < 4.5
        assert 0.7 < deviation.std() < 1.3


def test_ties_are_broken_by_ticket_not_by_place() -> None:  # as at the start in bfloat16, when all scores are one
    scores, positives, background, images = scene(images=1)
    _, negatives = sample_anchors(torch.zeros_like(scores), positives, background, images, **SETTINGS)
    assert len(negatives) == 20
    assert negatives.max() > 1000 > negatives.min()


def test_a_score_that_is_not_a_number_is_not_passed_over() -> None:
    scores, positives, background, images = scene(images=1)
    scores[0, :1500] = torch.nan
    _, negatives = sample_anchors(scores, positives, background, images, **SETTINGS)
    assert (negatives < 1500).all()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=30), st.integers(0, 35))
def test_lowest_rows_are_those_of_a_sorted_list(rows, k) -> None:
    first, second = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2).T
    want = sorted(range(len(rows)), key=lambda i: (*rows[i], i))[:k]
    assert lowest_over_ranks(k, first.float(), second).tolist() == want
