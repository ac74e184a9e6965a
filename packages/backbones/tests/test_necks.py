import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from girih_backbones import (
    UFPN,
    FeaturePyramid,
    PlainEncoder,
    ResidualEncoder,
    UNetDecoder,
    describe,
    make_encoder,
    make_neck,
    preset,
)


def n_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_necks_have_the_published_sizes() -> None:
    with torch.device("meta"):
        encoder = make_encoder(preset("resenc_l"), 1)
        decoder = make_neck({"class": "UNetDecoder", "kwargs": {}}, encoder)
        heads = sum(width + 1 for width in encoder.channels[:-1])  # five convolutions of size 1 to one channel
        assert n_parameters(decoder) == 12_051_584  # dynamic-network-architectures 0.4.4 has 12,052,389 with its heads
        assert n_parameters(decoder) + heads == 12_052_389
        ufpn = make_neck({"class": "UFPN", "kwargs": {}}, make_encoder(preset("retina_unet_v001"), 1))
        assert n_parameters(ufpn) == 2_520_736  # nnDetection v0.1 at six stages


def test_channels_of_the_pyramid_are_nndetections() -> None:
    six = PlainEncoder(1, channels=(2,) * 6)
    assert UFPN(six.channels, six.strides).channels == (32, 64, 128, 128, 128, 128)
    five = PlainEncoder(1, channels=(2,) * 5, convs=(1,) * 5)
    assert UFPN(five.channels, five.strides, first_level=1).channels == (64, 128, 128, 128, 128)
    assert UFPN(five.channels, five.strides, out_channels=16, first_level=3).channels == (8, 8, 8, 16, 16)


steps = st.lists(st.tuples(*[st.sampled_from([1, 2])] * 3), min_size=1, max_size=3)


@given(steps, st.sampled_from(["UNetDecoder", "UFPN"]), st.data())
@settings(max_examples=30)
def test_maps_keep_the_grids_of_the_encoder(downsampling, name, data) -> None:
    n = len(downsampling)
    widths = tuple(data.draw(st.integers(1, 5)) for _ in range(n))
    encoder = ResidualEncoder(1, channels=widths, downsampling=downsampling, blocks=(1,) * n)
    kwargs = {"out_channels": 12, "first_level": data.draw(st.integers(0, n - 1))} if name == "UFPN" else {}
    pyramid = FeaturePyramid(encoder, make_neck({"class": name, "kwargs": kwargs}, encoder))
    image = torch.randn(2, 1, *(2 * s for s in encoder.strides[-1]))
    maps = pyramid(image)
    assert pyramid.strides == encoder.strides
    assert len(maps) == len(pyramid.channels) == n
    for m, width, stride in zip(maps, pyramid.channels, pyramid.strides, strict=True):
        assert m.shape == (2, width, *(p // s for p, s in zip(image.shape[2:], stride, strict=True)))
    again = make_neck(describe(pyramid.neck), encoder)
    assert describe(again) == describe(pyramid.neck)
    again.load_state_dict(pyramid.neck.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(maps, again(encoder(image)), strict=True))


def random_maps(widths: tuple[int, ...], grids: list[tuple[int, int, int]]) -> list[torch.Tensor]:
    return [torch.randn(2, width, *grid, dtype=torch.float64) for width, grid in zip(widths, grids, strict=True)]


def test_unet_decoder_is_its_formula() -> None:  # up first, then the skip; the coarsest map passes
    neck = UNetDecoder((2, 3, 4), ((1, 1, 1), (1, 2, 2), (2, 4, 4)), kernels=((1, 3, 3), (3, 3, 3))).double()
    s = neck.state_dict()
    maps = random_maps((2, 3, 4), [(4, 8, 8), (4, 4, 4), (2, 2, 2)])

    def merge(level: int, below: torch.Tensor, step: tuple[int, ...], padding: tuple[int, ...]) -> torch.Tensor:
        up = F.conv_transpose3d(below, s[f"up.{level}.weight"], s[f"up.{level}.bias"], stride=step)
        both = torch.cat([up, maps[level]], 1)
        x = F.conv3d(both, s[f"fuse.{level}.conv.weight"], s[f"fuse.{level}.conv.bias"], padding=padding)
        mean, var = x.mean((2, 3, 4), keepdim=True), x.var((2, 3, 4), keepdim=True, unbiased=False)
        return F.leaky_relu((x - mean) / (var + 1e-5).sqrt(), 0.01)  # weight 1 and bias 0 at the start

    middle = merge(1, maps[2], (2, 2, 2), (1, 1, 1))
    fine = merge(0, middle, (1, 2, 2), (0, 1, 1))
    for found, wanted in zip(neck(maps), [fine, middle, maps[2]], strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)


def test_ufpn_is_its_formula() -> None:  # sums are taken before the output convolutions
    neck = UFPN((2, 3, 4), ((1, 1, 1), (1, 2, 2), (2, 4, 4)), out_channels=16, first_level=1).double()
    s = neck.state_dict()
    maps = random_maps((2, 3, 4), [(4, 8, 8), (4, 4, 4), (2, 2, 2)])
    side = [F.conv3d(maps[i], s[f"lateral.{i}.weight"], s[f"lateral.{i}.bias"]) for i in range(3)]
    middle = side[1] + F.conv_transpose3d(side[2], s["up.1.weight"], s["up.1.bias"], stride=(2, 2, 2))
    fine = side[0] + F.conv_transpose3d(middle, s["up.0.weight"], s["up.0.bias"], stride=(1, 2, 2))
    for i, (found, x) in enumerate(zip(neck(maps), [fine, middle, side[2]], strict=True)):
        wanted = F.conv3d(x, s[f"out.{i}.weight"], s[f"out.{i}.bias"], padding=1)
        torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)


def test_a_neck_does_not_change_the_encoders_maps() -> None:
    strides = ((1, 1, 1), (2, 2, 2))
    for neck in (UNetDecoder((2, 3), strides), UFPN((2, 3), strides, out_channels=8, first_level=0)):
        maps = [torch.randn(1, 2, 4, 4, 4), torch.randn(1, 3, 2, 2, 2)]
        before = [m.clone() for m in maps]
        neck(maps)
        assert all(torch.equal(a, b) for a, b in zip(maps, before, strict=True))


def test_every_parameter_of_a_unet_serves_the_finest_map() -> None:
    encoder = ResidualEncoder(1, channels=(2, 4, 4), blocks=(1, 1, 1))
    pyramid = FeaturePyramid(encoder, UNetDecoder(encoder.channels, encoder.strides))
    pyramid(torch.randn(1, 1, 8, 8, 8))[0].square().sum().backward()
    assert all(p.grad is not None for p in pyramid.parameters())


def test_wrong_maps_and_settings_are_refused() -> None:
    strides = ((1, 1, 1), (2, 2, 2))
    with pytest.raises(ValueError, match=r"maps: found channels \(2,\), wanted \(2, 3\)"):
        UNetDecoder((2, 3), strides)([torch.zeros(1, 2, 4, 4, 4)])
    with pytest.raises(ValueError, match=r"maps: found channels \(3, 2\), wanted \(2, 3\)"):
        UFPN((2, 3), strides, first_level=0)([torch.zeros(1, 3, 4, 4, 4), torch.zeros(1, 2, 2, 2, 2)])
    with pytest.raises(ValueError, match="first_level: found 2, wanted 0 to 1 for 2 maps"):
        UFPN((2, 3), strides)
    with pytest.raises(ValueError, match=r"strides\[1\]: found \(3, 3, 3\), wanted multiples of strides\[0\]"):
        UNetDecoder((2, 3), ((2, 2, 2), (3, 3, 3)))
    with pytest.raises(ValueError, match="strides: found 1 entries, wanted one for each of the 2"):
        UFPN((2, 3), strides[:1], first_level=0)
    with pytest.raises(ValueError, match="neck class: found 'PAN', wanted one of"):
        make_neck({"class": "PAN", "kwargs": {}}, ResidualEncoder(1, channels=(2,), blocks=(1,)))


def test_ufpn_computes_only_what_is_read() -> None:
    torch.manual_seed(0)
    channels, strides = (2, 3, 4, 5), ((1, 1, 1), (1, 2, 2), (2, 4, 4), (4, 8, 8))
    every = UFPN(channels, strides, out_channels=16, first_level=1)
    some = UFPN(channels, strides, out_channels=16, first_level=1, outputs=(1, 2))
    assert set(some.state_dict()) < set(every.state_dict())
    some.load_state_dict({name: tensor for name, tensor in every.state_dict().items() if name in some.state_dict()})
    maps = [torch.randn(1, c, 8 // z, 8 // y, 8 // x) for c, (z, y, x) in zip(channels, strides, strict=True)]
    found, wanted = some(maps), every(maps)
    assert some.channels == (2, 16, 16, 16)
    assert [m.shape[1] for m in found] == list(some.channels)
    assert found[0] is maps[0]
    assert found[1].equal(wanted[1])
    assert found[2].equal(wanted[2])
    (found[1].sum() + found[2].sum()).backward()
    assert all(parameter.grad is not None for parameter in some.parameters())
    with pytest.raises(ValueError, match=r"outputs: found \(4,\), wanted at least one of 0 to 3"):
        UFPN(channels, strides, outputs=(4,))
