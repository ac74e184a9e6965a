"""The structures that tests/checkpoints fakes, and that export writes, against the networks they come from."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from girih_backbones import (
    PlainEncoder,
    ResidualEncoder,
    UNetDecoder,
    export_nnunet,
    load_weights,
    make_encoder,
    preset,
    read_weights,
    save_weights,
)

unet = pytest.importorskip(
    "dynamic_network_architectures.architectures.unet",
    reason="dynamic-network-architectures is not installed: dependency group `peers`",
)

KWARGS: dict[str, Any] = {
    "conv_op": nn.Conv3d,
    "conv_bias": True,
    "norm_op": nn.InstanceNorm3d,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "nonlin": nn.LeakyReLU,
    "nonlin_kwargs": {"inplace": True},
}
TOPOLOGY: dict[str, Any] = {
    "channels": (4, 6, 8),
    "steps": [(1, 1, 1), (1, 2, 2), (2, 2, 2)],
    "kernels": [(1, 3, 3), (3, 3, 3), (3, 3, 3)],
}


@pytest.fixture(scope="module")
def fakes() -> ModuleType:
    path = Path(__file__).parents[1] / "checkpoints" / "conftest.py"
    spec = importlib.util.spec_from_file_location("checkpoint_fakes", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["checkpoint_fakes"] = module
    spec.loader.exec_module(module)
    return module


def real_residual(
    in_channels: int = 1, blocks: tuple[int, ...] = (1, 2, 1), classes: int = 1, **topology: Any
) -> nn.Module:
    topology = topology or TOPOLOGY
    channels = topology["channels"]
    return unet.ResidualEncoderUNet(
        in_channels,
        len(channels),
        channels,
        kernel_sizes=topology["kernels"],
        strides=topology["steps"],
        n_blocks_per_stage=blocks,
        num_classes=classes,
        n_conv_per_stage_decoder=(1,) * (len(channels) - 1),
        **KWARGS,
    )


def real_plain(convs: int = 2, decoder_convs: int = 2) -> nn.Module:
    return unet.PlainConvUNet(
        1,
        3,
        TOPOLOGY["channels"],
        kernel_sizes=TOPOLOGY["kernels"],
        strides=TOPOLOGY["steps"],
        n_conv_per_stage=convs,
        num_classes=1,
        n_conv_per_stage_decoder=(decoder_convs,) * 2,
        **KWARGS,
    )


def shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def test_the_fakes_have_the_names_and_shapes_of_the_real_networks(fakes: ModuleType) -> None:
    assert shapes(fakes.residual_unet(blocks=(1, 2, 1), **TOPOLOGY)) == shapes(real_residual().state_dict())
    assert shapes(fakes.plain_unet(convs=(2, 2, 2), **TOPOLOGY)) == shapes(real_plain().state_dict())


def test_resencl_has_956_names(fakes: ModuleType) -> None:
    channels, blocks = (32, 64, 128, 256, 320, 320), (1, 3, 4, 6, 6, 6)
    steps, kernels = fakes.topology(channels)
    with torch.device("meta"):
        real = real_residual(blocks=blocks, channels=channels, steps=steps, kernels=kernels).state_dict()
        fake = fakes.residual_unet(channels=channels, blocks=blocks)
    assert len(real) == 956
    assert shapes(fake) == shapes(real)
    assert sum(p.numel() for p in make_encoder(preset("resenc_l"), 1).to("meta").parameters()) == 90_296_576


@pytest.mark.parametrize("kind", ["residual", "plain"])
def test_a_real_checkpoint_gives_the_real_features(tmp_path: Path, fakes: ModuleType, kind: str) -> None:
    torch.manual_seed(0)
    network = real_residual() if kind == "residual" else real_plain()
    weights = read_weights(fakes.save(tmp_path / "c.pth", network.state_dict()))
    encoder = make_encoder(weights.header["encoder"], 1)
    load_weights(encoder, weights)
    image = torch.randn(1, 1, 8, 16, 16)
    with torch.no_grad():
        for mine, theirs in zip(encoder(image), network.encoder(image), strict=True):
            torch.testing.assert_close(mine, theirs, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["residual", "plain"])
def test_an_export_loads_into_the_real_network(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    settings = {"channels": TOPOLOGY["channels"], "downsampling": TOPOLOGY["steps"], "kernels": TOPOLOGY["kernels"]}
    if kind == "residual":
        encoder, network = ResidualEncoder(1, **settings, blocks=(1, 2, 1)), real_residual()
    else:
        encoder, network = PlainEncoder(1, **settings, convs=(2, 2, 2), bias=True), real_plain(decoder_convs=1)
    neck = UNetDecoder(encoder.channels, encoder.strides, kernels=TOPOLOGY["kernels"][:-1])
    save_weights(tmp_path / "w.safetensors", encoder=encoder, neck=neck)
    assert export_nnunet(tmp_path / "c.pth", read_weights(tmp_path / "w.safetensors")) == ()
    state = torch.load(tmp_path / "c.pth", weights_only=True)["network_weights"]
    result = network.load_state_dict(state, strict=False)
    assert result.unexpected_keys == []
    assert all(".seg_layers." in key for key in result.missing_keys)
    image = torch.randn(1, 1, 8, 16, 16)
    with torch.no_grad():
        for mine, theirs in zip(encoder(image), network.encoder(image), strict=True):
            torch.testing.assert_close(mine, theirs, atol=5e-5, rtol=1e-4)
