import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from girih_backbones import (
    UFPN,
    Counts,
    FeaturePyramid,
    PlainEncoder,
    ResidualEncoder,
    UNetDecoder,
    count,
    make_encoder,
    preset,
)


@pytest.mark.parametrize(("edge", "encoder_gmac", "unet_gmac"), [(128, 489, 717), (160, 955, 1401), (192, 1651, 2421)])
def test_resenc_l_costs_what_was_measured(edge, encoder_gmac, unet_gmac) -> None:
    with torch.device("meta"):
        encoder = make_encoder(preset("resenc_l"), 1)
        unet = FeaturePyramid(encoder, UNetDecoder(encoder.channels, encoder.strides))
    assert count(encoder, (edge,) * 3).multiply_accumulates / 1e9 == pytest.approx(encoder_gmac, rel=1e-3)
    assert count(unet, (edge,) * 3).multiply_accumulates / 1e9 == pytest.approx(unet_gmac, rel=1e-3)
    assert count(unet, (edge,) * 3).parameters == 90_296_576 + 12_051_584


def test_one_convolution_by_hand() -> None:
    encoder = PlainEncoder(2, channels=(3,), convs=(1,), kernels=((1, 3, 3),), downsampling=((1, 2, 2),), bias=True)
    outputs = 3 * 4 * 5 * 6  # channels, z, y, x
    assert count(encoder, (4, 10, 12)) == Counts(
        parameters=3 * 2 * 9 + 3 + 2 * 3, activations=outputs, multiply_accumulates=outputs * 2 * 9
    )


def test_a_transposed_convolution_by_hand() -> None:  # every input cell writes 2 x 2 x 2 cells of 3 channels
    encoder = PlainEncoder(1, channels=(3, 5), convs=(1, 1))
    neck = UNetDecoder(encoder.channels, encoder.strides)
    alone, both = count(encoder, (4, 4, 4)), count(FeaturePyramid(encoder, neck), (4, 4, 4))
    up, fuse = 5 * 8 * (3 * 8), (3 * 64) * (6 * 27)
    assert both.multiply_accumulates - alone.multiply_accumulates == up + fuse
    assert both.activations - alone.activations == 3 * 64 + 3 * 64
    assert both.parameters - alone.parameters == sum(p.numel() for p in neck.parameters())


def counted_by_hooks(network: nn.Module, image: torch.Tensor) -> tuple[int, int]:
    """Activations and multiply-accumulates of a network that runs."""
    totals = [0, 0]

    def add(module: nn.Module, inputs: tuple[torch.Tensor], out: torch.Tensor) -> None:
        cells = inputs[0] if isinstance(module, nn.ConvTranspose3d) else out
        totals[0] += out.numel()
        totals[1] += cells.numel() * module.weight[0].numel()

    for part in network.modules():
        if isinstance(part, nn.Conv3d | nn.ConvTranspose3d):
            part.register_forward_hook(add)
    network(image)
    return totals[0], totals[1]


@given(st.data())
@settings(max_examples=25)
def test_counts_are_those_of_a_network_that_runs(data) -> None:
    n = data.draw(st.integers(1, 3))

    def per_stage(values: st.SearchStrategy) -> list:
        return [data.draw(values) for _ in range(n)]

    step = st.tuples(*[st.sampled_from([1, 2])] * 3)
    topology = {
        "channels": per_stage(st.integers(1, 5)),
        "downsampling": per_stage(step),
        "kernels": per_stage(st.tuples(*[st.sampled_from([1, 3])] * 3)),
    }
    kind, depth = data.draw(st.sampled_from([(ResidualEncoder, "blocks"), (PlainEncoder, "convs")]))
    encoder = kind(data.draw(st.integers(1, 2)), **topology, **{depth: per_stage(st.integers(1, 2))})
    necks = {
        "none": lambda: encoder,
        "unet": lambda: FeaturePyramid(encoder, UNetDecoder(encoder.channels, encoder.strides)),
        "ufpn": lambda: FeaturePyramid(encoder, UFPN(encoder.channels, encoder.strides, out_channels=8, first_level=0)),
    }
    network = necks[data.draw(st.sampled_from(sorted(necks)))]()
    patch = tuple(2 * s for s in encoder.strides[-1])
    found = count(network, patch)
    image = torch.randn(1, encoder.in_channels, *patch)
    with FlopCounterMode(display=False) as flops:
        network(image)
    assert (found.activations, found.multiply_accumulates) == counted_by_hooks(network, image)
    assert 2 * found.multiply_accumulates == flops.get_total_flops()


def test_counting_leaves_the_network_as_it_is() -> None:
    encoder = ResidualEncoder(1, channels=(2, 3), blocks=(1, 1)).half()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    count(encoder, [64, 64, 64])
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert all(p.device.type == "cpu" and p.grad is None for p in encoder.parameters())


def test_a_patch_that_does_not_fit_is_refused() -> None:
    encoder = ResidualEncoder(1, channels=(2, 3), blocks=(1, 1))
    with pytest.raises(ValueError, match=r"patch: found \(5, 4, 4\) voxels"):
        count(encoder, (5, 4, 4))
    with pytest.raises(ValueError, match=r"patch: found \(4, 4\), wanted three numbers"):
        count(encoder, (4, 4))
