"""Models Genesis as a whole: the order of its corruptions, its loss, its borders."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from girih_ssl import ModelsGenesis, ModelsGenesisConfig, models_genesis, sample_generators
from girih_ssl import genesis_transforms as transforms
from girih_ssl.local_shuffle import draw_windows
from girih_ssl.models_genesis import corrupt
from girih_ssl.testing import ObjectiveContract, TinyEncoder, TinyNeck, make_batch, tiny_parts

PATCH = (16, 24, 20)
NOTHING = ModelsGenesisConfig(
    flip_probability=0.0, shuffle_probability=0.0, curve_probability=0.0, paint_probability=0.0
)


class TestModelsGenesis(ObjectiveContract):
    config = ModelsGenesisConfig
    patch_zyx = (20, 20, 20)


class Fixed(nn.Module):
    """Stands in for the head: the prediction is a tensor of our choice."""

    def __init__(self, prediction):
        super().__init__()
        self.prediction = nn.Parameter(prediction)

    def forward(self, *_):
        return self.prediction


def genesis_that_predicts(prediction, config):
    channels = prediction.shape[1]
    genesis = ModelsGenesis(TinyEncoder(channels), TinyNeck(), channels, config)
    genesis.head = Fixed(prediction)
    return genesis


def only(**settings):
    return replace(NOTHING, **settings)


def test_the_defaults_are_those_published():  # Zhou et al. 2021, public code: config.py and utils.py
    assert {field.name: field.default for field in fields(ModelsGenesisConfig)} == {
        "flip_probability": 0.4,
        "max_flips": 3,
        "shuffle_probability": 0.5,
        "shuffle_windows": 10_000,
        "curve_probability": 0.9,
        "inverted_share": 0.5,
        "paint_probability": 0.9,
        "inpaint_share": 0.2,
        "box_probability": 0.95,
        "max_boxes": 5,
        "compat": "none",
    }


@pytest.mark.parametrize("seed", range(12))
def test_the_corruptions_are_those_of_the_rule_in_its_order(seed, genesis_rule):
    """All is drawn here once more in the order of the rule; the noise alone is taken as it is."""
    config = ModelsGenesisConfig(shuffle_windows=300)
    image = make_batch(1, 2, PATCH, seed=seed)["image"]
    shown, target, flips = corrupt(image, torch.tensor([seed]), config)

    (g,) = sample_generators(torch.tensor([seed]))
    assert flips == [transforms.draw_flips(g, 0.4, 3)]
    expected = genesis_rule.rescale(np.flip(image[0].double().numpy(), flips[0]))
    np.testing.assert_allclose(target[0], expected, atol=1e-6)
    if transforms.chance(g, 0.5):
        windows = draw_windows(g, PATCH, 300)
        runs = zip(windows.first.tolist(), windows.sides.prod(0).tolist(), strict=True)
        runs = [windows.permutations[first : first + size].numpy() for first, size in runs]
        expected = genesis_rule.shuffle(
            expected, list(zip(windows.starts.T.tolist(), windows.sides.T.tolist(), runs, strict=True))
        )
    if transforms.chance(g, 0.9):
        points = torch.rand(4, generator=g, dtype=torch.float64).reshape(2, 2).numpy()
        expected = genesis_rule.bend(expected, points, inverted=transforms.chance(g, 0.5))
    seen = np.ones(PATCH, dtype=bool)
    if transforms.chance(g, 0.9):
        outside = not transforms.chance(g, 0.2)
        seen[:] = not outside
        for box in transforms.draw_boxes(g, PATCH, outside=outside, probability=0.95, most=5):
            seen[box] = outside
    error = np.abs(shown[0].numpy() - expected)[:, seen]
    assert np.median(error) < 1e-3
    assert np.quantile(error, 0.98) < 5e-3  # a curve may be steep
    painted = shown[0].numpy()[:, ~seen]
    assert ((painted > 0) & (painted < 1)).all()
    assert painted.size == 0 or np.std(painted) == pytest.approx(12**-0.5, abs=0.03)
    assert painted.size == 0 or abs(np.corrcoef(painted)[0, 1]) < 0.1  # other noise in other channels


def test_without_corruption_the_target_is_shown():
    image = make_batch(2, 2, PATCH)["image"]
    shown, target, flips = corrupt(image, torch.tensor([1, 2]), NOTHING)
    assert flips == [[], []]
    assert torch.equal(shown, target)
    assert target.amin((2, 3, 4)).tolist() == [[0, 0]] * 2
    assert target.amax((2, 3, 4)).tolist() == [[1, 1]] * 2
    low, high = image.amin((2, 3, 4), keepdim=True), image.amax((2, 3, 4), keepdim=True)
    torch.testing.assert_close(target * (high - low) + low, image)


def test_the_target_is_the_flipped_original():
    image = make_batch(6, 1, PATCH)["image"]
    _, target, flips = corrupt(image, torch.arange(6), ModelsGenesisConfig(flip_probability=0.9, compat="nnssl"))
    assert len({tuple(axes) for axes in flips}) > 2
    for patch, found, axes in zip(image, target, flips, strict=True):
        assert np.array_equal(found, np.flip(patch.numpy(), axes))


def test_a_sample_is_corrupted_alike_in_any_batch():
    batch = make_batch(4, 1, PATCH)
    whole = corrupt(batch["image"], batch["seed"], ModelsGenesisConfig())
    order = torch.tensor([2, 0, 3])
    part = corrupt(batch["image"][order], batch["seed"][order], ModelsGenesisConfig())
    assert torch.equal(whole[0][order], part[0])
    assert torch.equal(whole[1][order], part[1])
    assert [whole[2][i] for i in order] == part[2]


def test_another_seed_is_another_corruption_and_the_image_is_left_alone():
    image = make_batch(1, 1, PATCH)["image"]
    before = image.clone()
    found = [corrupt(image, torch.tensor([seed]), ModelsGenesisConfig())[0] for seed in (1, 1, 2)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(image, before)


@pytest.mark.parametrize(
    ("config", "least", "most"),
    [
        (only(shuffle_probability=1.0), 0.6, 0.95),
        (only(curve_probability=1.0), 0.95, 1.0),
        (only(paint_probability=1.0, inpaint_share=1.0, box_probability=1.0), 0.01, 0.15),
        (only(paint_probability=1.0, inpaint_share=0.0, max_boxes=1), 0.8, 0.95),
    ],
)
def test_each_corruption_can_be_had_alone(config, least, most):
    shown, target, _ = corrupt(torch.randn(2, 1, 40, 40, 40), torch.tensor([3, 4]), config)
    changed = (shown != target).float().mean((1, 2, 3, 4))
    assert all(least <= share <= most for share in changed.tolist())


def test_as_in_nnssl_the_curve_saturates_a_z_scored_patch_and_the_target_stays():
    image = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    shown, target, _ = corrupt(image, torch.tensor([0]), only(curve_probability=1.0, compat="nnssl"))
    assert torch.equal(target, image)
    assert float(((shown == 0) | (shown == 1)).float().mean()) == pytest.approx(0.66, abs=0.01)  # N(0, 1) off [0, 1]


def test_a_constant_patch_is_zero():
    config = ModelsGenesisConfig()
    batch = make_batch(2, patch_zyx=PATCH)
    batch["image"] = torch.full_like(batch["image"], 3.0)
    _, target, _ = corrupt(batch["image"], batch["seed"], config)
    assert (target == 0).all()
    assert config.build(tiny_parts(patch_zyx=PATCH))(batch)["loss"].isfinite()


@pytest.mark.parametrize("compat", ["none", "nnssl"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_numbers_are_not_hidden(bad, compat):
    genesis = ModelsGenesisConfig(compat=compat).build(tiny_parts(patch_zyx=PATCH))
    batch = make_batch(1, patch_zyx=PATCH)
    for seed in range(4):
        batch["seed"][0] = seed
        batch["image"][0, 0, 8, 12, 10] = bad
        assert not genesis(batch)["loss"].isfinite()


def test_invalid_voxels_do_not_set_the_range():
    image = torch.rand(2, 2, *PATCH, generator=torch.Generator().manual_seed(0)) * 200 - 100
    image[:, :, :8] = -1000
    image[:, :, 0], image[:, :, 1] = 9000, torch.nan
    image[:, :, 2], image[:, :, 3] = torch.inf, -torch.inf
    image[1, 1, 8:] = 5
    valid = torch.zeros(2, *PATCH, dtype=torch.bool)
    valid[:, 8:] = True
    _, target, _ = corrupt(image, torch.tensor([1, 2]), only(), valid)
    inside = image[0, :, 8:]
    low, high = inside.amin((1, 2, 3), keepdim=True), inside.amax((1, 2, 3), keepdim=True)
    torch.testing.assert_close(target[0, :, 8:], (inside - low) / (high - low))
    # Above the range, NaN and infinity (as the value 0), below the range.
    zero = -low / (high - low)
    for z, wanted in enumerate((zero**0, zero, zero, zero, zero * 0)):
        torch.testing.assert_close(target[0, :, z : z + 1], wanted.expand(2, 1, *PATCH[1:]))
    assert (target[1, 1] == 0).all()  # constant where it is valid
    assert (corrupt(image, torch.tensor([1, 2]), only(), torch.zeros_like(valid))[1] == 0).all()


@pytest.mark.parametrize("compat", ["none", "nnssl"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_numbers_in_invalid_voxels_do_no_harm(bad, compat):
    genesis = ModelsGenesisConfig(compat=compat, flip_probability=0.9).build(tiny_parts(patch_zyx=PATCH))
    batch = make_batch(4, patch_zyx=PATCH)
    batch["image"][:, :, 8, 12, 10], batch["valid"][:, 8, 12, 10] = bad, False
    assert genesis(batch)["loss"].isfinite()


def test_slabs_of_a_cpu_fit_together(monkeypatch):
    image = make_batch(4, 2, PATCH)["image"]
    config = ModelsGenesisConfig(paint_probability=0.0)  # the noise is another one
    expected = corrupt(image, torch.arange(4), config)[0]
    monkeypatch.setattr(models_genesis, "SLAB", 2 * PATCH[1] * PATCH[2] + 1)  # two planes
    assert torch.equal(corrupt(image, torch.arange(4), config)[0], expected)


def test_the_loss_is_the_mean_over_valid_voxels():
    batch, config = make_batch(2, 3, PATCH), ModelsGenesisConfig(shuffle_windows=10)
    batch["valid"] = torch.rand(batch["valid"].shape, generator=torch.Generator().manual_seed(1)) < 0.7
    prediction = torch.randn(2, 3, *PATCH, generator=torch.Generator().manual_seed(7))
    found = genesis_that_predicts(prediction.clone(), config)(batch)
    _, target, flips = corrupt(batch["image"], batch["seed"], config, batch["valid"])
    errors = []
    for b in range(2):
        valid = np.flip(batch["valid"][b].numpy(), [axis - 1 for axis in flips[b]])
        errors.append((prediction[b].double().numpy() - target[b].double().numpy())[:, valid] ** 2)
    assert float(found["loss"].detach()) == pytest.approx(np.concatenate(errors, axis=None).mean(), rel=1e-5)
    assert float(found["scored"]) == pytest.approx(float(batch["valid"].float().mean()))
    del batch["valid"]
    target = corrupt(batch["image"], batch["seed"], config)[1]
    found = genesis_that_predicts(prediction.clone(), config)(batch)
    assert float(found["loss"].detach()) == pytest.approx(float((prediction - target).square().mean()), rel=1e-5)
    assert float(found["scored"]) == 1


def test_a_perfect_prediction_has_loss_zero():
    batch, config = make_batch(2, patch_zyx=PATCH), ModelsGenesisConfig()
    target = corrupt(batch["image"], batch["seed"], config, batch["valid"])[1]
    assert float(genesis_that_predicts(target, config)(batch)["loss"].detach()) == 0


def test_invalid_outputs_alone_have_no_gradient():
    batch = make_batch(3, patch_zyx=PATCH)
    batch["valid"] = torch.rand(batch["valid"].shape, generator=torch.Generator().manual_seed(1)) < 0.7
    genesis = genesis_that_predicts(torch.full(batch["image"].shape, -1.0), ModelsGenesisConfig(flip_probability=0.9))
    genesis(batch)["loss"].backward()
    flips = corrupt(batch["image"], batch["seed"], genesis.config)[2]
    valid = torch.stack([mask[None].flip(axes) for mask, axes in zip(batch["valid"], flips, strict=True)])
    assert len({tuple(axes) for axes in flips}) > 1
    assert torch.equal(genesis.head.prediction.grad != 0, valid)


def test_nothing_valid_is_a_zero_loss_with_zero_gradient():
    batch = make_batch(2, patch_zyx=PATCH)
    batch["valid"] = torch.zeros_like(batch["valid"])
    genesis = ModelsGenesisConfig().build(tiny_parts(patch_zyx=PATCH))
    found = genesis(batch)
    found["loss"].backward()
    assert float(found["loss"].detach()) == 0
    assert float(found["scored"]) == 0
    assert all((parameter.grad == 0).all() for parameter in genesis.parameters())


def test_reconstruct_shows_what_the_network_saw():
    batch = make_batch(2, 2, PATCH)
    genesis = ModelsGenesisConfig().build(tiny_parts(2, PATCH))
    found = genesis.reconstruct(batch)
    shown, target, _ = corrupt(batch["image"], batch["seed"], ModelsGenesisConfig(), batch["valid"])
    assert torch.equal(found["input"], target)
    assert torch.equal(found["shown"], shown)
    assert torch.equal(found["output"], genesis.head(genesis.neck(genesis.encoder(shown)), PATCH))


def test_a_half_precision_patch_is_corrupted_in_float32():
    image = make_batch(1, patch_zyx=PATCH)["image"].bfloat16()
    shown, target, _ = corrupt(image, torch.tensor([1]), ModelsGenesisConfig())
    assert shown.dtype == target.dtype == torch.float32
    exact = corrupt(image.float(), torch.tensor([1]), ModelsGenesisConfig())
    assert torch.equal(shown, exact[0])


def test_state_keys_are_those_of_encoder_neck_and_head():
    keys = {key.split(".")[0] for key in ModelsGenesisConfig().build(tiny_parts(patch_zyx=PATCH)).state_dict()}
    assert keys == {"encoder", "neck", "head"}


@given(st.integers(0, 2**40), st.tuples(*[st.integers(14, 30)] * 3), st.integers(1, 3))
@settings(max_examples=25)
def test_any_patch_from_14_a_side(seed, patch, channels):
    image = torch.randn(1, channels, *patch, generator=torch.Generator().manual_seed(seed % 2**31))
    shown, target, _ = corrupt(image, torch.tensor([seed]), ModelsGenesisConfig(shuffle_windows=50))
    for found in (shown, target):
        assert found.shape == image.shape
        assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize(
    ("config", "smallest"),
    [
        (ModelsGenesisConfig(), 14),
        (ModelsGenesisConfig(inpaint_share=1.0), 10),
        (ModelsGenesisConfig(paint_probability=0.0), 10),
        (ModelsGenesisConfig(inpaint_share=1.0, shuffle_probability=0.0), 8),
        (NOTHING, 1),
    ],
)
def test_the_smallest_patch_follows_from_what_may_be_drawn(config, smallest):
    genesis = ModelsGenesis(TinyEncoder(), TinyNeck(), 1, config)
    assert genesis.smallest_side == smallest
    for seed in range(30):
        corrupt(torch.randn(1, 1, smallest, 16, 20), torch.tensor([seed]), replace(config, shuffle_windows=5))


def test_a_patch_too_small_is_refused_when_building_and_in_forward():
    with pytest.raises(ValueError, match=r"patch: found \(16, 12, 16\) voxels .* wanted at least 14 a side"):
        ModelsGenesisConfig().build(tiny_parts(patch_zyx=(16, 12, 16)))
    with pytest.raises(ValueError, match=r"found \(16, 18, 16\) voxels \(z, y, x\), wanted multiples of \(4, 4, 4\)"):
        ModelsGenesisConfig().build(tiny_parts(patch_zyx=(16, 18, 16)))
    genesis = ModelsGenesisConfig().build(tiny_parts(patch_zyx=PATCH))
    with pytest.raises(ValueError, match=r"patch: found \(12, 16, 16\) voxels .* wanted at least 14 a side"):
        genesis(make_batch(1, patch_zyx=(12, 16, 16)))


@pytest.mark.parametrize(
    "name",
    [
        "flip_probability",
        "shuffle_probability",
        "curve_probability",
        "inverted_share",
        "paint_probability",
        "inpaint_share",
        "box_probability",
    ],
)
@pytest.mark.parametrize("found", [-0.1, 1.1, float("nan")])
def test_a_probability_outside_0_to_1_is_refused(name, found):
    with pytest.raises(ValueError, match=f"{name}: found {found}, wanted a number from 0 to 1"):
        ModelsGenesisConfig(**{name: found})


@pytest.mark.parametrize(("name", "found"), [("max_flips", -1), ("shuffle_windows", 0), ("max_boxes", 0)])
def test_a_count_too_low_is_refused(name, found):
    with pytest.raises(ValueError, match=f"{name}: found {found}, wanted"):
        ModelsGenesisConfig(**{name: found})


def test_an_unknown_compat_is_refused():
    with pytest.raises(ValueError, match="compat: found 'nnunet', wanted 'none' or 'nnssl'"):
        ModelsGenesisConfig(compat="nnunet")
