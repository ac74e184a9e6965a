"""Which maps of a neck have a loss, on necks as they are used: a U-Net decoder and pyramids; regions by hand."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from girih_ssl import MultiTalentConfig, Parts
from girih_ssl.region_loss import dice, membership, region_sums
from girih_ssl.supervision import at_strides, level_weights, supervised_levels
from girih_ssl.testing import make_batch, tiny_parts

STRIDES = ((1, 1, 1), (1, 2, 2), (2, 4, 4), (4, 8, 8))
WIDTHS = (4, 6, 8, 8)


class Encoder(nn.Module):
    """Four stages, the first step only in the plane, as in plans for thick slices."""

    def __init__(self, strides=STRIDES):
        super().__init__()
        self.in_channels, self.channels, self.strides = 1, WIDTHS, strides
        self.stem = stem(1)
        before = [(1, 1, 1), *strides[:-1]]
        steps = [tuple(b // a for a, b in zip(*pair, strict=True)) for pair in zip(before, strides, strict=True)]
        self.stages = Stages(
            nn.Sequential(nn.Conv3d(a, b, 3, step, 1, bias=False), nn.InstanceNorm3d(b, affine=True), nn.LeakyReLU())
            for a, b, step in zip((4, *WIDTHS), WIDTHS, steps, strict=False)
        )

    def forward(self, x):
        return self.stages(self.stem(x))


class Stages(nn.ModuleList):
    def forward(self, h):
        return [h := stage(h) for stage in self]


class UNet(nn.Module):
    """Decodes all maps but the coarsest, which it passes on, as nnU-Net's decoder does."""

    def __init__(self, encoder):
        super().__init__()
        self.channels, self.strides = encoder.channels, encoder.strides
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(coarse, fine, step, step)
            for fine, coarse, step in zip(self.channels[:-1], self.channels[1:], steps(self.strides), strict=True)
        )
        self.fuse = nn.ModuleList(nn.Conv3d(2 * width, width, 3, padding=1) for width in self.channels[:-1])

    def forward(self, maps):
        decoded = [maps[-1]]
        for level in reversed(range(len(self.up))):
            decoded.append(self.fuse[level](torch.cat((self.up[level](decoded[-1]), maps[level]), 1)))
        return decoded[::-1]


class Pyramid(nn.Module):
    """Top-down sums and an output convolution for the levels in `outputs`; finer maps are passed on, as in a U-FPN."""

    def __init__(self, encoder, outputs):
        super().__init__()
        self.first, self.outputs = min(outputs), outputs
        self.channels = tuple(8 if level >= self.first else width for level, width in enumerate(encoder.channels))
        self.strides = encoder.strides
        self.lateral = nn.ModuleList(nn.Conv3d(width, 8, 1) for width in encoder.channels[self.first :])
        self.out = nn.ModuleDict({str(level): nn.Conv3d(8, 8, 3, padding=1) for level in outputs})

    def forward(self, maps):
        pyramid, x = list(maps), None
        for level in reversed(range(self.first, len(maps))):
            here = self.lateral[level - self.first](maps[level])
            x = here if x is None else here + F.interpolate(x, size=here.shape[2:])
            pyramid[level] = self.out[str(level)](x) if level in self.outputs else x
        return pyramid


class PassesOn(nn.Module):
    channels, strides = WIDTHS, STRIDES

    def forward(self, maps):
        return maps


def stem(channels):
    return nn.Sequential(nn.Conv3d(channels, 4, 3, padding=1, bias=False), nn.InstanceNorm3d(4, affine=True))


def steps(strides):
    return [tuple(b // a for a, b in zip(*pair, strict=True)) for pair in pairwise(strides)]


def build(encoder, make_neck, patch_zyx, **config):
    datasets = tiny_parts().datasets
    return MultiTalentConfig(**config).build(Parts(encoder, make_neck, stem, 1, patch_zyx, datasets))


def test_a_unet_decoder_is_supervised_but_for_its_coarsest_own_map():  # nnU-Net: the lowest output has weight 0
    encoder = Encoder()
    assert supervised_levels(encoder, UNet(encoder), deep=True) == (0, 1)
    assert supervised_levels(encoder, UNet(encoder), deep=False) == (0,)


def test_a_pyramid_is_supervised_but_for_its_coarsest_map():
    encoder = Encoder()
    assert supervised_levels(encoder, Pyramid(encoder, (0, 1, 2)), deep=True) == (0, 1, 2)
    assert supervised_levels(encoder, Pyramid(encoder, (1, 2)), deep=True) == (1, 2)
    assert supervised_levels(encoder, Pyramid(encoder, (1,)), deep=False) == (1,)


def test_a_neck_of_one_map_is_supervised_there():
    encoder = Encoder()
    encoder.strides, encoder.channels = STRIDES[:2], WIDTHS[:2]
    assert supervised_levels(encoder, UNet(encoder), deep=True) == (0,)


def test_a_neck_with_parameters_that_nothing_trains_is_refused():
    encoder = Encoder()
    with pytest.raises(ValueError, match=r"neck: found out.3.weight, out.3.bias .* \(0, 1, 2\) of 4, finest first"):
        supervised_levels(encoder, Pyramid(encoder, (0, 1, 2, 3)), deep=True)
    with pytest.raises(ValueError, match=r"neck: found out.1.weight, out.1.bias, out.2.weight, \.\.\. that no"):
        supervised_levels(encoder, Pyramid(encoder, (0, 1, 2)), deep=False)
    frozen = Pyramid(encoder, (0, 1, 2, 3))
    frozen.out["3"].requires_grad_(False)
    assert supervised_levels(encoder, frozen, deep=True) == (0, 1, 2)


def test_a_neck_that_makes_nothing_is_refused():
    with pytest.raises(ValueError, match="neck: found PassesOn that returns the encoder's maps"):
        supervised_levels(Encoder(), PassesOn(), deep=True)


class Normalised(Pyramid):
    """With running statistics, and a constant that is in no state dict."""

    def __init__(self, encoder, outputs):
        super().__init__(encoder, outputs)
        self.norm = nn.BatchNorm3d(8)
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, maps):
        return [self.norm(m) * self.scale for m in super().forward(maps)]


def test_finding_the_levels_leaves_the_neck_as_it_was():
    encoder = Encoder()
    encoder.channels = (8, 8, 8, 8)
    neck = Normalised(encoder, (0, 1, 2))
    before = {name: tensor.clone() for name, tensor in neck.state_dict().items()}
    assert supervised_levels(encoder, neck, deep=True) == (0, 1, 2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in neck.state_dict().items())
    assert all(parameter.grad is None for parameter in neck.parameters())


def test_weights_halve_from_level_to_level():
    assert level_weights(1) == (1.0,)
    assert level_weights(4) == pytest.approx((8 / 15, 4 / 15, 2 / 15, 1 / 15))


def test_a_cell_has_the_label_of_the_voxel_in_its_middle():
    labels = torch.arange(4 * 6 * 9).reshape(1, 4, 6, 9)
    found = at_strides(labels, (1, 2, 3))
    assert found.shape == (1, 4, 3, 3)
    assert found[0, 0, :, 0].tolist() == [1 * 9 + 1, 3 * 9 + 1, 5 * 9 + 1]
    assert found[0, 2, 0, :].tolist() == [2 * 54 + 9 + x for x in (1, 4, 7)]
    assert torch.equal(at_strides(labels, (1, 1, 1)), labels)


@given(cells=st.tuples(*[st.integers(1, 4)] * 3), strides=st.tuples(*[st.integers(1, 9)] * 3))
def test_it_is_nearest_exact_interpolation(cells, strides):
    size = [c * s for c, s in zip(cells, strides, strict=True)]
    labels = torch.arange(math.prod(size)).reshape(1, *size)
    wanted = F.interpolate(labels[None].double(), size=cells, mode="nearest-exact")[0].long()
    assert torch.equal(at_strides(labels, strides), wanted)


@pytest.mark.parametrize(
    ("make_neck", "deep", "levels"),
    [
        (UNet, True, ["0", "1"]),
        (UNet, False, ["0"]),
        (lambda encoder: Pyramid(encoder, (0, 1, 2)), True, ["0", "1", "2"]),
        (lambda encoder: Pyramid(encoder, (0,)), False, ["0"]),
        (lambda encoder: Pyramid(encoder, (1, 2)), True, ["1", "2"]),
    ],
    ids=["U-Net", "U-Net, finest", "U-FPN", "U-FPN, finest", "U-FPN without its finest map"],
)
def test_both_architectures_of_the_study_train_every_parameter(make_neck, deep, levels):
    encoder, patch = Encoder(), (8, 16, 16)
    objective = build(encoder, lambda: make_neck(encoder), patch, deep_supervision=deep)
    assert [list(heads) for heads in objective.heads.values()] == [levels, levels]
    objective(make_batch(2, 1, patch))["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())
    assert all(p.grad.any() for p in objective.encoder.parameters())


def test_a_finest_map_that_is_coarse_is_brought_to_the_voxels():
    encoder, patch = Encoder(), (8, 16, 16)
    objective = build(encoder, lambda: Pyramid(encoder, (1,)), patch, deep_supervision=False)
    batch = make_batch(1, 1, patch)
    del batch["valid"]
    with torch.no_grad():
        found = objective(batch)["loss"]
        head = objective.heads["overlapping"]["1"]
        coarse = head(objective.neck(objective.encoder(batch["image"]))[1])
        assert coarse.shape == (1, 2, 8, 8, 8)
        logits = F.interpolate(coarse, size=patch, mode="trilinear", align_corners=False)
        sums = region_sums(logits, batch["semantic"], membership([[1, 2], [2]]), exclusive=False)
    assert float(found) == pytest.approx(float(sums.entropy / sums.voxels + 1 - dice(sums.overlap).mean()), rel=1e-5)


def test_overlapping_regions_by_hand():  # organ = {1, 2}, lesion = {2}; logits ln 3 and 0, so p = 3/4 and 1/2
    labels = torch.tensor([0, 1, 2, -1]).reshape(1, 1, 1, 4)
    logits = torch.tensor([math.log(3), 0.0]).reshape(1, 2, 1, 1, 1).expand(1, 2, 1, 1, 4)
    found = region_sums(logits, labels, membership([[1, 2], [2]]), exclusive=False)
    organ = -math.log(1 / 4) - 2 * math.log(3 / 4)
    lesion = 3 * math.log(2)
    assert float(found.entropy) == pytest.approx((organ + lesion) / 2)
    assert float(found.voxels) == 3
    np.testing.assert_allclose(found.overlap, [[1.5, 0.5], [2.25, 1.5], [2.0, 1.0]], rtol=1e-6)
    np.testing.assert_allclose(dice(found.overlap), [3 / 4.25, 1 / 2.5], rtol=1e-5)


def test_regions_beside_background_by_hand():  # logits ln 1, ln 2, ln 5, so p = 1/8, 2/8, 5/8; label 7 is no region
    labels = torch.tensor([0, 1, 4, 7]).reshape(1, 1, 1, 4)
    logits = torch.tensor([1.0, 2.0, 5.0]).log().reshape(1, 3, 1, 1, 1).expand(1, 3, 1, 1, 4)
    found = region_sums(logits, labels, membership([[1], [4, 5]]), exclusive=True)
    assert float(found.entropy) == pytest.approx(-2 * math.log(1 / 8) - math.log(2 / 8) - math.log(5 / 8))
    np.testing.assert_allclose(found.overlap, [[2 / 8, 5 / 8], [1.0, 2.5], [1.0, 1.0]], rtol=1e-6)


def test_sums_of_samples_add_up():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, 3, 4, 5, generator=generator)
    labels = torch.randint(-1, 5, (5, 3, 4, 5), generator=generator)
    table = membership([[1], [3], [2, 4]])
    whole = region_sums(logits, labels, table, exclusive=True)
    parts = [region_sums(logits[i:j], labels[i:j], table, exclusive=True) for i, j in ((0, 2), (2, 5))]
    for total, *added in zip(whole, *parts, strict=True):
        torch.testing.assert_close(total, sum(added))


def test_logits_of_few_bits_are_summed_in_float32():
    logits = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.randint(-1, 4, (2, 4, 4, 4), generator=torch.Generator().manual_seed(1))
    for exclusive, regions in ((True, [[1], [3]]), (False, [[1], [1, 2], [3]])):
        table = membership(regions)
        with torch.autocast("cpu", torch.bfloat16):
            half = region_sums(logits, labels, table, exclusive=exclusive)
        full = region_sums(logits.float(), labels, table, exclusive=exclusive)
        assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(half, full, strict=True))


def test_a_neck_whose_maps_are_not_of_its_strides_is_refused():
    encoder = Encoder()
    neck = UNet(encoder)
    neck.strides = ((1, 1, 1), (2, 2, 2), (2, 4, 4), (4, 8, 8))
    objective = build(encoder, lambda: neck, (8, 16, 16))
    with pytest.raises(ValueError, match=r"neck: found map 1 of \(8, 8, 8\) cells, wanted \(4, 8, 8\)"):
        objective(make_batch(2, 1, (8, 16, 16)))


def test_a_region_that_is_not_there_and_not_guessed_has_dice_one():
    assert float(dice(torch.zeros(3, 1))) == 1
    assert float(dice(torch.tensor([[0.0], [50.0], [0.0]]))) == pytest.approx(2e-7, rel=1e-3)
