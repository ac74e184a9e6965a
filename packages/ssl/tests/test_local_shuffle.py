"""The shuffle of all voxels at once against the rule: one window after the other."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from girih_ssl.local_shuffle import Shuffle, Windows, draw_windows, last_windows, touching

CPU = torch.device("cpu")


def draw(seed, patch, count=10_000):
    return draw_windows(torch.Generator().manual_seed(seed), patch, count)


def as_list(windows):
    """First voxel, sides and permutation of every window, as the rule takes them."""
    sizes = windows.sides.prod(0).tolist()
    runs = [windows.permutations[a : a + n].numpy() for a, n in zip(windows.first.tolist(), sizes, strict=True)]
    return list(zip(windows.starts.T.tolist(), windows.sides.T.tolist(), runs, strict=True))


def shuffled(patch, windows):
    zyx = tuple(patch.shape[1:])
    return Shuffle(windows, zyx, CPU)(patch, tuple(slice(0, side) for side in zyx))


def places(patch_zyx):
    """A patch of three channels that holds every voxel's z, y and x."""
    return torch.stack(torch.meshgrid(*(torch.arange(float(side)) for side in patch_zyx), indexing="ij"))


def test_two_windows_by_hand():
    # x: 0 1 2 3 4 5; first voxels 1-3 are reversed: 0 3 2 1 4 5; then original voxels 3-4 change places: 0 3 2 4 3 5
    windows = Windows(
        starts=torch.tensor([[0, 0], [0, 0], [1, 3]]),
        sides=torch.tensor([[1, 1], [1, 1], [3, 2]]),
        first=torch.tensor([0, 7]),
        permutations=torch.tensor([2, 1, 0, 2, 1, 0, 0, 1, 0, 1]),
    )
    found = shuffled(torch.arange(6.0).reshape(1, 1, 1, 6), windows)
    assert found.flatten().tolist() == [0, 3, 2, 4, 3, 5]
    assert last_windows(windows, (1, 1, 6)).flatten().tolist() == [0, 1, 1, 2, 2, 0]


@pytest.mark.parametrize("patch", [(64, 64, 64), (40, 20, 90), (14, 200, 31), (10, 10, 10)])
def test_all_at_once_is_the_same_as_one_after_the_other(patch, genesis_rule):
    windows = draw(1, patch, 3000)
    volume = torch.rand(2, *patch, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(shuffled(volume, windows), genesis_rule.shuffle(volume.numpy(), as_list(windows)))


@given(st.integers(0, 2**31), st.tuples(*[st.integers(10, 45)] * 3), st.integers(1, 60))
@settings(max_examples=30)
def test_few_windows_of_any_patch(seed, patch, count):
    windows = draw(seed, patch, count)
    last = np.arange(patch[0] * patch[1]).repeat(patch[2]).reshape(patch)
    for number, (start, sides, _) in enumerate(as_list(windows)):
        last[tuple(slice(a, a + s) for a, s in zip(start, sides, strict=True))] = patch[0] * patch[1] + number
    assert np.array_equal(last_windows(windows, patch), last)


def test_float_division_of_the_places_of_a_window_is_exact():
    for sides in ((51, 51, 51), (1, 360, 360), (2, 3, 4000)):  # of patches of up to 2^27 voxels
        place = torch.arange(float(np.prod(sides)))
        for divisor in (sides[1] * sides[2], sides[2]):
            assert torch.equal((place / divisor).floor().long(), place.long() // divisor)


def test_pieces_fit_together():
    windows, volume = draw(2, (30, 40, 20), 500), torch.rand(1, 30, 40, 20)
    expected = shuffled(volume, windows)
    box = (slice(4, 17), slice(3, 30), slice(9, 20))
    assert torch.equal(Shuffle(windows, (30, 40, 20), CPU)(volume, box), expected[:, *box])
    near = touching(windows, [box])
    assert 0 < len(near.first) < 500
    assert torch.equal(Shuffle(near, (30, 40, 20), CPU)(volume, box), expected[:, *box])


def test_windows_that_touch_a_box_share_a_voxel_with_it():
    windows = draw(3, (30, 40, 20), 500)
    box = (slice(4, 9), slice(3, 6), slice(9, 20))
    inside = torch.zeros(30, 40, 20, dtype=torch.bool)
    inside[box] = True
    found = [bool(inside[tuple(slice(a, a + s) for a, s in zip(*w[:2], strict=True))].any()) for w in as_list(windows)]
    near = touching(windows, [box])
    assert torch.equal(near.starts, windows.starts[:, torch.tensor(found)])
    assert torch.equal(near.first, windows.first[torch.tensor(found)])


def test_no_window_at_all_changes_nothing():
    windows = touching(draw(0, (20, 20, 20), 50), [])
    volume = torch.rand(1, 20, 20, 20)
    assert len(windows.first) == 0
    assert torch.equal(shuffled(volume, windows), volume)


@pytest.mark.parametrize("patch", [(64, 64, 64), (20, 35, 128)])
def test_no_voxel_comes_from_farther_than_a_window_reaches(patch):
    found = shuffled(places(patch), draw(4, patch))
    far = (found - places(patch)).abs().amax((1, 2, 3)).tolist()
    assert far == [side // 10 - 1 for side in patch]


def test_values_are_those_of_the_patch_and_as_many_change_as_by_the_rule(genesis_rule):
    patch = (64, 64, 64)
    volume = torch.randperm(64**3, generator=torch.Generator().manual_seed(0)).float().reshape(1, *patch)
    rng = np.random.default_rng(0)
    rule = np.mean(genesis_rule.shuffle(volume.numpy(), genesis_rule.draw_windows(patch, rng)) != volume.numpy())
    shares = []
    for seed in range(4):
        found = shuffled(volume, draw(seed, patch))
        assert np.isin(found.numpy(), volume.numpy()).all()
        shares.append(float((found != volume).float().mean()))
    assert np.mean(shares) == pytest.approx(rule, abs=0.01)
    assert np.mean(shares) == pytest.approx(0.76, abs=0.01)  # measured on the public code


def test_channels_are_shuffled_alike():
    windows, volume = draw(5, (20, 30, 40)), torch.rand(1, 20, 30, 40)
    found = shuffled(torch.cat((volume, volume + 2)), windows)
    assert torch.equal(found[0] + 2, found[1])


def test_sides_and_positions_are_uniform_and_inside():
    patch = (30, 57, 128)
    windows = draw(6, patch, 60_000)
    for side, sides, starts in zip(patch, windows.sides, windows.starts, strict=True):
        counts = sides.bincount(minlength=side // 10 + 1)
        assert counts[0] == 0
        assert len(counts) == side // 10 + 1
        assert_uniform(counts[1:])
        for size in (1, side // 10):
            assert_uniform(starts[sides == size].bincount(minlength=side - size + 1))
            assert int(starts[sides == size].max()) == side - size


def test_every_run_is_a_permutation_and_equal_windows_have_different_ones():
    found = as_list(draw(7, (40, 40, 40), 500))
    assert all(np.array_equal(np.sort(run), np.arange(len(run))) for _, _, run in found)
    runs = [tuple(run) for _, _, run in found if len(run) == 48]
    assert len(set(runs)) > 0.5 * len(runs) > 2


def test_permutations_are_uniform():
    orders, sources = torch.zeros(6), torch.zeros(8, 8)
    for seed in range(3000):
        for _, sides, run in as_list(draw(seed, (20, 20, 30), 6)):
            if len(run) == 3:
                orders[[[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]].index(run.tolist())] += 1
            if sides == [2, 2, 2]:
                sources[np.arange(8), run] += 1
    assert_uniform(orders)  # every order of three voxels
    for row in sources:  # every voxel of a window of eight, for each of its places
        assert_uniform(row)


def test_windows_share_as_few_permutations_as_is_said():
    windows = draw(11, (64, 64, 64))
    size = windows.sides.prod(0)
    sizes = {a * b * c for a in range(1, 7) for b in range(1, 7) for c in range(1, 7)} - {1}
    assert (len(sizes), sum(sizes)) == (39, 2219)
    assert len(windows.first[size > 1].unique()) <= 2219
    assert int((size > 1).sum()) == pytest.approx(9954, abs=30)


def test_equal_seeds_equal_windows():
    first, second, other = draw(8, (40, 40, 40), 100), draw(8, (40, 40, 40), 100), draw(9, (40, 40, 40), 100)
    for name in ("starts", "sides", "first", "permutations"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert not torch.equal(first.starts, other.starts)


@pytest.mark.parametrize("patch", [(9, 20, 20), (20, 20, 4), (512, 512, 513)])
def test_a_patch_that_cannot_be_shuffled_is_refused(patch):
    with pytest.raises(ValueError, match=r"patch: found .* wanted at least 10 a side and at most 134217728 together"):
        draw(0, patch)


def assert_uniform(counts):
    """Five standard deviations of chi-square (fixed seeds: it holds or it does not)."""
    counts = counts.double()
    expected = counts.sum() / len(counts)
    assert expected > 5
    degrees = len(counts) - 1
    assert float(((counts - expected) ** 2 / expected).sum()) < degrees + 5 * (2 * degrees) ** 0.5
