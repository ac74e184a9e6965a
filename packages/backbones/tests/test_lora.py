import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from girih_backbones import (
    UFPN,
    FeaturePyramid,
    PlainEncoder,
    ResidualEncoder,
    add_lora,
    describe,
    load_weights,
    merge_lora,
    read_weights,
    save_weights,
    set_checkpointing,
)

KERNELS = ((1, 3, 3), (3, 3, 3), (1, 1, 3))  # and 1x1x1, the projections of the skips


def anisotropic() -> ResidualEncoder:
    steps = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    return ResidualEncoder(2, channels=(3, 4, 5), downsampling=steps, kernels=KERNELS, blocks=(1, 2, 1))


def image() -> torch.Tensor:
    return torch.randn(2, 2, 4, 8, 8)


def train(model: nn.Module, steps: int = 3) -> None:
    """A few steps far enough from the start to be seen."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    x = image()
    for _ in range(steps):
        optimiser.zero_grad()
        sum(m.square().mean() for m in model(x)).backward()
        optimiser.step()


def test_an_adapted_encoder_starts_as_the_encoder_it_was() -> None:
    encoder = anisotropic()
    x, names = image(), [name for name, part in encoder.named_modules() if isinstance(part, nn.Conv3d)]
    before = encoder(x)
    assert add_lora(encoder, rank=2) == names
    assert all(torch.equal(a, b) for a, b in zip(before, encoder(x), strict=True))
    assert describe(encoder)["class"] == "ResidualEncoder"


def test_only_the_low_rank_parameters_train() -> None:
    encoder = anisotropic()
    plain = copy.deepcopy(encoder.state_dict())
    add_lora(encoder, rank=2)
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in encoder.named_parameters() if ".lora_" in name}
    train(encoder)
    for name, tensor in encoder.state_dict().items():
        if ".lora_" not in name:
            assert torch.equal(tensor, plain[name.replace(".base_layer", "")]), name
    assert all(p.grad is not None and p.grad.any() for p in encoder.parameters() if p.requires_grad)
    assert all(p.grad is None for p in encoder.parameters() if not p.requires_grad)


def test_merged_computes_the_same_under_the_first_names(tmp_path: Path) -> None:
    encoder, x = anisotropic(), image()
    plain = copy.deepcopy(encoder)
    names = add_lora(encoder, rank=2)
    train(encoder)
    apart = encoder(x)
    assert merge_lora(encoder) == names
    merged = encoder(x)
    for a, b, start in zip(apart, merged, plain(x), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        assert (b - start).abs().max() > 0.05  # it has learnt something
    assert encoder.state_dict().keys() == plain.state_dict().keys()
    save_weights(tmp_path / "merged.safetensors", encoder=encoder)
    load_weights(plain, read_weights(tmp_path / "merged.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(merged, plain(x), strict=True))


def test_an_addition_is_its_formula() -> None:  # W + alpha / rank * B A, for a kernel of any shape
    layer = nn.Sequential(nn.Conv3d(3, 4, (1, 3, 1)), nn.Flatten(), nn.Linear(4 * 2 * 2 * 2, 3))
    start = [layer[i].weight.detach().clone() for i in (0, 2)]
    assert add_lora(layer, rank=2, alpha=6) == ["0", "2"]
    a, b = (layer[0].get_submodule(f"lora_{k}.default").weight for k in "AB")
    c, d = (layer[2].get_submodule(f"lora_{k}.default").weight for k in "AB")
    for weight in (b, d):
        nn.init.normal_(weight)
    x = torch.randn(2, 3, 2, 4, 2)
    y = layer(x)
    merge_lora(layer)
    convolved = sum(b[:, r, 0, 0, 0].reshape(-1, 1, 1, 1, 1) * a[r].unsqueeze(0) for r in range(2))
    torch.testing.assert_close(layer[0].weight, start[0] + 3 * convolved)
    torch.testing.assert_close(layer[2].weight, start[1] + 3 * d @ c)
    torch.testing.assert_close(layer(x), y, atol=1e-5, rtol=1e-5)


def test_targets_and_other_parameters_are_the_callers_choice() -> None:
    encoder = PlainEncoder(2, channels=(3, 4), convs=(1, 2))
    pyramid = FeaturePyramid(encoder, UFPN(encoder.channels, encoder.strides, out_channels=8, first_level=0))
    adapted = add_lora(pyramid, rank=1, targets=["encoder.stages.*"], train=["neck.*", "encoder.stem.*"])
    assert adapted == ["encoder.stages.1.0.conv", "encoder.stages.1.1.conv"]
    for name, p in pyramid.named_parameters():
        assert p.requires_grad == (".lora_" in name or name.startswith(("neck.", "encoder.stem."))), name
    merge_lora(pyramid)
    assert not any(p.requires_grad for p in encoder.stages.parameters())


def test_low_rank_training_with_checkpointing_has_the_same_gradients() -> None:
    encoder, x = anisotropic(), image()
    add_lora(encoder, rank=2)
    other = copy.deepcopy(encoder)
    set_checkpointing(other)
    for network in (encoder, other):
        sum(m.square().mean() for m in network(x)).backward()
    for p, q in zip(encoder.parameters(), other.parameters(), strict=True):
        assert (p.grad is None and q.grad is None) or torch.equal(p.grad, q.grad)


def test_what_cannot_be_adapted_is_refused() -> None:
    encoder = anisotropic()
    with pytest.raises(ValueError, match="rank: found 0"):
        add_lora(encoder, rank=0)
    with pytest.raises(ValueError, match=r"pattern: found 'heads\.\*', which matches none of"):
        add_lora(encoder, targets=["heads.*"])
    with pytest.raises(ValueError, match=r"pattern: found 'heads\.\*', which matches none of"):
        add_lora(encoder, train=["heads.*"])
    with pytest.raises(ValueError, match="without low-rank additions"):
        merge_lora(encoder)
    assert all(p.requires_grad for p in encoder.parameters())
    add_lora(encoder)
    with pytest.raises(ValueError, match="adapted already"):
        add_lora(encoder)


def test_a_grouped_convolution_is_refused_before_anything_changes() -> None:
    layers = nn.Sequential(nn.Conv3d(4, 4, 1), nn.Conv3d(4, 4, 3, groups=2))
    names = list(layers.state_dict())
    with pytest.raises(ValueError, match="1: found a convolution of 2 groups, wanted 1"):
        add_lora(layers)
    assert list(layers.state_dict()) == names
    assert add_lora(layers, targets=["0"]) == ["0"]


def test_a_merged_model_is_adapted_again_without_a_warning() -> None:
    encoder = anisotropic()
    for _ in range(2):  # peft warns of a second adapter, and warnings are errors here
        add_lora(encoder, rank=1)
        merge_lora(encoder)
    assert not hasattr(encoder, "peft_config")


def test_an_adapted_encoder_is_not_written_as_a_plain_one(tmp_path: Path) -> None:
    encoder = anisotropic()
    add_lora(encoder, rank=1)
    with pytest.raises(ValueError, match=r"tensor encoder\.stages\.0\..*\.conv\.bias: not found"):
        save_weights(tmp_path / "w.safetensors", encoder=encoder)
    assert not list(tmp_path.iterdir())
