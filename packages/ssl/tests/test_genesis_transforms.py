import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from girih_ssl import genesis_transforms as transforms
from girih_ssl.genesis_transforms import (
    KNOTS,
    bend,
    chance,
    draw_boxes,
    draw_curve,
    draw_flips,
    noise_like,
    rescale_,
    value_range,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_channels_are_rescaled_each_by_its_own_range():
    patch = torch.tensor([[-2.0, 0.0, 6.0], [5.0, 5.5, 6.0]]).reshape(2, 1, 1, 3)
    rescale_(patch, *value_range(patch, None))
    assert patch.flatten().tolist() == [0, 0.25, 1, 0, 0.5, 1]


def test_a_constant_channel_becomes_zero_and_nan_spreads():
    patch = torch.full((3, 2, 2, 2), 7.0)
    patch[1, 0, 0, 0], patch[2, 0, 0, 0] = torch.nan, torch.inf
    rescale_(patch, *value_range(patch, None))
    assert (patch[0] == 0).all()
    assert patch[1].isnan().all()
    assert patch[2].isnan().any()


def test_a_chance_of_0_is_never_and_of_1_always():
    g = generator()
    assert not any(chance(g, 0.0) for _ in range(1000))
    assert all(chance(g, 1.0) for _ in range(1000))
    assert np.mean([chance(g, 0.3) for _ in range(4000)]) == pytest.approx(0.3, abs=0.03)


def test_flips_are_as_often_as_by_the_rule():
    g = generator()
    found = [tuple(draw_flips(g, 0.4, 3)) for _ in range(6000)]
    # No flip: 0.6; two of the same axis: 0.4 * 0.4 * 0.6 / 3.
    assert np.mean([flips == () for flips in found]) == pytest.approx(0.6 + 0.032, abs=0.02)
    for axis in (1, 2, 3):  # once or three times: 0.24 / 3; one of two: 0.096 * 4 / 9; odd of three: 0.064 * 13 / 27
        odd = 0.24 / 3 + 0.096 * 4 / 9 + 0.064 * 13 / 27
        assert np.mean([axis in flips for flips in found]) == pytest.approx(odd, abs=0.02)


def test_flips_of_the_same_axis_cancel():
    assert [draw_flips(generator(seed), 1.0, 0) for seed in range(3)] == [[]] * 3
    assert all(len(draw_flips(generator(seed), 1.0, 3)) in (1, 3) for seed in range(50))
    assert all(len(draw_flips(generator(seed), 1.0, 2)) in (0, 2) for seed in range(50))


def controls(seed):
    """The control points of a curve, in the order in which it draws them."""
    return torch.rand(4, generator=generator(seed), dtype=torch.float64).reshape(2, 2).numpy()


@given(st.integers(0, 2**31), st.booleans())
@settings(max_examples=25)
def test_a_curve_is_the_rule_at_an_abscissa_at_most_half_a_knot_away(genesis_rule, seed, inverted):
    values = torch.rand(1, 9, 10, 11, generator=generator(seed + 1))
    found = bend(values, draw_curve(generator(seed), float(inverted))).double().numpy()
    half = 0.5 / KNOTS + 1e-6  # and a rounding of the value
    near = [
        genesis_rule.bend(np.clip(values.double().numpy() + shift, 0, 1), controls(seed), inverted=inverted)
        for shift in (-half, half)
    ]
    assert (found >= np.minimum(*near) - 2e-6).all()  # curves are monotone
    assert (found <= np.maximum(*near) + 2e-6).all()


def test_curves_are_close_to_the_rule(genesis_rule):
    values = torch.linspace(0, 1, 10_000).reshape(1, 10, 10, 100)
    errors = []
    for seed in range(40):
        exact = genesis_rule.bend(values.double().numpy(), controls(seed), inverted=False)
        errors.append(np.abs(bend(values, draw_curve(generator(seed), 0.0)).numpy() - exact))
    assert np.mean(errors) < 1e-4
    assert np.quantile(errors, 0.999) < 1e-3


@pytest.mark.parametrize("inverted", [False, True])
def test_a_curve_joins_two_corners_and_never_turns(inverted):
    for seed in range(100):
        curve = draw_curve(generator(seed), float(inverted))
        assert curve.shape == (KNOTS + 1,)
        assert curve[[0, -1]].tolist() == [float(inverted), float(not inverted)]
        steps = curve.diff() * (-1 if inverted else 1)
        assert (steps >= 0).all()


def test_the_steepest_curve_there_is(monkeypatch):  # x'(1/2) = 0 with the control points (1, 1/2) and (0, 1/2)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([1.0, 0.5, 0.0, 0.5]))
    monkeypatch.setattr(transforms, "chance", lambda *_: False)
    curve = draw_curve(generator(), 0.0)
    assert curve.isfinite().all()
    assert (curve.diff() >= 0).all()
    assert float(curve[KNOTS // 2]) == pytest.approx(0.5, abs=1e-3)


def test_half_of_the_curves_fall():
    falling = [float(draw_curve(generator(seed), 0.5)[0]) == 1 for seed in range(400)]
    assert np.mean(falling) == pytest.approx(0.5, abs=0.08)


def test_values_outside_0_to_1_are_those_of_the_ends_and_nan_is_no_crash():
    curve = draw_curve(generator(), 0.0)
    values = torch.tensor([-1e9, -0.1, 1.1, 1e9, -torch.inf, torch.inf, torch.nan]).reshape(1, 1, 1, 7)
    found = bend(values, curve).flatten()
    assert found[:6].tolist() == [0, 0, 1, 1, 0, 1]
    assert 0 <= float(found[6]) <= 1


def test_bending_modifies_neither_patch_nor_curve():
    patch, curve = torch.rand(2, 3, 4, 5), draw_curve(generator(), 0.0)
    before = patch.clone(), curve.clone()
    bend(patch[:, 1:, :, 2:], curve)
    assert torch.equal(patch, before[0])
    assert torch.equal(curve, before[1])


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("patch", [(64, 64, 64), (14, 33, 128)])
def test_boxes_are_as_large_as_published_and_off_the_border(patch, outside):
    g = generator()
    boxes = [box for _ in range(300) for box in draw_boxes(g, patch, outside=outside, probability=0.95, most=5)]
    for axis, side in enumerate(patch):
        sides = {box[axis].stop - box[axis].start for box in boxes}
        low, high = (side - 4 * side // 7, side - 3 * side // 7) if outside else (side // 6, side // 3)
        assert sides == set(range(low, high + 1))
        assert min(box[axis].start for box in boxes) == 3
        assert max(box[axis].stop for box in boxes) == side - 3


def test_boxes_are_as_many_as_published():
    g = generator()
    inside = [len(draw_boxes(g, (20, 20, 20), outside=False, probability=0.95, most=5)) for _ in range(700)]
    outside = [len(draw_boxes(g, (20, 20, 20), outside=True, probability=0.95, most=5)) for _ in range(700)]
    assert set(inside) == {0, 1, 2, 3, 4, 5}
    assert set(outside) == {1, 2, 3, 4, 5}
    assert np.mean(inside) == pytest.approx(sum(0.95**n for n in range(1, 6)), abs=0.1)
    assert np.mean(outside) == pytest.approx(1 + sum(0.95**n for n in range(1, 5)), abs=0.1)


@pytest.mark.parametrize(("outside", "measured"), [(False, 0.059), (True, 0.32)])  # on the public code, at 64^3
def test_the_painted_share_is_that_of_the_public_code(outside, measured):
    g, shares = generator(), []
    for _ in range(300):
        inside = torch.zeros(64, 64, 64, dtype=torch.bool)
        for box in draw_boxes(g, (64, 64, 64), outside=outside, probability=0.95, most=5):
            inside[box] = True
        shares.append(float(inside.float().mean()))
    assert np.mean(shares) == pytest.approx(measured, rel=0.06)
    assert max(shares) < (0.5 if outside else 0.12)


@pytest.mark.parametrize(("outside", "smallest"), [(False, 8), (True, 14)])
def test_the_smallest_patch_that_can_be_painted(outside, smallest):
    def has_room(side):
        low, high = (side - 4 * side // 7, side - 3 * side // 7) if outside else (side // 6, side // 3)
        return low >= 1 and side - high - 3 >= 3

    assert [side for side in range(1, 300) if has_room(side)] == list(range(smallest, 300))
    draw_boxes(generator(), (smallest, 30, 30), outside=outside, probability=1.0, most=5)
    with pytest.raises(ValueError, match=f"patch: found .* wanted at least {smallest} a side to paint"):
        draw_boxes(generator(), (30, 30, smallest - 1), outside=outside, probability=1.0, most=5)


@pytest.mark.parametrize("shape", [(1, 32, 32, 32), (2, 3, 5, 7), (1, 1, 1, 1)])
def test_noise_is_uniform_and_follows_from_the_generator(shape):
    patch = torch.zeros(shape)
    noise = noise_like(patch, generator(1))
    assert noise.shape == shape
    assert noise.dtype == torch.float32
    assert ((noise > 0) & (noise < 1)).all()
    assert torch.equal(noise, noise_like(patch, generator(1)))
    assert not torch.equal(noise, noise_like(patch, generator(2)))


def test_noise_fills_the_unit_interval_evenly():
    noise = noise_like(torch.zeros(1, 64, 64, 64), generator()).flatten()
    steps = (noise * 2**16 - 0.5).long()
    assert torch.equal((steps + 0.5) / 2**16, noise)  # the middles of 2^16 steps, exactly
    rank = torch.arange(len(noise)) / len(noise)
    assert float((noise.sort().values - rank).abs().max()) < 2 / len(noise) ** 0.5  # Kolmogorov-Smirnov
    for lag in (1, 2, 3, 4, 64):  # four numbers are cut from one
        assert abs(float(torch.corrcoef(torch.stack((noise[:-lag], noise[lag:])))[0, 1])) < 0.01


def test_the_curve_has_the_knots_that_the_docstring_says():
    assert f"1 / {2 * KNOTS}" in transforms.bend.__doc__
