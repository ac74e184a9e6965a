"""Loss terms against their formulas in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from girih_detectors import cross_entropy_and_dice, sigmoid_focal_loss, smooth_l1


@given(st.floats(-30, 30), st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0, 2.0]), st.sampled_from([0.25, 0.75]))
def test_focal_equals_its_formula(logit, target, gamma, alpha) -> None:
    p = 1 / (1 + math.exp(-logit))
    if target:
        want = -alpha * (1 - p) ** gamma * math.log(p)
    else:
        want = -(1 - alpha) * p**gamma * (-logit - math.log1p(math.exp(-logit)))  # log(1 - p)
    found = sigmoid_focal_loss(torch.tensor(logit), torch.tensor(target), gamma=gamma, alpha=alpha)
    assert found.item() == pytest.approx(want, rel=1e-3, abs=1e-6)


def test_focal_of_a_prior_of_one_percent() -> None:  # alpha (1 - p) (-log p), and (1 - alpha) p (-log(1 - p))
    logit = torch.tensor([-math.log(99.0)] * 2)
    found = sigmoid_focal_loss(logit, torch.tensor([1.0, 0.0]), gamma=1.0, alpha=0.75)
    torch.testing.assert_close(found, torch.tensor([0.75 * 0.99 * 4.6051702, 0.25 * 0.01 * 0.01005034]))


def test_focal_gradient_is_finite_at_the_extremes() -> None:
    logits = torch.tensor([-1e4, 1e4, -1e4, 1e4], requires_grad=True)
    sigmoid_focal_loss(logits, torch.tensor([0.0, 0, 1, 1]), gamma=1.0, alpha=0.75).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_smooth_l1_has_its_corner_at_beta() -> None:
    found = smooth_l1(torch.tensor([0.0, 0.5, -1, 3]), torch.zeros(4), beta=1.0)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.125, 0.5, 2.5]))


def test_segmentation_terms_by_hand() -> None:
    # two images of one row; foreground probabilities .5 .5 | .9 .1, truth 1 0 | 1 0
    logits = torch.zeros(2, 2, 1, 1, 2)
    logits[1, 1, 0, 0] = torch.tensor([math.log(9.0), -math.log(9.0)])
    truth = torch.tensor([[True, False], [True, False]]).reshape(2, 1, 1, 2)
    entropy, dice = cross_entropy_and_dice(logits, truth)
    assert entropy.item() == pytest.approx((2 * math.log(2) + 2 * -math.log(0.9)) / 4)
    assert dice.item() == pytest.approx(1 - 2 * 1.4 / (2.0 + 2), abs=1e-5)  # pooled over the batch
    valid = torch.tensor([[False, False], [True, True]]).reshape(2, 1, 1, 2)
    entropy, dice = cross_entropy_and_dice(logits, truth, valid)
    assert entropy.item() == pytest.approx(-math.log(0.9))
    assert dice.item() == pytest.approx(1 - 2 * 0.9 / (1.0 + 1), abs=1e-5)


def test_dice_numerator_by_hand() -> None:  # 16 voxels of foreground probability 1/2, none true: 1 / 8
    _, dice = cross_entropy_and_dice(
        torch.zeros(2, 2, 2, 2, 2), torch.zeros(2, 2, 2, 2, dtype=torch.bool), dice_numerator=1.0
    )
    assert dice.item() == pytest.approx(1 - 1 / 8, abs=1e-5)
    logits = torch.tensor([-30.0, 30.0]).reshape(1, 2, 1, 1, 1)  # right, and all there is
    _, dice = cross_entropy_and_dice(logits, torch.ones(1, 1, 1, 1, dtype=torch.bool), dice_numerator=1e-5)
    assert dice.item() == pytest.approx(0, abs=1e-7)


def test_segmentation_without_foreground_has_only_the_gradient_of_cross_entropy() -> None:
    logits = torch.zeros(1, 2, 2, 2, 2, requires_grad=True)
    entropy, dice = cross_entropy_and_dice(logits, torch.zeros(1, 2, 2, 2, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(dice, logits, retain_graph=True)
    assert dice.item() == 1
    assert not gradient.any()
    (gradient,) = torch.autograd.grad(entropy, logits)
    assert (gradient[:, 1] > 0).all()


def test_nothing_valid_is_finite() -> None:
    nowhere = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    entropy, dice = cross_entropy_and_dice(torch.zeros(1, 2, 2, 2, 2), nowhere, nowhere)
    assert (entropy.item(), dice.item()) == (0, 1)


def test_terms_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = torch.zeros(1, 2, 2, 2, 2, dtype=torch.bfloat16)
        parts = [*cross_entropy_and_dice(logits, torch.ones(1, 2, 2, 2, dtype=torch.bool))]
        parts += [sigmoid_focal_loss(logits, torch.zeros_like(logits), gamma=1.0, alpha=0.75)]
        parts += [smooth_l1(logits, torch.ones(1, 2, 2, 2, 2), beta=1.0)]
    assert {part.dtype for part in parts} == {torch.float32}
