"""Weights in nnU-Net's structure: every name, only plain content, and back again bit for bit."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from girih_backbones import (
    UFPN,
    Encoder,
    PlainEncoder,
    ResidualEncoder,
    UNetDecoder,
    Weights,
    export_nnunet,
    make_encoder,
    make_stem,
    preset,
    read_weights,
    save_weights,
)
from girih_backbones.cli import main

TOLD: dict[str, Any] = {
    "patch_zyx": (16, 32, 32),
    "spacing_zyx_mm": (2.5, 1.0, 1.0),
    "normalisation": {"scheme": "ct", "clip": [-1000.0, 400.0], "mean": [-300.0], "std": [250.0]},
}
TOPOLOGY: dict[str, Any] = {
    "channels": (2, 3, 5),
    "downsampling": ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
}


def drawn(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def saved(path: Path, encoder: Encoder, **parts: Any) -> Weights:
    save_weights(path, encoder=drawn(encoder), **parts, **TOLD)
    return read_weights(path)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


ENCODERS = [
    ResidualEncoder(1, **TOPOLOGY, blocks=(1, 2, 1)),
    ResidualEncoder(3, channels=(2, 2, 4), downsampling=((1, 1, 1), (2, 2, 2), (1, 1, 1)), blocks=(2, 1, 1)),
    PlainEncoder(1, **TOPOLOGY, convs=(1, 2, 3), bias=True),
    PlainEncoder(2, **TOPOLOGY, convs=(2, 2, 2), activation="relu", bias=False),
]


@pytest.mark.parametrize("encoder", ENCODERS, ids=["residual", "no_pooling", "plain", "relu"])
def test_there_and_back_bit_for_bit(tmp_path: Path, encoder: Encoder) -> None:
    weights = saved(tmp_path / "w.safetensors", encoder)
    assert export_nnunet(tmp_path / "checkpoint_final.pth", weights) == ()
    again = read_weights(tmp_path / "checkpoint_final.pth")
    assert same(again.tensors, weights.tensors)
    told = {key: value for key, value in weights.header.items() if key not in ("source", "versions")}
    found = {key: value for key, value in again.header.items() if key not in ("source", "versions", "notes")}
    if weights.header["in_channels"] == 1:
        assert found == told
    assert found["encoder"] == told["encoder"]
    assert again.header["notes"] == [] or weights.header["in_channels"] > 1


TRIPLES = st.tuples(*[st.sampled_from([1, 2])] * 3)
STAGES = st.lists(
    st.tuples(st.integers(1, 4), TRIPLES, st.tuples(*[st.sampled_from([1, 3])] * 3), st.integers(1, 3)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=25)
@given(stages=STAGES, in_channels=st.integers(1, 3), plain=st.booleans(), bias=st.booleans(), relu=st.booleans())
def test_any_topology_comes_back(tmp_path_factory, stages, in_channels, plain, bias, relu) -> None:
    folder = tmp_path_factory.mktemp("any")
    channels, steps, kernels, depth = zip(*stages, strict=True)
    shared = {"channels": channels, "downsampling": ((1, 1, 1), *steps[1:]), "kernels": kernels}
    encoder: Encoder = ResidualEncoder(in_channels, **shared, blocks=depth)
    if plain:
        encoder = PlainEncoder(
            in_channels, **shared, convs=depth, bias=bias, activation="relu" if relu else "leaky_relu"
        )
    save_weights(folder / "w.safetensors", encoder=drawn(encoder))
    weights = read_weights(folder / "w.safetensors")
    assert export_nnunet(folder / "c.pth", weights) == ()
    again = read_weights(folder / "c.pth")
    assert same(again.tensors, weights.tensors)
    assert again.header["encoder"] == weights.header["encoder"]


@pytest.mark.parametrize("encoder", [ENCODERS[0], ENCODERS[2]], ids=["residual", "plain"])
def test_a_unet_decoder_goes_along(tmp_path: Path, encoder: Encoder) -> None:
    neck = drawn(UNetDecoder(encoder.channels, encoder.strides, kernels=TOPOLOGY["kernels"][:-1]))
    weights = saved(tmp_path / "w.safetensors", encoder, neck=neck)
    assert export_nnunet(tmp_path / "c.pth", weights) == ()
    again = read_weights(tmp_path / "c.pth")
    assert same(again.tensors, weights.tensors)
    assert again.header["neck"] == weights.header["neck"]
    network = torch.load(tmp_path / "c.pth", weights_only=True)["network_weights"]
    for key in network:  # the decoder holds the encoder once more
        if key.startswith("encoder."):
            assert torch.equal(network[key], network[f"decoder.{key}"])


@pytest.mark.parametrize(
    "neck",
    [UFPN((2, 3, 5), ENCODERS[0].strides, first_level=1), UNetDecoder((2, 3, 5), ENCODERS[0].strides)],
    ids=["ufpn", "other_kernels"],
)
def test_a_neck_that_nnunet_has_not_is_named(tmp_path: Path, neck: nn.Module) -> None:
    weights = saved(tmp_path / "w.safetensors", ENCODERS[0], neck=neck)
    left = export_nnunet(tmp_path / "c.pth", weights)
    assert set(left) == {f"neck.{name}" for name in neck.state_dict()}
    assert read_weights(tmp_path / "c.pth").header["neck"] is None


@pytest.mark.parametrize("encoder", [ENCODERS[0], ENCODERS[2]], ids=["residual", "plain"])
def test_stems_are_written_as_multitalent_does(tmp_path: Path, encoder: Encoder) -> None:
    stems = {"ct": encoder.stem, "mr-4": drawn(make_stem(encoder, 4))}
    weights = saved(tmp_path / "w.safetensors", encoder, stems=stems)
    assert export_nnunet(tmp_path / "c.pth", weights) == ()
    again = read_weights(tmp_path / "c.pth")
    assert same(again.tensors, weights.tensors)
    assert again.header["stems"] == {"ct": 1, "mr-4": 4}
    export_nnunet(tmp_path / "four.pth", weights, stem="mr-4")
    other = read_weights(tmp_path / "four.pth")
    assert other.header["in_channels"] == 4
    assert torch.equal(other.tensors["encoder.stem.conv.weight"], stems["mr-4"].conv.weight)


def test_an_own_stem_that_is_no_datasets_is_named_as_left_out(tmp_path: Path) -> None:
    encoder = ENCODERS[0]
    stems = {name: drawn(make_stem(encoder, n)) for name, n in (("a", 1), ("b", 2))}
    weights = saved(tmp_path / "w.safetensors", encoder, stems=stems)
    own = {f"encoder.stem.{name}" for name in encoder.stem.state_dict()}
    for stem in stems:
        assert set(export_nnunet(tmp_path / "c.pth", weights, stem=stem)) == own


def test_the_default_stem_is_not_guessed(tmp_path: Path) -> None:
    encoder = ENCODERS[0]
    weights = saved(tmp_path / "w.safetensors", encoder, stems={"a": drawn(make_stem(encoder, 1))})
    with pytest.raises(ValueError, match=r"stem: found none, wanted one of \['a'\]"):
        export_nnunet(tmp_path / "c.pth", weights)
    with pytest.raises(ValueError, match=r"stem: found 'b', wanted one of the datasets of the weights: \['a'\]"):
        export_nnunet(tmp_path / "c.pth", weights, stem="b")
    assert not (tmp_path / "c.pth").exists()


def test_the_file_holds_tensors_and_plain_containers_only(tmp_path: Path) -> None:
    weights = saved(tmp_path / "w.safetensors", ENCODERS[0])
    export_nnunet(tmp_path / "c.pth", weights)
    content = torch.load(tmp_path / "c.pth", weights_only=True)
    assert content.keys() == {"network_weights", "nnssl_adaptation_plan"}
    assert torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "c.pth") == []

    def plain(value: object) -> bool:
        if isinstance(value, dict):
            return all(type(key) is str and plain(item) for key, item in value.items())
        if isinstance(value, list):
            return all(plain(item) for item in value)
        return value is None or type(value) in (str, int, float, bool, torch.Tensor)

    assert plain(content)
    size = sum(tensor.numel() * 4 for tensor in weights.tensors.values())
    assert (tmp_path / "c.pth").stat().st_size < size + 60_000  # an alias is the same tensor, not a copy


def test_the_names_are_those_of_a_fake_of_nnunet(tmp_path: Path, fakes) -> None:
    encoder = ENCODERS[0]
    neck = UNetDecoder(encoder.channels, encoder.strides, kernels=TOPOLOGY["kernels"][:-1])
    export_nnunet(tmp_path / "c.pth", saved(tmp_path / "w.safetensors", encoder, neck=neck))
    network = torch.load(tmp_path / "c.pth", weights_only=True)["network_weights"]
    steps, kernels = list(TOPOLOGY["downsampling"]), list(TOPOLOGY["kernels"])
    fake = fakes.residual_unet(channels=(2, 3, 5), blocks=(1, 2, 1), steps=steps, kernels=kernels)
    heads = {key for key in fake if "seg_layers" in key}
    assert network.keys() == fake.keys() - heads
    assert all(network[key].shape == fake[key].shape for key in network)
    for key in network:  # the two names of a tensor are one tensor
        listed = re.sub(r"\bnorm\.", "all_modules.1.", re.sub(r"\bconv\.", "all_modules.0.", key))
        assert network[key].data_ptr() == network[listed].data_ptr()


def test_resencl_is_called_by_its_name(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in make_encoder(preset("resenc_l"), 1).state_dict().items()}
    one = torch.zeros(320 * 320 * 27)
    tensors = {f"encoder.{name}": one[: shape.numel()].view(shape) for name, shape in shapes.items()}
    header: Any = saved(tmp_path / "w.safetensors", ENCODERS[0]).header | {"encoder": preset("resenc_l")}
    export_nnunet(tmp_path / "c.pth", Weights(tensors, header))
    content = torch.load(tmp_path / "c.pth", weights_only=True)
    assert len(content["network_weights"]) == 448
    plan = content["nnssl_adaptation_plan"]
    assert plan["architecture_plans"] == {
        "arch_class_name": "ResEncL",
        "arch_kwargs": None,
        "arch_kwargs_requiring_import": None,
    }
    assert plan["keys_to_in_proj"] == ["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"]
    assert plan["recommended_downstream_patchsize"] == [16, 32, 32]
    assert (plan["key_to_encoder"], plan["key_to_stem"]) == ("encoder.stages", "encoder.stem")
    assert read_weights(tmp_path / "c.pth").header["encoder"] == preset("resenc_l")


def test_what_is_unknown_stays_unknown(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", encoder=ENCODERS[0])
    export_nnunet(tmp_path / "c.pth", read_weights(tmp_path / "w.safetensors"))
    header = read_weights(tmp_path / "c.pth").header
    assert [header[key] for key in ("patch_zyx", "spacing_zyx_mm", "normalisation", "modality")] == [None] * 4


@pytest.mark.parametrize("scheme", ["zscore", "zscore_mask", "none"])
def test_normalisation_comes_back(tmp_path: Path, scheme: str) -> None:
    normalisation = {"scheme": scheme, "clip": None, "mean": None, "std": None}
    save_weights(tmp_path / "w.safetensors", encoder=ENCODERS[0], normalisation=normalisation)
    export_nnunet(tmp_path / "c.pth", read_weights(tmp_path / "w.safetensors"))
    assert read_weights(tmp_path / "c.pth").header["normalisation"] == normalisation


def test_a_clip_that_the_scheme_has_no_place_for_is_named(tmp_path: Path, capsys) -> None:
    normalisation = {"scheme": "zscore", "clip": [-5.0, 5.0], "mean": None, "std": None}
    save_weights(tmp_path / "w.safetensors", encoder=ENCODERS[0], normalisation=normalisation)
    weights = read_weights(tmp_path / "w.safetensors")
    assert export_nnunet(tmp_path / "c.pth", weights) == ("normalisation.clip",)
    assert main(["convert", str(tmp_path / "w.safetensors"), str(tmp_path / "c.pth")]) == 0
    assert f": {len(weights.tensors)} tensors\n" in capsys.readouterr().out
    normalisation = {"scheme": "ct", "clip": None, "mean": [1.0], "std": [2.0]}  # nnU-Net has all three numbers or none
    save_weights(tmp_path / "w.safetensors", encoder=ENCODERS[0], normalisation=normalisation)
    left = export_nnunet(tmp_path / "c.pth", read_weights(tmp_path / "w.safetensors"))
    assert left == ("normalisation.mean", "normalisation.std")


def test_a_dataset_that_the_structure_cannot_name_is_refused(tmp_path: Path) -> None:
    weights = saved(tmp_path / "w.safetensors", ENCODERS[0], stems={"convs": ENCODERS[0].stem})
    with pytest.raises(ValueError, match="stems: found the dataset 'convs', wanted another name"):
        export_nnunet(tmp_path / "c.pth", weights)
    assert not (tmp_path / "c.pth").exists()


def test_weights_that_are_not_as_described_are_not_written(tmp_path: Path) -> None:
    weights = saved(tmp_path / "w.safetensors", ENCODERS[0])
    weights.tensors["encoder.stem.norm.bias"][0] = float("nan")
    with pytest.raises(ValueError, match=r"tensor encoder\.stem\.norm\.bias: found values that are not finite"):
        export_nnunet(tmp_path / "c.pth", weights)
    weights.tensors.pop("encoder.stem.norm.bias")
    with pytest.raises(ValueError, match=r"tensor encoder\.stem\.norm\.bias: not found"):
        export_nnunet(tmp_path / "c.pth", weights)
    assert not (tmp_path / "c.pth").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = saved(tmp_path / "w.safetensors", ENCODERS[0])
    export_nnunet(tmp_path / "c.pth", weights)
    before = (tmp_path / "c.pth").read_bytes()

    def half(content: object, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("girih_backbones.export.torch.save", half)
    with pytest.raises(OSError, match="no space left"):
        export_nnunet(tmp_path / "c.pth", weights)
    assert (tmp_path / "c.pth").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        export_nnunet(tmp_path / "no" / "c.pth", weights)
