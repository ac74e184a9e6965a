"""S3D: what it hides, fills and scores, its parameters, its decoders."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from girih_ssl import MAEConfig
from girih_ssl.light_decoder import LightDecoder
from girih_ssl.masked_norm import masked_instance_norm
from girih_ssl.masking import blocks_of
from girih_ssl.s3d import S3D, Densify, S3DConfig
from girih_ssl.sparse import VisibleCells
from girih_ssl.testing import ObjectiveContract, TinyEncoder, make_batch, tiny_parts

SMALL = S3DConfig(mask_ratio=0.5, block_zyx=(4, 8, 4))
PATCH = (8, 16, 12)


class TestS3D(ObjectiveContract):
    config = S3DConfig
    patch_zyx = (16, 32, 32)


class TestLightDecoder(ObjectiveContract):
    config = S3DConfig(decoder="light", block_zyx=(4, 4, 4))


class TestCompat(ObjectiveContract):
    config = S3DConfig(compat="nnssl", block_zyx=(4, 4, 4))


class Fixed(nn.Module):
    """Stands in for the head: the prediction is a tensor of our choice."""

    def __init__(self, prediction):
        super().__init__()
        self.prediction = nn.Parameter(prediction)

    def forward(self, *_):
        return self.prediction


def build(config=SMALL, channels=1, patch=PATCH, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return config.build(tiny_parts(channels, patch))


def hidden_of(batch, config=SMALL):
    """The hidden voxels (B, Z, Y, X), from what `reconstruct` shows of a patch without zeros."""
    probe = {**batch, "image": torch.ones_like(batch["image"][:, :1])}
    return build(config).reconstruct(probe)["shown"][:, 0] == 0


def test_it_hides_what_the_masked_autoencoder_hides():
    batch = make_batch(3, patch_zyx=PATCH)
    mae = MAEConfig(0.5, (4, 8, 4)).build(tiny_parts(patch_zyx=PATCH))
    assert torch.equal(build().reconstruct(batch)["shown"], mae.reconstruct(batch)["shown"])
    assert hidden_of(batch).sum((1, 2, 3)).tolist() == [6 * 128] * 3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("with_valid", [True, False])
def test_the_loss_is_the_mean_over_hidden_valid_elements(channels, with_valid):
    batch = make_batch(2, channels, PATCH)
    if not with_valid:
        del batch["valid"]
    prediction = torch.randn(batch["image"].shape, generator=torch.Generator().manual_seed(1))
    s3d = build(channels=channels)
    s3d.head = Fixed(prediction)
    found = s3d(batch)
    scored = hidden_of(batch).numpy() & (batch["valid"].numpy() if with_valid else True)
    errors = (prediction.double().numpy() - batch["image"].double().numpy()) ** 2
    wanted = np.mean([errors[:, channel][scored] for channel in range(channels)])
    assert float(found["loss"].detach()) == pytest.approx(wanted, rel=1e-6)
    assert float(found["scored"]) == pytest.approx(scored.mean())
    found["loss"].backward()  # no gradient where nothing is scored
    gradient = s3d.head.prediction.grad.abs().sum(1).numpy()
    assert (gradient[~scored] == 0).all()
    assert (gradient[scored] > 0).all()


@pytest.mark.parametrize("decoder", ["full", "light"])
def test_hidden_voxels_change_no_bit_of_the_output(decoder):
    config = S3DConfig(0.5, (4, 8, 4), decoder=decoder)
    batch, other = make_batch(2, patch_zyx=PATCH), make_batch(2, patch_zyx=PATCH)
    other["image"] = torch.where(hidden_of(batch)[:, None], 100.0, other["image"])
    s3d = build(config)
    assert torch.equal(s3d.reconstruct(batch)["output"], s3d.reconstruct(other)["output"])


def test_as_nnssl_the_stem_sees_hidden_voxels_beside_visible_ones():
    config = S3DConfig(0.5, (4, 8, 4), compat="nnssl")
    batch = make_batch(1, patch_zyx=PATCH)
    s3d = build(config)
    hiding = s3d._hide(batch)
    stem = hiding.encoder.stem[0]  # the first convolution
    other = torch.where(hiding.hidden, 100.0, hiding.image)
    changed = (stem(hiding.image) != stem(other)).any(1)
    beside = F.max_pool3d(hiding.hidden.float(), 3, 1, 1)[:, 0].bool() & ~hiding.hidden[:, 0]
    assert torch.equal(changed, beside)
    found, masked = (build(c).reconstruct(batch)["output"] for c in (config, SMALL))
    assert not torch.equal(found, masked)


def test_constant_patches_are_fine_and_nan_is_not_hidden():
    batch = make_batch(2, patch_zyx=PATCH)
    batch["image"] = torch.full_like(batch["image"], 3.0)
    assert build()(batch)["loss"].isfinite()
    batch["image"][0, 0, 0, 0, 0] = torch.nan
    assert build()(batch)["loss"].isnan()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_shows_in_the_loss_even_hidden_and_invalid(value):
    batch = make_batch(1, patch_zyx=PATCH)
    voxel = tuple(hidden_of(batch)[0].nonzero()[0].tolist())
    batch["image"][(0, 0, *voxel)] = value
    batch["valid"][(0, *voxel)] = False
    assert build()(batch)["loss"].isnan()


def test_nothing_to_score_is_a_zero_loss_with_zero_gradient():
    batch = make_batch(2, patch_zyx=PATCH)
    batch["valid"] = torch.zeros_like(batch["valid"])
    s3d = build()
    found = s3d(batch)
    found["loss"].backward()
    assert float(found["loss"].detach()) == 0
    assert float(found["scored"]) == 0
    assert all((parameter.grad == 0).all() for parameter in s3d.parameters())


def test_a_sample_of_the_batch_stands_alone():
    batch = make_batch(3, patch_zyx=PATCH)
    s3d = build()
    together = s3d.reconstruct(batch)["output"]
    for i in range(3):
        alone = s3d.reconstruct({"image": batch["image"][i : i + 1], "seed": batch["seed"][i : i + 1]})["output"]
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("decoder", ["full", "light"])
@pytest.mark.parametrize("block", [(2, 2, 2), (2, 4, 6), (8, 8, 8), (1, 8, 2)])
def test_any_block_leaves_no_parameter_without_gradient(decoder, block):
    patch = (8, 16, 24)
    s3d = build(S3DConfig(0.5, block, decoder=decoder), patch=patch)
    s3d(make_batch(2, patch_zyx=patch))["loss"].backward()
    for name, parameter in s3d.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or not name.startswith("encoder."), name


# densification


def test_visible_cells_are_normalised_and_hidden_ones_are_the_token():
    visible = VisibleCells(torch.tensor([[[[True, False]]], [[[False, True]]]]), (2, 2, 2), [(1, 1, 1)])
    cells = visible.on((2, 2, 4))
    densify = Densify(3, has_token=True, project=nn.Identity())
    x = torch.randn(2, 3, 2, 2, 4, generator=torch.Generator().manual_seed(0))
    found = densify(x * cells.shown, cells)
    wanted = torch.cat(  # the visible half of each sample, on its own
        [F.instance_norm(x[:1, ..., :2]), densify.token.expand(1, 3, 2, 2, 2)], dim=-1
    )
    torch.testing.assert_close(found[:1], wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(found[1, ..., :2], densify.token[0].expand(3, 2, 2, 2))
    assert torch.equal(found[1:, ..., 2:], masked_instance_norm(x, cells)[1:, ..., 2:])


def test_tokens_start_within_a_fiftieth():
    tokens = torch.cat([Densify(320, True, nn.Identity()).token.flatten() for _ in range(10)])
    assert float(tokens.abs().max().detach()) <= 0.02
    assert 0.009 < float(tokens.std().detach()) < 0.012  # a normal of 0.02, cut at one deviation


def test_a_map_that_is_all_visible_has_no_token_and_the_finest_no_convolution():
    s3d = build(S3DConfig(0.5, (2, 2, 2)))
    assert [level.token is not None for level in s3d.densify] == [True, True, False]
    assert [type(level.project) for level in s3d.densify] == [nn.Identity, nn.Conv3d, nn.Conv3d]
    light = build(S3DConfig(0.5, (2, 2, 2), decoder="light"))
    assert not any(list(level.project.parameters()) for level in light.densify)


def test_densification_of_resenc_l_has_the_published_number_of_parameters():
    # 7 854 240 in nnssl, with the token of 320 channels that is never used there
    channels, strides = (32, 64, 128, 256, 320, 320), tuple((2**i,) * 3 for i in range(6))

    class Wide(TinyEncoder):
        def __init__(self):
            super().__init__()
            self.channels, self.strides = channels, strides
            for i, (before, after) in enumerate(itertools.pairwise((4, *channels))):
                stage = nn.Conv3d(before, after, 1, stride=1 if i == 0 else 2, bias=False)
                self.stages = type(self.stages)([stage] if i == 0 else [*self.stages, stage])

    parts = tiny_parts(patch_zyx=(64, 64, 64))
    parts = type(parts)(
        encoder=Wide(),
        make_neck=lambda: LightDecoder((1,), ((1, 1, 1),)),
        make_stem=parts.make_stem,
        in_channels=1,
        patch_zyx=(64, 64, 64),
    )
    s3d = S3D(parts)
    assert sum(p.numel() for p in s3d.densify.parameters()) == 7_854_240 - 320
    assert s3d.patch_multiple == (32, 32, 32)
    published = {"block_zyx": s3d.block_zyx, "coarsest_stride": s3d.coarsest_stride, "mask_ratio": s3d.mask_ratio}
    assert blocks_of((192, 192, 192), **published) == ((12, 12, 12), 1296)


def test_state_keys_and_the_encoder_among_them():
    s3d = build()
    assert {key.split(".")[0] for key in s3d.state_dict()} == {"encoder", "densify", "decoder", "head"}
    assert list(s3d.encoder.state_dict()) == list(TinyEncoder().state_dict())
    assert len(list(s3d.encoder.parameters())) == len(list(TinyEncoder().parameters()))


# the light decoder


def test_the_light_decoder_halves_its_width_at_every_step():
    decoder = LightDecoder((32, 64, 128, 320), ((1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 8)))
    ups = [block[0] for block in decoder.blocks[:-1]]
    assert [(up.in_channels, up.kernel_size, up.stride, up.padding) for up in ups] == [
        (width, (4, 4, 4), (2, 2, 2), (1, 1, 1)) for width in (320, 160, 80)
    ]
    assert decoder.channels == (40,)
    projections = list(decoder.projections)
    assert isinstance(projections[0], nn.Identity)
    assert [(p.in_channels, p.out_channels, p.kernel_size) for p in projections[1:]] == [
        (128, 160, (3, 3, 3)),
        (64, 80, (3, 3, 3)),
        (32, 40, (3, 3, 3)),
    ]


@pytest.mark.parametrize(
    "strides",
    [
        ((1, 1, 1), (2, 2, 2), (4, 4, 4)),
        ((1, 2, 2), (1, 4, 4), (2, 8, 8)),
        ((2, 2, 2), (2, 6, 4), (4, 12, 16)),
        ((3, 1, 5), (3, 1, 5), (3, 1, 5)),
    ],
)
def test_the_light_decoder_reaches_the_grid_of_the_volume(strides):
    decoder = LightDecoder((3, 5, 6), strides)
    patch = [2 * step for step in strides[-1]]
    maps = [
        torch.randn(2, width, *(side // step for side, step in zip(patch, stride, strict=True)))
        for width, stride in zip((3, 5, 6), strides, strict=True)
    ]
    (found,) = decoder(maps)
    assert found.shape == (2, *decoder.channels, *patch)
    found.square().sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_strides_that_are_no_multiples_are_refused():
    with pytest.raises(ValueError, match=r"strides\[1\]: found \(3, 3, 3\), wanted multiples of \(2, 2, 2\)"):
        LightDecoder((4, 8), ((2, 2, 2), (3, 3, 3)))


# bad input


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mask_ratio", 1.0, "mask_ratio: found 1.0, wanted a number between 0 and 1"),
        ("block_zyx", (4, 0, 4), "block_zyx: found"),
        ("decoder", "unet", "decoder: found 'unet', wanted 'full' or 'light'"),
        ("compat", "spark", "compat: found 'spark', wanted 'none' or 'nnssl'"),
    ],
)
def test_a_wrong_setting_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        S3DConfig(**{field: value})


def test_a_patch_that_does_not_suit_is_refused_when_building():
    with pytest.raises(ValueError, match=r"found \(8, 20, 12\) voxels \(z, y, x\), wanted multiples of \(4, 8, 4\)"):
        build(patch=(8, 20, 12))
    with pytest.raises(ValueError, match=r"wanted multiples of \(99996, 99996, 99996\)"):  # before a dry run of it
        build(S3DConfig(block_zyx=(99_996,) * 3))
    with pytest.raises(ValueError, match=r"the 1 blocks \(1, 1, 1\): found 0 hidden"):
        build(S3DConfig(), patch=(16, 16, 16))
    with pytest.raises(ValueError, match=r"found \(4, 4, 4\) voxels .* a single cell cannot be normalised"):
        build(S3DConfig(0.5, (2, 2, 2)), patch=(4, 4, 4))
