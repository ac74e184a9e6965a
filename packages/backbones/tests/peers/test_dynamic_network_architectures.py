"""The same weights give, to the bit, the maps and gradients of nnU-Net's dynamic-network-architectures 0.4.4."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from girih_backbones import (
    FeaturePyramid,
    PlainEncoder,
    ResidualEncoder,
    UNetDecoder,
    count,
    make_encoder,
    preset,
    set_checkpointing,
)

theirs = pytest.importorskip(
    "dynamic_network_architectures.architectures.unet",
    reason="dynamic-network-architectures is not installed: dependency groups `peers` and `peers-no-deps`",
)

LEAKY, RELU = (nn.LeakyReLU, {"inplace": True}), (nn.ReLU, {"inplace": True})


def peer(
    encoder: ResidualEncoder | PlainEncoder, *, bias: bool = True, activation: tuple[type, dict] = LEAKY
) -> nn.Module:
    """Their U-Net of the encoder's topology, with a head of one channel on every level."""
    residual, n = isinstance(encoder, ResidualEncoder), len(encoder.channels)
    kwargs = encoder.kwargs
    return (theirs.ResidualEncoderUNet if residual else theirs.PlainConvUNet)(
        encoder.in_channels,
        n,
        list(encoder.channels),
        nn.Conv3d,
        kwargs["kernels"],
        kwargs["downsampling"],
        kwargs["blocks" if residual else "convs"],
        1,  # classes
        [1] * (n - 1),  # convolutions of a decoder level
        bias,
        nn.InstanceNorm3d,
        {"eps": 1e-5, "affine": True},
        nonlin=activation[0],
        nonlin_kwargs=activation[1],
        deep_supervision=True,
    )


def ours(encoder: ResidualEncoder | PlainEncoder) -> FeaturePyramid:
    neck = UNetDecoder(encoder.channels, encoder.strides, kernels=encoder.kwargs["kernels"][:-1])
    return FeaturePyramid(encoder, neck)


def their_name(name: str, n_stages: int, *, residual: bool) -> str:
    """What they call a tensor of ours."""
    if found := re.fullmatch(r"neck\.(up|fuse)\.(\d+)\.(.*)", name):
        kind, level, rest = found.groups()
        place = n_stages - 2 - int(level)  # they count from the coarsest level
        return f"decoder.transpconvs.{place}.{rest}" if kind == "up" else f"decoder.stages.{place}.convs.0.{rest}"
    if residual:
        name = name.replace("encoder.stem.", "encoder.stem.convs.0.")
        return re.sub(r"encoder\.stages\.(\d+)\.(\d+)\.", r"encoder.stages.\1.blocks.\2.", name)
    if name.startswith("encoder.stem."):
        return name.replace("encoder.stem.", "encoder.stages.0.0.convs.0.")
    stage, unit, rest = re.fullmatch(r"encoder\.stages\.(\d+)\.(\d+)\.(.*)", name).groups()
    return f"encoder.stages.{stage}.0.convs.{int(unit) + (stage == '0')}.{rest}"  # the stem is their first


def pairs(network: FeaturePyramid, other: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Our parameters with theirs, all of both but their heads. Their aliases are one parameter."""
    n, residual = len(network.encoder.channels), isinstance(network.encoder, ResidualEncoder)
    left = {name: p for name, p in other.named_parameters() if ".seg_layers." not in name}
    found = {}
    for name, p in network.named_parameters():
        wanted = their_name(name, n, residual=residual)
        if ".skip.proj." in wanted:  # its number is that of the pooling before it, or nothing before it
            wanted = next(w for i in "01" if (w := wanted.replace("skip.proj", f"skip.{i}")) in left)
        found[name] = (p, left.pop(wanted))
    assert not left, left.keys()
    return found


def assert_same(encoder: ResidualEncoder | PlainEncoder, *, cells=(2, 2, 3), **kwargs) -> None:
    """Random weights, random images: all maps and all gradients, of the decoder too where theirs has biases."""
    network, other = ours(encoder), peer(encoder, **kwargs)
    decoded = kwargs.get("bias", True)
    if not decoded:  # our decoder always has them
        network.neck, other.decoder = nn.Module(), nn.Module()
    parameters = pairs(network, other)
    with torch.no_grad():
        for name, (p, q) in parameters.items():
            if not name.endswith("conv.weight"):
                p.add_(0.3 * torch.randn_like(p))  # norms and biases away from ones and zeros
            q.copy_(p)
    images = torch.randn(2, encoder.in_channels, *(c * s for c, s in zip(cells, encoder.strides[-1], strict=True)))
    x, y = (images.clone().requires_grad_() for _ in range(2))
    found, wanted = encoder(x), other.encoder(y)
    if decoded:
        found, wanted = found + network.neck(found)[:-1], wanted + their_decoded(other.decoder, wanted)
    towards = [torch.randn_like(m) for m in found]
    for maps in (found, wanted):
        sum((m * t).sum() for m, t in zip(maps, towards, strict=True)).backward()
    compared = {f"map {i}": both for i, both in enumerate(zip(found, wanted, strict=True))}
    compared |= {name: (p.grad, q.grad) for name, (p, q) in parameters.items()} | {"image": (x.grad, y.grad)}
    assert not [name for name, (a, b) in compared.items() if not torch.equal(a, b)]  # the same operations, in order


def their_decoded(decoder: nn.Module, skips: list[torch.Tensor]) -> list[torch.Tensor]:
    """What their heads would see, finest first: their decoder returns only what the heads make of it."""
    x, decoded = skips[-1], []
    for level, (up, stage) in enumerate(zip(decoder.transpconvs, decoder.stages, strict=True)):
        x = stage(torch.cat((up(x), skips[-(level + 2)]), 1))
        decoded.append(x)
    return decoded[::-1]


ANISOTROPIC = {
    "channels": (4, 6, 6, 8),
    "downsampling": ((1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 2, 1)),
    "kernels": ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 1)),
}
ISOTROPIC = {"channels": (4, 8, 16, 20, 20)}


@pytest.mark.parametrize("in_channels", [1, 4])
@pytest.mark.parametrize("topology", [ISOTROPIC, ANISOTROPIC], ids=["isotropic", "anisotropic"])
def test_residual_unet(topology: dict, in_channels: int) -> None:
    blocks = (1, 3, 2, 1, 2)[: len(topology["channels"])]
    assert_same(ResidualEncoder(in_channels, **topology, blocks=blocks))


@pytest.mark.parametrize("in_channels", [1, 4])
@pytest.mark.parametrize("topology", [ISOTROPIC, ANISOTROPIC], ids=["isotropic", "anisotropic"])
@pytest.mark.parametrize(("bias", "activation"), [(True, "leaky_relu"), (False, "relu")])
def test_plain_unet(topology: dict, in_channels: int, bias: bool, activation: str) -> None:
    convs = (2, 2, 1, 3, 2)[: len(topology["channels"])]
    encoder = PlainEncoder(in_channels, **topology, convs=convs, bias=bias, activation=activation)
    assert_same(encoder, bias=bias, activation=LEAKY if activation == "leaky_relu" else RELU)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_resenc_l_at_an_eighth_of_its_width(checkpointing: bool) -> None:
    description = preset("resenc_l")
    description["kwargs"]["channels"] = [4, 8, 16, 32, 40, 40]
    encoder = make_encoder(description, 1)
    set_checkpointing(encoder, checkpointing)
    assert_same(encoder)


@given(st.data())
@settings(max_examples=15)
def test_any_topology(data) -> None:
    n = data.draw(st.integers(2, 4))

    def per_stage(values: st.SearchStrategy) -> list:
        return [data.draw(values) for _ in range(n)]

    step = st.tuples(*[st.sampled_from([1, 2])] * 3)
    topology = {
        "channels": per_stage(st.integers(1, 6)),
        "downsampling": [(1, 1, 1), *per_stage(step)[1:]],  # their decoder does not know of a step of the first stage
        "kernels": per_stage(st.tuples(*[st.sampled_from([1, 3])] * 3)),
    }
    kind, depth = data.draw(st.sampled_from([(ResidualEncoder, "blocks"), (PlainEncoder, "convs")]))
    encoder = kind(data.draw(st.integers(1, 3)), **topology, **{depth: per_stage(st.integers(1, 2))}, **(
        {} if kind is ResidualEncoder else {"bias": True}
    ))  # fmt: skip
    assert_same(encoder)


def test_full_size() -> None:
    with torch.device("meta"):
        encoder = make_encoder(preset("resenc_l"), 1)
        network, other = ours(encoder), peer(encoder)
        shapes = {name: (p.shape, q.shape) for name, (p, q) in pairs(network, other).items()}
    assert all(a == b for a, b in shapes.values())
    heads = sum(p.numel() for p in other.decoder.seg_layers.parameters())
    total = sum(p.numel() for p in other.parameters())
    assert total == sum(p.numel() for p in network.parameters()) + heads == 102_348_965
    encoder = make_encoder(preset("retina_unet_v001"), 1)
    assert sum(p.numel() for p in peer(encoder, bias=False).encoder.parameters()) == 14_022_880


def test_activations_are_those_of_their_memory_estimate() -> None:
    encoder = ResidualEncoder(2, **(ANISOTROPIC | {"channels": (4, 5, 6, 8)}), blocks=(2, 1, 2, 1))
    patch = tuple(4 * s for s in encoder.strides[-1])
    heads = sum(patch[0] * patch[1] * patch[2] // (z * y * x) for z, y, x in encoder.strides[:-1])  # of one channel
    assert count(ours(encoder), patch).activations + heads == peer(encoder).compute_conv_feature_map_size(patch)
