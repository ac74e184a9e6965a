import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from girih_backbones import (
    Description,
    FeaturePyramid,
    PlainEncoder,
    ResidualEncoder,
    UNetDecoder,
    describe,
    make_encoder,
    make_stem,
    preset,
)
from girih_backbones.residual import ResidualBlock


def n_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_resenc_l_has_the_published_size() -> None:  # counted in dynamic-network-architectures 0.4.4
    with torch.device("meta"):
        encoder = make_encoder(preset("resenc_l"), 1)
        assert n_parameters(encoder) == 90_296_576
        assert n_parameters(encoder.stem) == 960
        stages = [n_parameters(stage) for stage in encoder.stages]
        assert stages == [55_488, 611_584, 3_329_280, 20_391_424, 32_718_720, 33_189_120]
        assert n_parameters(make_stem(encoder, 4)) == 3_552
    assert len(encoder.state_dict()) == 224
    assert encoder.channels == (32, 64, 128, 256, 320, 320)
    assert encoder.strides == tuple((s, s, s) for s in (1, 2, 4, 8, 16, 32))


@pytest.mark.parametrize("name", ["retina_unet_v001", "retina_unet_v002"])
def test_retina_u_net_encoder_has_the_published_size(name: str) -> None:  # nnDetection at six stages
    with torch.device("meta"):
        encoder = make_encoder(preset(name), 1)
    assert n_parameters(encoder) == 14_022_880
    activation = nn.ReLU if name.endswith("1") else nn.LeakyReLU
    units = [m for m in encoder.modules() if isinstance(m, nn.ReLU | nn.LeakyReLU)]
    assert len(units) == 12
    assert all(isinstance(unit, activation) for unit in units)


def test_plain_encoder_with_bias_has_the_size_of_nnunets() -> None:
    with torch.device("meta"):
        assert n_parameters(PlainEncoder(1, bias=True)) == 14_025_120


def test_defaults_are_the_preset() -> None:
    with torch.device("meta"):
        assert describe(ResidualEncoder(1)) == preset("resenc_l")


@pytest.mark.parametrize("name", ["resenc_l", "retina_unet_v001", "retina_unet_v002"])
def test_a_description_survives_json(name: str) -> None:
    with torch.device("meta"):
        encoder = make_encoder(json.loads(json.dumps(preset(name))), 2)
        again = make_encoder(json.loads(json.dumps(describe(encoder))), 2)
    assert describe(again) == preset(name)
    shapes = [(k, v.shape) for k, v in encoder.state_dict().items()]
    assert shapes == [(k, v.shape) for k, v in again.state_dict().items()]


def test_a_preset_is_the_callers_own() -> None:
    preset("resenc_l")["kwargs"]["blocks"][0] = 7
    assert preset("resenc_l")["kwargs"]["blocks"][0] == 1


# --- shapes -------------------------------------------------------------------------------------------------------


def triples(values: st.SearchStrategy[int]) -> st.SearchStrategy[tuple[int, int, int]]:
    return st.tuples(values, values, values)


@st.composite
def descriptions(draw: st.DrawFn) -> tuple[Description, tuple[int, int, int]]:
    """An encoder of any topology, and its patch in cells of the coarsest map."""
    n = draw(st.integers(1, 3))

    def per_stage(values: st.SearchStrategy) -> list:
        return [draw(values) for _ in range(n)]

    name, depth = draw(st.sampled_from([("ResidualEncoder", "blocks"), ("PlainEncoder", "convs")]))
    kwargs = {
        "channels": per_stage(st.integers(1, 5)),
        "downsampling": per_stage(triples(st.sampled_from([1, 2, 3]))),
        "kernels": per_stage(triples(st.sampled_from([1, 3]))),
        depth: per_stage(st.integers(1, 2)),
    }
    cells = draw(triples(st.integers(1, 2)).filter(lambda c: c != (1, 1, 1)))
    return {"class": name, "kwargs": kwargs}, cells


@given(descriptions(), st.integers(1, 3), st.integers(1, 2))
@settings(max_examples=40)
def test_every_map_has_its_channels_and_its_stride(described, in_channels, batch) -> None:
    description, cells = described
    encoder = make_encoder(description, in_channels)
    patch = tuple(c * s for c, s in zip(cells, encoder.strides[-1], strict=True))
    image = torch.randn(batch, in_channels, *patch)
    maps = encoder(image)
    assert len(maps) == len(encoder.channels) == len(encoder.strides)
    for m, width, stride in zip(maps, encoder.channels, encoder.strides, strict=True):
        assert m.shape == (batch, width, *(p // s for p, s in zip(patch, stride, strict=True)))
        assert torch.isfinite(m).all()
    assert all(name.startswith(("stem.", "stages.")) for name in encoder.state_dict())
    by_hand = encoder.stages(encoder.stem(image))
    assert all(torch.equal(a, b) for a, b in zip(maps, by_hand, strict=True))


@given(descriptions(), st.data())
@settings(max_examples=30)
def test_a_description_gives_back_the_network(described, data) -> None:
    description, cells = described
    if description["class"] == "PlainEncoder":
        choices = {"activation": ["relu", "leaky_relu"], "bias": [True, False], "init": ["torch", "he", "he_fan_out"]}
    else:
        choices = {"init": ["torch", "he", "he_fan_out", "he_zero_last_norm"]}
    description["kwargs"] |= {name: data.draw(st.sampled_from(values)) for name, values in choices.items()}
    encoder = make_encoder(description, 2)
    assert describe(encoder) == json.loads(json.dumps(description))  # tuples are lists in JSON
    again = make_encoder(json.loads(json.dumps(describe(encoder))), 2)
    assert describe(again) == describe(encoder)
    again.load_state_dict(encoder.state_dict())
    image = torch.randn(1, 2, *(c * s for c, s in zip(cells, encoder.strides[-1], strict=True)))
    assert all(torch.equal(a, b) for a, b in zip(encoder(image), again(image), strict=True))


@given(descriptions())
@settings(max_examples=20)
def test_samples_of_a_batch_do_not_mix(described) -> None:
    description, cells = described
    encoder = make_encoder(description, 1)
    images = torch.randn(2, 1, *(c * s for c, s in zip(cells, encoder.strides[-1], strict=True)))
    for joint, alone in zip(encoder(images), encoder(images[1:]), strict=True):
        torch.testing.assert_close(joint[1:], alone, atol=1e-4, rtol=1e-4)


def test_gradient_reaches_every_parameter() -> None:
    encoder = ResidualEncoder(1, channels=(2, 4, 4), blocks=(1, 2, 1))
    sum(m.square().mean() for m in encoder(torch.randn(1, 1, 8, 8, 8))).backward()
    for name, p in encoder.named_parameters():  # a bias before a normalisation has the gradient zero
        assert p.grad is not None
        assert p.grad.abs().sum() > 0 or name.endswith("conv.bias")


# --- one block against the formula --------------------------------------------------------------------------------


def conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | float, stride: tuple[int, ...]) -> np.ndarray:
    kernel = weight.shape[2:]
    padded = np.pad(x, [(0, 0), *((k // 2, k // 2) for k in kernel)])
    out_shape = [(n + 2 * (k // 2) - k) // s + 1 for n, k, s in zip(x.shape[1:], kernel, stride, strict=True)]
    out = np.zeros((weight.shape[0], *out_shape))
    for offset in np.ndindex(*kernel):
        window = tuple(slice(o, o + s * n, s) for o, s, n in zip(offset, stride, out_shape, strict=True))
        out += np.einsum("dc,czyx->dzyx", weight[(..., *offset)], padded[(slice(None), *window)])
    return out + np.reshape(bias, (-1, 1, 1, 1))


def norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    mean, variance = (f(x, axis=(1, 2, 3), keepdims=True) for f in (np.mean, np.var))
    return (x - mean) / np.sqrt(variance + 1e-5) * weight[:, None, None, None] + bias[:, None, None, None]


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.01 * x)


def pool(x: np.ndarray, stride: tuple[int, ...]) -> np.ndarray:
    c, (z, y, x_), (a, b, d) = x.shape[0], x.shape[1:], stride
    return x.reshape(c, z // a, a, y // b, b, x_ // d, d).mean((2, 4, 6))


@pytest.mark.parametrize(
    ("widths", "kernel", "stride"),
    [
        ((3, 3), (3, 3, 3), (1, 1, 1)),  # identity
        ((3, 3), (3, 3, 3), (2, 2, 2)),  # pooling alone, as in the last stage of ResEncL
        ((2, 5), (3, 3, 3), (1, 1, 1)),  # projection alone
        ((2, 5), (1, 3, 3), (1, 2, 2)),  # both, anisotropic
        ((4, 2), (3, 1, 3), (3, 1, 2)),
    ],
)
def test_residual_block_is_the_formula(widths, kernel, stride) -> None:
    block = ResidualBlock(*widths, kernel=kernel, stride=stride).double()
    for p in block.parameters():
        nn.init.normal_(p)
    image = torch.randn(2, widths[0], 6, 4, 8, dtype=torch.float64)
    state = {name: tensor.numpy() for name, tensor in block.state_dict().items()}

    def unit(name: str, x: np.ndarray, step: tuple[int, ...]) -> np.ndarray:
        bias = state.get(f"{name}.conv.bias", 0.0)
        x = conv(x, state[f"{name}.conv.weight"], bias, step)
        return norm(x, state[f"{name}.norm.weight"], state[f"{name}.norm.bias"])

    for sample, out in zip(image.numpy(), block(image).detach().numpy(), strict=True):
        main = unit("conv2", leaky(unit("conv1", sample, stride)), (1, 1, 1))
        skip = pool(sample, stride)
        if widths[0] != widths[1]:
            skip = unit("skip.proj", skip, (1, 1, 1))
        np.testing.assert_allclose(out, leaky(main + skip), atol=1e-9)
    assert ("skip.proj.conv.weight" in state) == (widths[0] != widths[1])
    assert "skip.proj.conv.bias" not in state


def test_residual_block_does_not_change_its_input() -> None:
    block, image = ResidualBlock(2, 2), torch.randn(1, 2, 4, 4, 4)
    before = image.clone()
    block(image)
    assert torch.equal(image, before)


# --- starting values ----------------------------------------------------------------------------------------------


def test_he_zero_last_norm_starts_every_block_as_its_skip() -> None:
    encoder = ResidualEncoder(1, channels=(4, 4), blocks=(2, 1), init="he_zero_last_norm")
    h = torch.rand(1, 4, 4, 4, 4)  # positive: the last activation changes nothing
    first, second = encoder.stages(h)
    torch.testing.assert_close(first, h)
    torch.testing.assert_close(second, nn.functional.avg_pool3d(h, 2))
    for name, p in encoder.named_parameters():
        if ".norm." in name:
            assert bool(p.any()) == (name.endswith("weight") and "conv2" not in name)


@pytest.mark.parametrize(("init", "fan"), [("he", 27 * 8), ("he_fan_out", 27 * 64)])
def test_he_has_the_variance_of_its_fan(init: str, fan: int) -> None:  # He et al. 2015, eq. 14, with slope 0.01
    encoder = PlainEncoder(1, channels=(8, 64), convs=(1, 1), init=init, bias=True)
    weight, bias = (encoder.state_dict()[f"stages.1.0.conv.{p}"] for p in ("weight", "bias"))
    assert weight.var().item() == pytest.approx(2 / (1 + 0.01**2) / fan, rel=0.05)
    assert not bias.any()


def test_torch_init_is_torchs_own() -> None:
    torch.manual_seed(3)
    encoder = ResidualEncoder(2, channels=(4,), blocks=(1,))
    torch.manual_seed(3)
    assert torch.equal(encoder.stem.conv.weight, nn.Conv3d(2, 4, 3).weight)


# --- stems --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ResidualEncoder, PlainEncoder])
def test_a_new_stem_takes_other_images_into_the_same_stages(kind: type) -> None:
    depth = {"blocks" if kind is ResidualEncoder else "convs": (1, 1)}
    encoder = kind(1, channels=(3, 4), downsampling=((1, 2, 2), (2, 2, 2)), kernels=((1, 3, 3), (3, 3, 3)), **depth)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    stem = make_stem(encoder, 4)
    maps = encoder.stages(stem(torch.randn(1, 4, 4, 8, 8)))
    assert [tuple(m.shape) for m in maps] == [(1, 3, 4, 4, 4), (1, 4, 2, 2, 2)]
    assert stem.state_dict().keys() == encoder.stem.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ResidualEncoder, PlainEncoder])
def test_a_patch_that_does_not_divide_is_refused_with_one_that_does(kind: type) -> None:
    encoder = kind(1, channels=(1,) * 6)
    with pytest.raises(ValueError, match=r"patch: found \(64, 64, 80\).*\(32, 32, 32\).*\(64, 64, 96\)"):
        encoder(torch.zeros(1, 1, 64, 64, 80))


def test_a_stem_with_a_step_does_not_round_a_patch_up() -> None:
    encoder = PlainEncoder(1, channels=(2, 2), downsampling=((2, 2, 2), (2, 2, 2)), convs=(1, 1))
    assert encoder.stem(torch.zeros(1, 1, 15, 16, 16)).shape[2:] == (8, 8, 8)  # which the stages would take
    with pytest.raises(ValueError, match=r"patch: found \(15, 16, 16\)"):
        encoder(torch.zeros(1, 1, 15, 16, 16))


def test_a_patch_that_becomes_one_cell_is_refused() -> None:
    encoder = ResidualEncoder(1, channels=(1,) * 6)  # total stride 32, as ResEncL
    with pytest.raises(ValueError, match=r"patch: found \(32, 32, 32\) voxels, which is a single cell"):
        encoder(torch.zeros(1, 1, 32, 32, 32))
    with pytest.raises(ValueError, match="single cell"):  # also by the way of another stem
        encoder.stages(torch.zeros(1, 1, 32, 32, 32))
    assert encoder(torch.zeros(1, 1, 32, 32, 64))[-1].shape == (1, 1, 1, 1, 2)


def test_the_wrong_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="image: found 3 channels, wanted 1"):
        ResidualEncoder(1, channels=(2, 2), blocks=(1, 1))(torch.zeros(1, 3, 8, 8, 8))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"channels": ()}, "channels: found no stage"),
        ({"channels": (4, 0), "blocks": (1, 1)}, "channels: found"),
        ({"channels": (4, 8), "blocks": (1,)}, "blocks: found 1 entries, wanted one for each of the 2"),
        ({"channels": (4, 8), "blocks": (1, 1), "downsampling": ((1, 1, 1),)}, "downsampling: found 1 entries"),
        ({"channels": (4,), "blocks": (1,), "downsampling": ((1, 1),)}, r"downsampling\[0\]: found \(1, 1\)"),
        ({"channels": (4,), "blocks": (1,), "downsampling": ((1, 1, 0),)}, r"downsampling\[0\]: found \(1, 1, 0\)"),
        ({"channels": (4,), "blocks": (1,), "kernels": ((2, 3, 3),)}, r"kernels\[0\]: found \(2, 3, 3\), wanted odd"),
        ({"channels": (4,), "blocks": (10**6,)}, "blocks: found 1000000 in total, wanted at most"),
        ({"channels": (2**40,), "blocks": (1,)}, "channels: found"),
    ],
)
def test_a_wrong_topology_is_refused(kwargs, message) -> None:
    with pytest.raises(ValueError, match=message):
        ResidualEncoder(1, **kwargs)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"preset: found 'resenc_m', wanted one of \['resenc_l'"):
        preset("resenc_m")
    with pytest.raises(ValueError, match="encoder class: found 'Primus', wanted one of"):
        make_encoder({"class": "Primus", "kwargs": {}}, 1)
    with pytest.raises(ValueError, match=r"encoder kwargs of ResidualEncoder: .*'strides'"):
        make_encoder({"class": "ResidualEncoder", "kwargs": {"strides": [[1, 1, 1]]}}, 1)
    with pytest.raises(ValueError, match="init"):
        make_encoder({"class": "ResidualEncoder", "kwargs": {"channels": [2], "blocks": [1], "init": "xavier"}}, 1)
    with pytest.raises(ValueError, match="init: found 'he_zero_last_norm'"):
        PlainEncoder(1, init="he_zero_last_norm")
    encoder = ResidualEncoder(1, channels=(2,), blocks=(1,))
    pyramid = FeaturePyramid(encoder, UNetDecoder(encoder.channels, encoder.strides))
    with pytest.raises(ValueError, match="module: found FeaturePyramid"):
        describe(pyramid)
