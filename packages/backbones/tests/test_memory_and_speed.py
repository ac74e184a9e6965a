"""Options that change what a pass costs and not what it computes."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from girih_backbones import (
    UFPN,
    FeaturePyramid,
    PlainEncoder,
    ResidualEncoder,
    UNetDecoder,
    count,
    make_stems,
    set_checkpointing,
)
from girih_backbones.units import InstanceNorm


def residual_unet() -> FeaturePyramid:
    encoder = ResidualEncoder(2, channels=(3, 4, 5), downsampling=((1, 1, 1), (1, 2, 2), (2, 2, 2)), blocks=(1, 2, 1))
    return FeaturePyramid(encoder, UNetDecoder(encoder.channels, encoder.strides))


def plain_ufpn() -> FeaturePyramid:
    encoder = PlainEncoder(2, channels=(3, 4, 5), convs=(2, 1, 2), activation="relu")
    return FeaturePyramid(encoder, UFPN(encoder.channels, encoder.strides, out_channels=8, first_level=1))


NETWORKS = [residual_unet, plain_ufpn]


def image(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 2, 8, 8, 8)


def outputs_and_gradients(network: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """All maps, and the gradient of the image and of every parameter for a loss that reads every map."""
    x = x.clone().requires_grad_()
    network.zero_grad(set_to_none=True)
    maps = network(x)
    sum((m.float() * torch.linspace(-1, 1, m.numel()).reshape(m.shape)).sum() for m in maps).backward()
    return [m.detach() for m in maps] + [x.grad, *(p.grad for p in network.parameters())]


# --- checkpointing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", NETWORKS)
def test_checkpointing_changes_no_bit_of_maps_and_gradients(make: Callable[[], FeaturePyramid]) -> None:
    network = make()
    other = copy.deepcopy(network)
    set_checkpointing(other)
    x = image()
    for a, b in zip(outputs_and_gradients(network, x), outputs_and_gradients(other, x), strict=True):
        assert torch.equal(a, b)
    assert list(other.state_dict()) == list(network.state_dict())


def test_every_part_runs_twice_and_once_without() -> None:
    network, runs = residual_unet(), []
    parts = {"stem": network.encoder.stem, **{f"stage {i}": s for i, s in enumerate(network.encoder.stages)}}
    parts |= {f"level {i}": unit for i, unit in enumerate(network.neck.fuse)}
    for name, part in parts.items():
        part.register_forward_pre_hook(lambda *_, name=name: runs.append(name))
    set_checkpointing(network)
    loss = network(image())[0].sum()
    first, runs[:] = list(runs), []
    loss.backward()
    assert sorted(runs) == sorted(first) == sorted(parts)
    runs.clear()
    with torch.no_grad():
        network(image())
    set_checkpointing(network, on=False)
    network(image())[0].sum().backward()
    assert runs == first * 2


def kept_for_the_backward_pass(network: nn.Module, x: torch.Tensor) -> int:
    """Bytes of the maps that autograd holds between the forward and the backward pass."""
    ours = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        maps = network(x)  # alive while the addresses are compared
    del maps
    return sum(kept.values())


def test_checkpointing_keeps_a_third_at_most() -> None:
    network = ResidualEncoder(2, channels=(8, 8, 8), blocks=(1, 3, 4))
    everything = kept_for_the_backward_pass(network, torch.randn(1, 2, 16, 16, 16))
    set_checkpointing(network)
    assert 0 < kept_for_the_backward_pass(network, torch.randn(1, 2, 16, 16, 16)) < everything / 3


def test_stages_behind_other_stems_are_recomputed_too() -> None:
    encoder = residual_unet().encoder
    stems = make_stems(encoder, {"a": 1, "b": 4})
    images = [torch.randn(1, 8, 8, 8), torch.randn(4, 8, 8, 8)]
    gradients = []
    for on in (False, True):
        set_checkpointing(encoder, on)
        stems.zero_grad()
        encoder.stages(stems(images, ["a", "b"]))[-1].sum().backward()
        gradients.append([p.grad.clone() for p in stems.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_checkpointing_is_not_part_of_the_description() -> None:
    network = residual_unet()
    before, cost = copy.deepcopy(network.encoder.kwargs), count(network, (8, 8, 8))
    set_checkpointing(network)
    assert network.encoder.kwargs == before
    assert count(network, (8, 8, 8)) == cost


def test_a_network_without_parts_to_recompute_is_refused() -> None:
    with pytest.raises(ValueError, match="found Conv3d without an encoder or U-Net decoder"):
        set_checkpointing(nn.Conv3d(1, 1, 1))


# --- layout and precision -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", NETWORKS)
def test_channels_last_computes_the_same(make: Callable[[], FeaturePyramid]) -> None:
    network = make()
    other = copy.deepcopy(network).to(memory_format=torch.channels_last_3d)
    x = image()
    wanted = outputs_and_gradients(network, x)
    found = outputs_and_gradients(other, x.contiguous(memory_format=torch.channels_last_3d))
    for a, b in zip(wanted, found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_bfloat16_stays_near_float32(make: Callable[[], FeaturePyramid], checkpointing: bool) -> None:
    network, x = make(), image()
    wanted = outputs_and_gradients(network, x)
    set_checkpointing(network, checkpointing)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = outputs_and_gradients(network, x)
    assert found[0].dtype == torch.bfloat16
    n_maps = len(network.channels)
    for a, b in zip(wanted[:n_maps], found[:n_maps], strict=True):  # 8 bits of mantissa, some tens of layers
        assert (a - b).norm() < 0.02 * a.norm()
    assert all(g.dtype == torch.float32 for g in found[n_maps:])
    a, b = (torch.cat([g.flatten() for g in gradients[n_maps:]]) for gradients in (wanted, found))
    assert nn.functional.cosine_similarity(a, b, dim=0) > 0.99


# --- the normalisation --------------------------------------------------------------------------------------------


@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.tuples(*[st.integers(1, 4)] * 3).filter(lambda grid: grid != (1, 1, 1)),
    st.sampled_from([torch.contiguous_format, torch.channels_last_3d]),
)
@settings(max_examples=20)
def test_the_norm_is_torchs_own_to_the_bit(n, c, grid, layout) -> None:
    norm, own = InstanceNorm(c, affine=True), nn.InstanceNorm3d(c, affine=True)
    for p in norm.parameters():
        nn.init.normal_(p)
    own.load_state_dict(norm.state_dict())
    x = (3 + 2 * torch.randn(n, c, *grid)).to(memory_format=layout)
    towards = torch.randn_like(x)
    found, wanted = (
        [y, *torch.autograd.grad((y * towards).sum(), [z, *module.parameters()])]
        for module in (norm, own)
        for z in [x.clone().requires_grad_()]
        for y in [module(z)]
    )
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_an_activation_in_place_finds_no_view() -> None:
    assert not InstanceNorm(3, affine=True)(torch.randn(2, 3, 4, 4, 4, requires_grad=True))._is_view()


def test_one_cell_is_refused() -> None:  # its normalised value is always zero
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        InstanceNorm(3, affine=True)(torch.zeros(2, 3, 1, 1, 1))
