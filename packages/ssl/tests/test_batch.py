"""A batch that cannot be used is refused with what was found and what was wanted."""

import pytest
import torch

from girih_ssl import MAEConfig, MultiTalentConfig, VoCoConfig, check_batch, sample_generators
from girih_ssl.testing import make_batch, tiny_parts

WANTED = {"requires": {"image", "seed"}, "in_channels": 1, "patch_multiple": (4, 4, 4)}


def batch_with(**changes):
    return {**make_batch(2, patch_zyx=(8, 8, 8)), **changes}


def test_a_good_batch_gives_its_image():
    batch = batch_with()
    assert check_batch(batch, **WANTED) is batch["image"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": torch.zeros(2, 3, 8, 8, 8)}, r"image: found shape \(2, 3, 8, 8, 8\), wanted \(B >= 1, 1, Z, Y, X\)"),
        ({"image": torch.zeros(0, 1, 8, 8, 8)}, r"image: found shape \(0, 1, 8, 8, 8\)"),
        ({"image": torch.zeros(2, 1, 8, 8, 8, dtype=torch.int16)}, "image: found torch.int16, wanted a floating dtype"),
        (
            {"image": torch.zeros(2, 1, 8, 8, 10)},
            r"found \(8, 8, 10\) voxels .*, wanted multiples of \(4, 4, 4\)",
        ),
        ({"image": torch.zeros(2, 1, 0, 8, 8)}, r"found \(0, 8, 8\) voxels"),
        ({"image": [torch.zeros(1, 8, 8, 8), torch.zeros(4, 8, 8, 8)]}, r"with \[1, 4\] channels, wanted one tensor"),
        ({"seed": torch.zeros(3, dtype=torch.int64)}, r"seed: found \(3,\) torch.int64, wanted \(2,\) torch.int64"),
        ({"seed": torch.zeros(2)}, r"seed: found \(2,\) torch.float32"),
        ({"valid": torch.ones(2, 1, 8, 8, 8, dtype=torch.bool)}, r"valid: found \(2, 1, 8, 8, 8\) torch.bool"),
        ({"valid": torch.ones(2, 8, 8, 8)}, r"valid: found \(2, 8, 8, 8\) torch.float32"),
    ],
)
def test_a_bad_batch_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_batch(batch_with(**changes), **WANTED)


def test_every_missing_key_is_named():
    with pytest.raises(ValueError, match=r"lacks image, seed: found .*'valid'.*, wanted"):
        check_batch({"valid": torch.ones(1)}, **WANTED)


def test_a_generator_depends_on_its_own_seed_only():
    alone = torch.rand(3, generator=sample_generators(torch.tensor([5]))[0])
    among = torch.rand(3, generator=sample_generators(torch.tensor([1, 5, 2**62]))[1])
    assert torch.equal(alone, among)


SINGLE_CELLS = [
    (MAEConfig(block_zyx=(2, 2, 2)), (4, 4, 4)),
    (MultiTalentConfig(), (4, 4, 4)),
    (VoCoConfig(crop_zyx=(4, 4, 4)), (4, 4, 8)),
]


@pytest.mark.parametrize(("config", "patch"), SINGLE_CELLS, ids=["mae", "multitalent", "voco"])
def test_a_patch_that_is_a_single_cell_is_refused_when_it_is_built(config, patch):
    with pytest.raises(ValueError, match=r"found \(4, 4, 4\) voxels .* wanted more than .* stride \(4, 4, 4\)"):
        config.build(tiny_parts(patch_zyx=patch))


@pytest.mark.parametrize(("config", "patch"), SINGLE_CELLS[:2], ids=["mae", "multitalent"])
def test_a_patch_that_is_a_single_cell_is_refused_in_a_batch(config, patch):
    objective = config.build(tiny_parts(patch_zyx=(8, 8, 8)))
    with pytest.raises(ValueError, match=r"found \(4, 4, 4\) voxels .* wanted more than"):
        objective(make_batch(patch_zyx=patch))


def test_two_cells_along_one_axis_are_enough():
    objective = MAEConfig(block_zyx=(2, 2, 2)).build(tiny_parts(patch_zyx=(8, 4, 4)))
    assert objective(make_batch(patch_zyx=(8, 4, 4)))["loss"].isfinite()


@pytest.mark.parametrize("patch", [(0, 8, 8), (8, 8, -8)])
def test_parts_refuse_a_patch_without_voxels(patch):
    with pytest.raises(ValueError, match="patch_zyx: found"):
        tiny_parts(patch_zyx=patch)
