"""The invariants of the masked autoencoder, and its loss against an independent float64 one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from girih_ssl import MAE, MAEConfig, draw_hidden_blocks, hidden_count, to_voxels
from girih_ssl.testing import TinyEncoder, TinyNeck, make_batch, tiny_parts
from girih_ssl.testing.two_processes import new_context

SMALL = MAEConfig(mask_ratio=0.5, block_zyx=(4, 8, 4))
PATCH = (8, 16, 12)


class Fixed(nn.Module):
    """Stands in for encoder, neck and head: the prediction is a tensor of our choice."""

    def __init__(self, prediction):
        super().__init__()
        self.prediction = nn.Parameter(prediction)

    def forward(self, *_):
        return self.prediction


def mae_that_predicts(prediction, config=SMALL):
    mae = MAE(TinyEncoder(prediction.shape[1]), TinyNeck(), prediction.shape[1], config)
    mae.head = Fixed(prediction)
    return mae


def mask_of(batch, config=SMALL):
    """The hidden voxels (B, Z, Y, X), from what `reconstruct` shows of a patch without zeros."""
    probe = {**batch, "image": torch.ones_like(batch["image"])}
    shown = MAE(TinyEncoder(probe["image"].shape[1]), TinyNeck(), probe["image"].shape[1], config).reconstruct(probe)
    return shown["shown"][:, 0] == 0


def test_three_quarters_of_the_blocks_are_hidden_in_every_sample():  # He et al. 2022; 192^3 has 1728 blocks of 16^3
    assert hidden_count((10, 10, 10), 0.75) == 750
    assert hidden_count((12, 12, 12), 0.75) == 1296
    hidden = draw_hidden_blocks(torch.arange(5), (12, 12, 12), 1296)
    assert hidden.shape == (5, 12, 12, 12)
    assert hidden.sum((1, 2, 3)).tolist() == [1296] * 5


def test_the_mask_is_constant_on_blocks():
    hidden = mask_of(make_batch(3, patch_zyx=PATCH))
    blocks = hidden.reshape(3, 2, 4, 2, 8, 3, 4).permute(0, 1, 3, 5, 2, 4, 6).reshape(3, 12, -1)
    assert torch.equal(blocks.all(-1), blocks.any(-1))
    assert blocks.all(-1).sum(-1).tolist() == [6, 6, 6]


def test_a_block_covers_its_own_voxels():  # hand-made: block (1, 0, 2) of blocks of 2 x 1 x 3 voxels
    blocks = torch.zeros(1, 2, 2, 3, dtype=torch.bool)
    blocks[0, 1, 0, 2] = True
    voxels = to_voxels(blocks, (2, 1, 3))
    assert voxels.shape == (1, 1, 4, 2, 9)
    assert voxels.nonzero().tolist() == [[0, 0, z, 0, x] for z in (2, 3) for x in (6, 7, 8)]


def test_masks_differ_between_samples_and_repeat_with_the_seed():
    seed = torch.tensor([3, 4, 3])
    first, second = (draw_hidden_blocks(seed, (4, 4, 4), 32) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])


def test_a_sample_has_the_same_mask_in_any_batch():
    batch = make_batch(4, patch_zyx=PATCH)
    together = mask_of(batch)
    for i in range(4):
        assert torch.equal(
            mask_of({"image": batch["image"][i : i + 1], "seed": batch["seed"][i : i + 1]})[0], together[i]
        )


def test_workers_ranks_and_resumes_hide_the_same_blocks():
    """A sample's mask follows from its seed, whatever process loads it, however the samples are dealt out."""
    batch = make_batch(8, patch_zyx=PATCH)
    samples = [{"image": image, "seed": seed} for image, seed in zip(batch["image"], batch["seed"], strict=True)]
    wanted = mask_of(batch)

    def masks(samples, size, workers=0):
        loader = DataLoader(
            samples, batch_size=size, num_workers=workers, multiprocessing_context=new_context() if workers else None
        )
        return torch.cat([mask_of(loaded) for loaded in loader])

    assert torch.equal(masks(samples, size=3), wanted)
    assert torch.equal(masks(samples, size=2, workers=2), wanted)
    for rank in range(2):
        assert torch.equal(masks(samples[rank::2], size=2), wanted[rank::2])
    assert torch.equal(masks(samples[5:], size=2), wanted[5:])  # resumed after five samples


def test_a_mask_does_not_change_between_versions():  # a checkpointed run that is resumed sees the same blocks
    assert draw_hidden_blocks(torch.tensor([7]), (2, 2, 2), 6)[0].flatten().tolist() == PINNED


PINNED = [True, True, False, True, True, True, False, True]  # the first 6 of 7 0 3 4 1 5 2 6


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("with_valid", [True, False])
def test_the_loss_is_the_mean_over_hidden_valid_elements(channels, with_valid):
    batch = make_batch(3, channels, PATCH)
    if not with_valid:
        del batch["valid"]
    prediction = torch.randn(batch["image"].shape, generator=torch.Generator().manual_seed(1))
    found = {name: value.detach() for name, value in mae_that_predicts(prediction)(batch).items()}
    errors, voxels = [], 0
    hidden = mask_of(batch).numpy()
    for b, c, z, y, x in np.ndindex(*prediction.shape):
        if hidden[b, z, y, x] and (not with_valid or bool(batch["valid"][b, z, y, x])):
            errors.append((float(prediction[b, c, z, y, x]) - float(batch["image"][b, c, z, y, x])) ** 2)
            voxels += c == 0
    assert float(found["loss"]) == pytest.approx(np.mean(errors, dtype=np.float64), rel=1e-6)
    assert float(found["scored"]) == pytest.approx(voxels / (3 * np.prod(PATCH)))


def test_a_perfect_prediction_has_loss_zero():
    batch = make_batch(2, patch_zyx=PATCH)
    assert float(mae_that_predicts(batch["image"].clone())(batch)["loss"].detach()) == 0


def test_visible_and_invalid_outputs_have_no_gradient():
    batch = make_batch(2, patch_zyx=PATCH)
    mae = mae_that_predicts(torch.zeros(batch["image"].shape))
    mae(batch)["loss"].backward()
    scored = mask_of(batch) & batch["valid"]
    gradient = mae.head.prediction.grad[:, 0]
    assert (gradient[~scored] == 0).all()
    assert (gradient[scored] != 0).all()


def test_the_network_sees_no_hidden_voxel():
    batch, other = make_batch(2, patch_zyx=PATCH), make_batch(2, patch_zyx=PATCH)
    hidden = mask_of(batch)[:, None]
    other["image"] = torch.where(hidden, 100.0, other["image"])
    mae = SMALL.build(tiny_parts(patch_zyx=PATCH))
    assert torch.equal(mae.reconstruct(batch)["output"], mae.reconstruct(other)["output"])


def test_nothing_to_score_is_a_zero_loss_with_zero_gradient():
    batch = make_batch(2, patch_zyx=PATCH)
    batch["valid"] = torch.zeros_like(batch["valid"])
    mae = SMALL.build(tiny_parts(patch_zyx=PATCH))
    found = mae(batch)
    found["loss"].backward()
    assert float(found["loss"].detach()) == 0
    assert float(found["scored"]) == 0
    assert all((parameter.grad == 0).all() for parameter in mae.parameters())


def test_a_sample_without_a_valid_voxel_counts_for_nothing():
    prediction = torch.randn(2, 1, *PATCH, generator=torch.Generator().manual_seed(1))
    batch = make_batch(2, patch_zyx=PATCH)
    batch["valid"][1] = False
    first = {key: batch[key][:1] for key in ("image", "seed", "valid")}
    found, wanted = mae_that_predicts(prediction)(batch), mae_that_predicts(prediction[:1])(first)
    torch.testing.assert_close(found["loss"], wanted["loss"])
    torch.testing.assert_close(2 * found["scored"], wanted["scored"])


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_constant_patch_has_a_finite_loss_and_gradient(value):
    mae = SMALL.build(tiny_parts(patch_zyx=PATCH))
    batch = make_batch(1, patch_zyx=PATCH)
    batch["image"] = torch.full_like(batch["image"], value)
    mae(batch)["loss"].backward()
    assert all(parameter.grad.isfinite().all() for parameter in mae.parameters())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["hidden", "visible", "not valid"])
def test_nan_and_infinity_are_not_swallowed(value, where):
    mae = SMALL.build(tiny_parts(patch_zyx=PATCH))
    batch = make_batch(1, patch_zyx=PATCH)
    hidden = mask_of(batch)[0]
    z, y, x = {"hidden": hidden, "visible": ~hidden, "not valid": hidden & ~batch["valid"][0]}[where].nonzero()[0]
    batch["image"][0, 0, z, y, x] = value
    assert mae(batch)["loss"].isnan()


def test_reconstruct_shows_what_the_network_saw():
    batch = make_batch(2, 2, PATCH)
    mae = SMALL.build(tiny_parts(2, PATCH))
    found = mae.reconstruct(batch)
    hidden = mask_of(batch)[:, None].expand_as(batch["image"])
    assert torch.equal(found["input"], batch["image"])
    assert torch.equal(found["shown"], batch["image"].masked_fill(hidden, 0))
    assert torch.equal(found["output"], mae.head(mae.neck(mae.encoder(found["shown"])), PATCH))


def test_a_coarse_neck_is_brought_to_the_voxel_grid():
    class Coarse(TinyNeck):
        def forward(self, maps):
            return super().forward(maps)[1:]

    mae = MAE(TinyEncoder(), Coarse(), 1, SMALL)
    found = mae.reconstruct(make_batch(2, patch_zyx=PATCH))["output"]
    assert found.shape == (2, 1, *PATCH)


def test_state_keys_are_those_of_encoder_neck_and_head():
    keys = {key.split(".")[0] for key in SMALL.build(tiny_parts(patch_zyx=PATCH)).state_dict()}
    assert keys == {"encoder", "neck", "head"}


@given(
    grid=st.tuples(*[st.integers(1, 4)] * 3).filter(lambda grid: np.prod(grid) > 1),
    block=st.tuples(*[st.integers(1, 5)] * 3),
    ratio=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**62),
)
def test_any_grid_of_any_block_hides_the_exact_number_of_voxels(grid, block, ratio, seed):
    wanted = int(ratio * np.prod(grid))
    if wanted == 0:
        with pytest.raises(ValueError, match="at least one hidden and one shown"):
            hidden_count(grid, ratio)
        return
    hidden = to_voxels(draw_hidden_blocks(torch.tensor([seed, seed + 1]), grid, hidden_count(grid, ratio)), block)
    assert hidden.shape == (2, 1, *(g * b for g, b in zip(grid, block, strict=True)))
    assert hidden.sum((1, 2, 3, 4)).tolist() == [wanted * np.prod(block)] * 2


@given(block=st.tuples(*[st.sampled_from([2, 3, 4, 6])] * 3))
def test_any_block_works_on_a_patch_of_twice_the_multiple(block):
    encoder = TinyEncoder()
    mae = MAE(encoder, TinyNeck(), 1, MAEConfig(0.5, block))
    assert all(m % b == 0 and m % 4 == 0 for m, b in zip(mae.patch_multiple, block, strict=True))
    patch = tuple(2 * m for m in mae.patch_multiple)
    assert mae(make_batch(1, patch_zyx=patch))["loss"].isfinite()


def test_blocks_and_cells_end_together():  # ResEncL: the coarsest cell is two blocks of 16 wide along every axis
    encoder = TinyEncoder()
    for coarsest, multiple in (((32, 32, 32), (32, 32, 32)), ((4, 32, 64), (16, 32, 64)), ((12, 8, 8), (48, 16, 16))):
        encoder.strides = (*encoder.strides[:2], coarsest)
        assert MAE(encoder, TinyNeck(), 1).patch_multiple == multiple


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_ratio_outside_0_to_1_is_refused(ratio):
    with pytest.raises(ValueError, match=f"mask_ratio: found {ratio}"):
        MAEConfig(mask_ratio=ratio)


@pytest.mark.parametrize("block", [(0, 1, 1), (4, 4, -4)])
def test_a_block_without_voxels_is_refused(block):
    with pytest.raises(ValueError, match="block_zyx: found"):
        MAEConfig(block_zyx=block)


def test_a_patch_that_does_not_suit_is_refused_when_building():
    with pytest.raises(ValueError, match=r"found \(8, 20, 12\) voxels \(z, y, x\), wanted multiples of \(4, 8, 4\)"):
        SMALL.build(tiny_parts(patch_zyx=(8, 20, 12)))
    with pytest.raises(ValueError, match=r"the 1 blocks \(1, 1, 1\): found 0 hidden"):
        MAEConfig().build(tiny_parts(patch_zyx=(16, 16, 16)))
