from pathlib import Path

import pytest
import torch
from torch import nn

from girih_backbones import (
    DatasetStems,
    Encoder,
    PlainEncoder,
    ResidualEncoder,
    load_weights,
    make_encoder,
    make_stems,
    read_weights,
    save_weights,
)


def tiny(in_channels: int = 1) -> ResidualEncoder:
    return ResidualEncoder(in_channels, channels=(3, 4), blocks=(1, 1))


def test_a_mixed_batch_goes_through_the_stem_of_each_dataset() -> None:
    encoder = tiny()
    stems = make_stems(encoder, {"ct": 1, "brain": 4})
    images = [torch.randn(1, 4, 4, 4), torch.randn(4, 4, 4, 4), torch.randn(1, 4, 4, 4)]
    h = stems(images, ["ct", "brain", "ct"])
    assert h.shape == (3, 3, 4, 4, 4)
    for row, image, name in zip(h, images, ["ct", "brain", "ct"], strict=True):
        torch.testing.assert_close(row, stems[name](image[None])[0])
    maps = encoder.stages(h)
    assert [m.shape[:2] for m in maps] == [(3, 3), (3, 4)]
    maps[-1].square().sum().backward()
    assert all(p.grad is not None for p in stems.parameters())
    assert all(p.grad is None for p in encoder.stem.parameters())


def test_a_stem_of_the_plain_encoder_takes_its_step() -> None:
    encoder = PlainEncoder(1, channels=(3, 4), downsampling=((1, 2, 2), (2, 2, 2)), convs=(1, 1))
    assert make_stems(encoder, {"a": 2})([torch.randn(2, 4, 8, 8)], ["a"]).shape == (1, 3, 4, 4, 4)


def test_tensors_are_named_by_the_dataset_and_go_to_a_file_and_back(tmp_path: Path) -> None:
    encoder = tiny()
    network = nn.Module()
    network.encoder, network.stems = encoder, make_stems(encoder, {"ct": 1, "brain": 4})
    names = [name for name in network.state_dict() if name.startswith("stems.")]
    tensors = ("conv.weight", "conv.bias", "norm.weight", "norm.bias")
    assert names == [f"stems.{dataset}.{tensor}" for dataset in ("ct", "brain") for tensor in tensors]
    save_weights(tmp_path / "w.safetensors", encoder=encoder, stems=network.stems)
    weights = read_weights(tmp_path / "w.safetensors")
    assert weights.header["stems"] == {"ct": 1, "brain": 4}
    four = make_encoder(weights.header["encoder"], 4)
    load_weights(four, weights, stem="dataset:brain")
    assert torch.equal(four.stem.conv.weight, network.stems["brain"].conv.weight)


@pytest.mark.parametrize("name", ["", "a.b", "keys"])
def test_a_name_that_no_tensor_can_have_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"dataset: found {name!r}, wanted another name"):
        make_stems(tiny(), {name: 1})


@pytest.mark.parametrize("encoder", [tiny(), PlainEncoder(1, channels=(3, 4), convs=(1, 1))], ids=["residual", "plain"])
@pytest.mark.parametrize("channels", [0, -1, 10**30])
def test_a_stem_for_no_number_of_channels_is_refused(encoder: Encoder, channels: int) -> None:
    with pytest.raises(ValueError, match="in_channels: found"):
        make_stems(encoder, {"a": channels})


def test_what_does_not_fit_is_refused() -> None:
    stems = make_stems(tiny(), {"ct": 1, "brain": 4})
    image = torch.zeros(1, 4, 4, 4)
    with pytest.raises(ValueError, match=r"dataset: found 'mr', wanted one of \['brain', 'ct'\]"):
        stems([image], ["mr"])
    with pytest.raises(ValueError, match="image of 'brain': found 1 channels, wanted 4"):
        stems([image], ["brain"])
    with pytest.raises(ValueError, match="found 1 names for 2 images"):
        stems([image, image], ["ct"])
    with pytest.raises(ValueError, match="found 0 names for 0 images"):
        stems([], [])
    odd = DatasetStems({"flat": nn.Identity()})
    with pytest.raises(ValueError, match="stem: found Identity without a 3D convolution"):
        odd([image], ["flat"])
