"""Crops: their labels by hand and by counting voxels, where they lie, how they are cut, flipped and turned."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from girih_ssl.overlap_crops import Augmentation, base_grid, base_starts, cut_crops, draw_crops, overlap_shares

PLAIN = Augmentation(0.0, 0.0, 0.0, 0.0)
AUTHORS = Augmentation(0.2, 0.2, 0.1, 0.1)
small_grid = st.tuples(*[st.integers(1, 3)] * 3).filter(lambda grid: np.prod(grid) > 1)
small_crop = st.tuples(*[st.integers(1, 5)] * 3)


def shares(start, grid, crop):
    return overlap_shares(torch.tensor([start]), base_starts(grid, crop), crop)[0]


def test_the_base_crops_of_the_published_patch():  # 64 x 192 x 192 voxels in crops of 64^3
    grid = base_grid((64, 192, 192), (64, 64, 64))
    assert grid == (1, 3, 3)
    wanted = [[0, y, x] for y in (0, 64, 128) for x in (0, 64, 128)]
    assert base_starts(grid, (64, 64, 64)).tolist() == wanted


def test_an_aligned_crop_is_one_hot():
    grid, crop = (2, 3, 2), (4, 6, 2)
    base = base_starts(grid, crop)
    assert torch.equal(overlap_shares(base, base, crop), torch.eye(12))


def test_a_half_shift_along_one_axis_is_two_halves():  # grid of 2 x 2 x 2, crops 0 and 1 are neighbours along x
    assert shares((0, 0, 2), (2, 2, 2), (4, 4, 4)).tolist() == [0.5, 0.5, 0, 0, 0, 0, 0, 0]
    assert shares((0, 2, 0), (2, 2, 2), (4, 4, 4)).tolist() == [0.5, 0, 0.5, 0, 0, 0, 0, 0]
    assert shares((2, 0, 0), (2, 2, 2), (4, 4, 4)).tolist() == [0.5, 0, 0, 0, 0.5, 0, 0, 0]


def test_a_half_shift_along_two_axes_is_four_quarters_and_along_three_eight_eighths():
    assert shares((0, 2, 2), (1, 2, 2), (4, 4, 4)).tolist() == [0.25] * 4
    assert shares((1, 2, 3), (2, 2, 2), (2, 4, 6)).tolist() == [0.125] * 8


def test_a_shift_by_one_voxel_of_an_anisotropic_crop():  # 3/4 and 1/4 along z, 2/3 and 1/3 along x
    wanted = torch.tensor([3 / 4 * 2 / 3, 3 / 4 * 1 / 3, 1 / 4 * 2 / 3, 1 / 4 * 1 / 3])
    torch.testing.assert_close(shares((1, 0, 1), (2, 1, 2), (4, 2, 3)), wanted)


@given(small_grid, small_crop, st.data())
def test_labels_are_counted_voxels_and_sum_to_one(grid, crop, data):
    patch = tuple(n * side for n, side in zip(grid, crop, strict=True))
    starts = [tuple(data.draw(st.integers(0, p - c)) for p, c in zip(patch, crop, strict=True)) for _ in range(3)]
    counted = np.zeros((3, int(np.prod(grid))))
    for i, start in enumerate(starts):
        inside = np.zeros(patch, dtype=bool)
        inside[tuple(slice(s, s + c) for s, c in zip(start, crop, strict=True))] = True
        for j, (z, y, x) in enumerate(itertools.product(*(range(n) for n in grid))):
            (cz, cy, cx) = crop
            counted[i, j] = inside[z * cz : (z + 1) * cz, y * cy : (y + 1) * cy, x * cx : (x + 1) * cx].sum()
    assert (counted.sum(1) == np.prod(crop)).all()
    found = overlap_shares(torch.tensor(starts), base_starts(grid, crop), crop)
    torch.testing.assert_close(found, torch.from_numpy(counted / np.prod(crop)).float(), rtol=0, atol=0)
    torch.testing.assert_close(found.sum(-1), torch.ones(3))


@given(small_grid, small_crop, st.integers(1, 5), st.integers(0, 2**62))
def test_random_crops_lie_inside_the_patch_and_base_crops_on_the_grid(grid, crop, n, seed):
    patch = tuple(g * side for g, side in zip(grid, crop, strict=True))
    crops = draw_crops(torch.tensor([seed, seed + 1]), patch, crop, n, AUTHORS)
    k = int(np.prod(grid))
    assert crops.start.shape == (2, k + n, 3)
    assert (crops.start >= 0).all()
    assert (crops.start + torch.tensor(crop) <= torch.tensor(patch)).all()
    assert torch.equal(crops.start[:, :k], base_starts(grid, crop).expand(2, -1, -1))
    assert torch.equal(crops.overlap, overlap_shares(crops.start[:, k:], base_starts(grid, crop), crop))


def test_offsets_are_uniform_over_all_that_fit():  # 5 x 1 x 9 offsets, 4000 draws: 89 of each expected
    crops = draw_crops(torch.arange(100), (8, 4, 12), (4, 4, 4), 40, PLAIN)
    _, counts = crops.start[:, 6:].reshape(-1, 3).unique(dim=0, return_counts=True)
    assert len(counts) == 5 * 9
    assert counts.min() > 50
    assert counts.max() < 135


def test_a_sample_draws_the_same_in_any_batch():
    seeds = torch.tensor([5, 2**40, 7])
    together = draw_crops(seeds, (8, 8, 12), (4, 4, 4), 3, AUTHORS)
    for i, seed in enumerate(seeds):
        alone = draw_crops(seed[None], (8, 8, 12), (4, 4, 4), 3, AUTHORS)
        assert all(torch.equal(a[i], b[0]) for a, b in zip(together, alone, strict=True))
    assert not torch.equal(together.start[0], together.start[2])


def test_the_augmentations_happen_as_often_as_wanted():
    crops = draw_crops(torch.arange(200), (8, 8, 8), (4, 4, 4), 12, AUTHORS)  # 4000 crops; 3 sigma is 0.02
    odd = crops.transposed.float().mean()  # one and three quarters: two thirds of 0.2
    assert float(odd) == pytest.approx(0.2 * 2 / 3, abs=0.02)
    assert crops.mirrored[..., 0].float().mean() == pytest.approx(0.2, abs=0.02)
    shifted = crops.shift[crops.shift != 0]
    assert len(shifted) / crops.shift.numel() == pytest.approx(0.1, abs=0.015)
    assert 0.09 < shifted.abs().max() <= 0.1
    assert abs(shifted.mean()) < 0.01
    assert (crops.mirrored[:, :8].any(), crops.transposed[:, :8].any()) == (True, True)  # base crops as well


def test_without_augmentation_a_crop_is_a_slice():
    image = torch.randn(2, 3, 8, 6, 10)
    crops = draw_crops(torch.tensor([1, 2]), (8, 6, 10), (4, 3, 5), 2, PLAIN)
    cut = cut_crops(image, crops, (4, 3, 5))
    assert cut.shape == (2, 10, 3, 4, 3, 5)
    for b, m in itertools.product(range(2), range(10)):
        z, y, x = crops.start[b, m].tolist()
        assert torch.equal(cut[b, m], image[b, :, z : z + 4, y : y + 3, x : x + 5])


def test_the_base_crops_tile_the_patch():
    image = torch.arange(2 * 4 * 6 * 4.0).reshape(2, 1, 4, 6, 4)
    cut = cut_crops(image, draw_crops(torch.tensor([1, 2]), (4, 6, 4), (2, 3, 4), 1, PLAIN), (2, 3, 4))[:, :4]
    assert torch.equal(cut.flatten(1).sort().values, image.flatten(1))


def test_flips_and_turns_are_those_of_numpy():  # flips first, then q quarter turns in the plane (y, x)
    image = torch.randn(1, 2, 4, 8, 8)
    crops = draw_crops(torch.tensor([0]), (4, 8, 8), (2, 4, 4), 300, Augmentation(0.5, 0.75, 0.5, 2.0))
    cut = cut_crops(image, crops, (2, 4, 4)).numpy()
    seen = set()
    for m in range(cut.shape[1]):
        z, y, x = crops.start[0, m].tolist()
        plain = image[0, :, z : z + 2, y : y + 4, x : x + 4].numpy() + float(crops.shift[0, m])
        every = {
            (flips, q): np.rot90(np.flip(plain, [axis + 1 for axis in range(3) if flips[axis]]), q, axes=(2, 3))
            for flips in itertools.product((False, True), repeat=3)
            for q in range(4)
        }
        equal = {key for key, wanted in every.items() if np.allclose(cut[0, m], wanted)}
        assert len(equal) == 2  # two flips are a half turn
        seen |= equal
    assert len(seen) == 32


def test_a_turn_without_flips_is_one_of_three():
    image = torch.randn(1, 1, 2, 6, 3)
    crops = draw_crops(torch.tensor([0]), (2, 6, 3), (2, 3, 3), 100, Augmentation(0.0, 1.0, 0.0, 0.0))
    cut = cut_crops(image, crops, (2, 3, 3)).numpy()
    turns = []
    for m in range(102):
        y = int(crops.start[0, m, 1])
        plain = image[0, :, :, y : y + 3].numpy()
        turns += [q for q in range(4) if np.array_equal(cut[0, m], np.rot90(plain, q, axes=(2, 3)))]
    assert len(turns) == 102
    assert set(turns) == {1, 2, 3}


def test_a_crop_with_unequal_sides_in_the_plane_is_not_turned():
    turned = Augmentation(0.0, 1.0, 0.0, 0.0)
    crops = draw_crops(torch.tensor([0]), (8, 8, 4), (4, 4, 2), 5, turned)
    assert not crops.transposed.any()
    assert not crops.mirrored.any()


def test_a_half_precision_image_stays_so():
    crops = draw_crops(torch.tensor([0]), (4, 4, 8), (4, 4, 4), 1, AUTHORS)
    assert cut_crops(torch.randn(1, 1, 4, 4, 8).bfloat16(), crops, (4, 4, 4)).dtype == torch.bfloat16


@pytest.mark.parametrize(("patch", "reason"), [((4, 8, 8), "wanted multiples"), ((8, 12, 8), "wanted multiples")])
def test_a_patch_that_crops_do_not_tile_is_refused(patch, reason):
    with pytest.raises(ValueError, match=reason):
        base_grid(patch, (8, 8, 8))


def test_a_single_base_crop_is_refused():
    with pytest.raises(ValueError, match=r"found \(8, 8, 8\) voxels \(z, y, x\), a single base crop of \(8, 8, 8\)"):
        base_grid((8, 8, 8), (8, 8, 8))
