import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from girih_backbones import (
    UFPN,
    Encoder,
    FeaturePyramid,
    PlainEncoder,
    ResidualEncoder,
    TransferError,
    UNetDecoder,
    Weights,
    load_weights,
    make_encoder,
    make_stem,
    preset,
    read_weights,
    save_weights,
)
from girih_backbones.described import PRESETS, preset_of

IMAGE = torch.randn(1, 1, 8, 8, 8)


def small(in_channels: int = 1, channels: tuple[int, ...] = (2, 4), **kwargs: Any) -> ResidualEncoder:
    """A new encoder with weights of its own, none of them 0 or 1."""
    encoder = ResidualEncoder(in_channels, channels=channels, blocks=(1,) * len(channels), **kwargs)
    for p in encoder.parameters():
        nn.init.normal_(p)
    return encoder


def unet(encoder: Encoder) -> FeaturePyramid:
    return FeaturePyramid(encoder, UNetDecoder(encoder.channels, encoder.strides))


@pytest.fixture
def source() -> ResidualEncoder:
    return small()


@pytest.fixture
def stems(source: ResidualEncoder) -> dict[str, nn.Module]:
    return {"ct": make_stem(source, 1), "mr": make_stem(source, 4)}


@pytest.fixture
def weights(tmp_path: Path, source: ResidualEncoder, stems: dict[str, nn.Module]) -> Weights:
    save_weights(tmp_path / "w.safetensors", encoder=source, neck=unet(source).neck, stems=stems)
    return read_weights(tmp_path / "w.safetensors")


def equal(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def fails(model: nn.Module, weights: Weights, **kwargs: Any) -> TransferError:
    """Return the error of a transfer that must fail, after checking that the model did not change."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(TransferError) as caught:
        load_weights(model, weights, **kwargs)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert str(weights.path) in str(caught.value)
    return caught.value


# --- what fits ----------------------------------------------------------------------------------------------------


def test_the_encoder_alone_moves_by_default(source: ResidualEncoder, weights: Weights) -> None:
    pyramid = unet(small())
    neck = {name: tensor.clone() for name, tensor in pyramid.neck.state_dict().items()}
    report = load_weights(pyramid.encoder, weights)
    assert equal(pyramid.encoder, source)
    assert all(torch.equal(neck[name], tensor) for name, tensor in pyramid.neck.state_dict().items())
    n = len(source.state_dict())
    assert report.counts == {"loaded": n, "reshaped": 0, "skipped": len(weights.tensors) - n, "missing": 0}
    reasons = {row.name: row.reason for row in report.rows}
    assert reasons["neck.up.0.weight"] == "outside scope 'encoder'"
    assert reasons["stems.mr.conv.weight"] == "stem of one dataset, a source only"


def test_scope_all_moves_the_neck_too(weights: Weights) -> None:
    pyramid = unet(small())
    report = load_weights(pyramid, weights, scope="all")
    for name, tensor in pyramid.state_dict().items():
        assert torch.equal(tensor, weights.tensors[name])
    assert report.counts["loaded"] == len(pyramid.state_dict())


def test_every_tensor_of_both_sides_is_reported_once(weights: Weights) -> None:
    model = small()
    names = [row.name for row in load_weights(model, weights).rows]
    assert names[: len(model.state_dict())] == [f"encoder.{name}" for name in model.state_dict()]
    assert len(names) == len(set(names))
    assert set(names) == weights.tensors.keys()


def test_features_are_those_of_the_source(source: ResidualEncoder, weights: Weights) -> None:
    model, image = small(), torch.randn(1, 1, 8, 8, 8)
    load_weights(model, weights)
    assert all(torch.equal(a, b) for a, b in zip(model(image), source(image), strict=True))


def test_the_models_type_and_memory_format_stay(source: ResidualEncoder, weights: Weights) -> None:
    model = small().to(torch.float64, memory_format=torch.channels_last_3d)
    load_weights(model, weights)
    weight = model.stages[1][0].conv1.conv.weight
    assert weight.dtype == torch.float64
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(weight.float(), source.stages[1][0].conv1.conv.weight)
    assert weight.requires_grad


def test_the_files_tensors_are_not_shared_with_the_model(weights: Weights) -> None:
    model = small()
    load_weights(model, weights)
    with torch.no_grad():
        model.stem.conv.weight.zero_()
    assert weights.tensors["encoder.stem.conv.weight"].any()


# --- stems --------------------------------------------------------------------------------------------------------


def test_random_keeps_the_models_stem(source: ResidualEncoder, weights: Weights) -> None:
    model = small(4)
    before = {name: tensor.clone() for name, tensor in model.stem.state_dict().items()}
    report = load_weights(model, weights, stem="random")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.stem.state_dict().items())
    assert equal(model.stages, source.stages)
    stem = [row for row in report.rows if row.name.startswith("encoder.stem.")]
    assert {row.status for row in stem} == {"skipped"}
    assert len(stem) == 4


def test_replicate_gives_equal_channels_what_one_channel_gave(source: ResidualEncoder, weights: Weights) -> None:
    model, image = small(4), torch.randn(2, 1, 8, 8, 8)
    report = load_weights(model, weights, stem="replicate")
    assert torch.equal(model.stem.conv.weight, source.stem.conv.weight.repeat(1, 4, 1, 1, 1) / 4)
    for a, b in zip(model(image.expand(2, 4, 8, 8, 8)), source(image), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    reshaped = [row for row in report.rows if row.status == "reshaped"]
    assert [row.name for row in reshaped] == ["encoder.stem.conv.weight"]
    assert "repeated over 4 channels, divided by 4" in reshaped[0].reason


def test_replicate_of_one_to_one_is_exact(source: ResidualEncoder, weights: Weights) -> None:
    model = small()
    report = load_weights(model, weights, stem="replicate")
    assert equal(model, source)
    assert report.counts["reshaped"] == 0


def test_replicate_starts_from_one_channel_only(tmp_path: Path) -> None:
    save_weights(tmp_path / "two.safetensors", encoder=small(2))
    error = fails(small(4), read_weights(tmp_path / "two.safetensors"), stem="replicate")
    assert "encoder.stem.conv.weight: found (2, 2, 3, 3, 3), wanted (2, 4, 3, 3, 3)" in str(error)


@pytest.mark.parametrize(("name", "in_channels"), [("ct", 1), ("mr", 4)])
def test_a_datasets_stem(source, weights, stems, name: str, in_channels: int) -> None:
    model = small(in_channels)
    report = load_weights(model, weights, stem=f"dataset:{name}")
    assert equal(model.stem, stems[name])
    assert equal(model.stages, source.stages)
    assert report.rows[0].reason == f"from stems.{name}.conv.weight"


def test_a_datasets_stem_must_fit(weights: Weights) -> None:
    assert "found (2, 4, 3, 3, 3), wanted (2, 1, 3, 3, 3)" in str(fails(small(1), weights, stem="dataset:mr"))


@pytest.mark.parametrize(
    ("stem", "message"),
    [
        ("dataset:pet", r"wanted one of the datasets of the file: \['ct', 'mr'\]"),
        ("mean", "found 'mean', wanted 'exact'"),
    ],
)
def test_an_unknown_stem_is_refused(weights: Weights, stem: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_weights(small(), weights, stem=stem)


def test_a_file_without_stems_by_dataset_says_so(tmp_path: Path, source: ResidualEncoder) -> None:
    save_weights(tmp_path / "w.safetensors", encoder=source)
    with pytest.raises(ValueError, match="found 'dataset:ct', but the file has no stems by dataset"):
        load_weights(small(), read_weights(tmp_path / "w.safetensors"), stem="dataset:ct")


# --- what does not fit --------------------------------------------------------------------------------------------


def test_other_image_channels(weights: Weights) -> None:
    error = fails(small(4), weights)
    assert [row.name for row in error.report.errors] == ["encoder.stem.conv.weight"]
    assert "encoder.stem.conv.weight: found (2, 1, 3, 3, 3), wanted (2, 4, 3, 3, 3)" in str(error)


def test_other_widths_show_both_shapes_of_the_first_failures(weights: Weights) -> None:
    error = fails(small(channels=(2, 6)), weights)
    assert "encoder.stages.1.0.conv1.conv.weight: found (4, 2, 3, 3, 3), wanted (6, 2, 3, 3, 3)" in str(error)
    assert "differs: encoder channels: file [2, 4], model [2, 6]" in str(error)
    assert f"and {len(error.report.errors) - 5} more" in str(error)


def test_another_class(weights: Weights) -> None:
    error = fails(PlainEncoder(1, channels=(2, 4), convs=(2, 2)), weights)
    first, *_ = str(error).splitlines()
    assert first == (
        f"{weights.path}: found ResidualEncoder of 2 stages, channels [2, 4]; wanted PlainEncoder of 2 stages, "
        f"channels [2, 4]; nothing loaded, {len(error.report.errors)} tensors do not fit"
    )


def test_another_preset_is_called_by_its_name(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in make_encoder(preset("resenc_l"), 1).state_dict().items()}
        model = make_encoder(preset("retina_unet_v002"), 1)
    save_weights(tmp_path / "w.safetensors", encoder=small())
    header = read_weights(tmp_path / "w.safetensors").header | {"encoder": preset("resenc_l")}
    tensors = {f"encoder.{name}": torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    with pytest.raises(TransferError) as caught:
        load_weights(model, Weights(tensors, header, Path("checkpoint_final.pth")))
    first, *_ = str(caught.value).splitlines()
    assert first.startswith(
        "checkpoint_final.pth: found ResidualEncoder resenc_l; wanted PlainEncoder retina_unet_v002; nothing loaded"
    )


def test_presets_are_recognised_whatever_their_initialisation() -> None:
    for name in PRESETS:
        description = preset(name)
        description["kwargs"]["init"] = "he"
        assert preset_of(description) == name
        description["kwargs"]["channels"][0] = 16
        assert preset_of(description) is None
    with pytest.raises(ValueError, match=re.escape(f"wanted one of {sorted(PRESETS)}")):  # all there are
        preset("")


def test_a_deeper_model_misses_tensors_unless_allowed(source: ResidualEncoder, weights: Weights) -> None:
    model = small(channels=(2, 4, 4))
    error = fails(model, weights)
    assert error.report.counts["missing"] == len(model.stages[2].state_dict())
    assert {row.name.split(".")[2] for row in error.report.errors} == {"2"}
    deepest = {name: tensor.clone() for name, tensor in model.stages[2].state_dict().items()}
    report = load_weights(model, weights, allow=("encoder.stages.2.*",))
    assert report.errors == ()
    assert "(allowed by 'encoder.stages.2.*')" in str(report)
    assert equal(model.stages[0], source.stages[0])
    assert equal(model.stages[1], source.stages[1])
    assert all(torch.equal(deepest[name], tensor) for name, tensor in model.stages[2].state_dict().items())


def test_a_deeper_file_is_not_cut_silently(tmp_path: Path) -> None:
    deep, model, image = small(channels=(2, 4, 4)), small(), torch.randn(1, 1, 8, 8, 8)
    save_weights(tmp_path / "deep.safetensors", encoder=deep)
    weights = read_weights(tmp_path / "deep.safetensors")
    error = fails(model, weights)
    assert {row.reason for row in error.report.errors} == {
        "in the file, not in the model; skip_deeper=True loads the stages that both have"
    }
    load_weights(model, weights, allow=["encoder.stages.2.*"])
    assert all(torch.equal(a, b) for a, b in zip(model(image), deep(image), strict=False))


def test_a_pattern_allows_only_what_it_names(weights: Weights) -> None:
    error = fails(small(4, channels=(2, 4, 4)), weights, allow=("encoder.stages.*",))
    assert [row.name for row in error.report.errors] == ["encoder.stem.conv.weight"]


def test_another_neck(source: ResidualEncoder, weights: Weights) -> None:
    encoder = small()
    pyramid = FeaturePyramid(encoder, UFPN(encoder.channels, encoder.strides, first_level=1))
    error = fails(pyramid, weights, scope="all")
    found = "ResidualEncoder of 2 stages, channels [2, 4]"
    assert f"found {found} + UNetDecoder; wanted {found} + UFPN" in str(error)
    load_weights(pyramid, weights, scope="all", allow=("neck.*",))
    assert equal(pyramid.encoder, source)


def test_a_file_without_a_neck(tmp_path: Path, source: ResidualEncoder) -> None:
    save_weights(tmp_path / "bare.safetensors", encoder=source)
    error = fails(unet(small()), read_weights(tmp_path / "bare.safetensors"), scope="all")
    assert "differs: neck: file none, model UNetDecoder" in str(error)
    assert all(row.name.startswith("neck.") and row.status == "missing" for row in error.report.errors)


def test_settings_without_tensors_are_reported(tmp_path: Path) -> None:
    plain = {"channels": (2, 4), "convs": (1, 1)}
    save_weights(tmp_path / "relu.safetensors", encoder=PlainEncoder(1, activation="relu", init="he", **plain))
    model = PlainEncoder(1, activation="leaky_relu", downsampling=((1, 1, 1), (1, 2, 2)), **plain)
    report = load_weights(model, read_weights(tmp_path / "relu.safetensors"))
    assert report.differences == (
        "encoder downsampling: file [[1, 1, 1], [2, 2, 2]], model [[1, 1, 1], [1, 2, 2]]",
        "encoder activation: file relu, model leaky_relu",
    )


# --- stages and kernels that only one of the two has --------------------------------------------------------------


@pytest.mark.parametrize("scope", ["encoder", "all"])
@pytest.mark.parametrize("neck", [UNetDecoder, UFPN])
@pytest.mark.parametrize("deeper", ["file", "model"])
def test_skip_deeper_loads_the_common_stages(tmp_path: Path, deeper: str, neck: type, scope: Any) -> None:
    settings = {"first_level": 1, "out_channels": 8} if neck is UFPN else {}
    widths = {"file": (2, 4, 4), "model": (2, 4)} if deeper == "file" else {"file": (2, 4), "model": (2, 4, 4)}
    pyramids = {side: small(channels=channels) for side, channels in widths.items()}
    pyramids = {s: FeaturePyramid(e, neck(e.channels, e.strides, **settings)) for s, e in pyramids.items()}
    source, model = pyramids["file"], pyramids["model"]
    save_weights(tmp_path / "w.safetensors", encoder=source.encoder, neck=source.neck)
    weights = read_weights(tmp_path / "w.safetensors")
    target = model if scope == "all" else model.encoder
    fails(target, weights, scope=scope)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_weights(target, weights, scope=scope, skip_deeper=True)
    assert all(torch.equal(a, b) for a, b in zip(model.encoder(IMAGE), source.encoder(IMAGE), strict=False))
    own = {row.name for row in report.rows if row.status == "missing"}
    if deeper == "model":
        assert {row.reason for row in report.rows if row.status == "missing"} == {"skip_deeper: the file has 2 stages"}
        assert {name for name in before if ".stages.2." in name} <= own
    else:
        assert own == set()
        left = {row.name for row in report.rows if row.reason == "skip_deeper: the model has 2 stages"}
        assert {name for name in weights.tensors if ".stages.2." in name} <= left
    for name, tensor in target.state_dict().items():
        name = name if scope == "all" else f"encoder.{name}"
        assert torch.equal(tensor, before[name] if name in own else weights.tensors[name])


def test_skip_deeper_is_for_whole_stages_only(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", encoder=small(channels=(2, 4, 4)))
    weights = read_weights(tmp_path / "w.safetensors")
    error = fails(small(channels=(2, 6)), weights, skip_deeper=True)
    assert {row.name.split(".")[2] for row in error.report.errors} == {"1"}
    error = fails(ResidualEncoder(1, channels=(2, 4), blocks=(1, 2)), weights, skip_deeper=True)
    assert {row.reason for row in error.report.errors} == {"in the model, not in the file"}


@pytest.mark.parametrize("kernels", [((1, 3, 3), (3, 3, 3)), ((1, 1, 3), (3, 1, 3)), ((1, 1, 1), (1, 1, 1))])
def test_average_kernels_takes_the_mean_along_an_axis(source: ResidualEncoder, weights: Weights, kernels) -> None:
    model = small(kernels=kernels)
    fails(model, weights)
    report = load_weights(model, weights, average_kernels=True)
    rows = {row.name: row for row in report.rows}
    for name, tensor in model.state_dict().items():
        value = source.state_dict()[name]
        if value.shape == tensor.shape:
            assert torch.equal(tensor, value)
            continue
        total = value
        for axis in (2, 3, 4):
            if tensor.shape[axis] == 1:
                total = total.sum(axis, keepdim=True)
        torch.testing.assert_close(tensor, total * (tensor[0, 0].numel() / value[0, 0].numel()))
        row = rows[f"encoder.{name}"]
        assert row.status == "reshaped"
        axes = ", ".join(axis for axis, a, b in zip("zyx", value.shape[2:], tensor.shape[2:], strict=True) if a != b)
        assert row.reason.endswith(f"average_kernels: mean of the kernel along {axes}")


def test_average_kernels_keeps_what_an_image_equal_along_the_axis_gives() -> None:
    source, model = small(), small(kernels=((1, 3, 3), (1, 3, 3)))
    image = torch.randn(1, 1, 1, 8, 8).expand(1, 1, 24, 8, 8)
    stem = source.stem.conv.weight.mean(2, keepdim=True)
    model.stem.conv.load_state_dict({"weight": stem, "bias": source.stem.conv.bias})
    thick, thin = source.stem.conv(image)[:, :, 12], model.stem.conv(image)[:, :, 12]
    bias = source.stem.conv.bias.view(1, -1, 1, 1)
    torch.testing.assert_close((thick - bias) / 3, thin - bias)  # a factor that the normalisation removes


def test_average_kernels_never_widens_or_touches_the_way_up(tmp_path: Path) -> None:
    save_weights(tmp_path / "flat.safetensors", encoder=small(kernels=((1, 3, 3), (3, 3, 3))))
    error = fails(small(), read_weights(tmp_path / "flat.safetensors"), average_kernels=True)
    assert "found (2, 1, 1, 3, 3), wanted (2, 1, 3, 3, 3)" in str(error)
    pyramid = unet(small())
    save_weights(tmp_path / "w.safetensors", encoder=pyramid.encoder, neck=pyramid.neck)
    flat = unet(small(downsampling=((1, 1, 1), (1, 2, 2))))
    error = fails(flat, read_weights(tmp_path / "w.safetensors"), scope="all", average_kernels=True)
    assert [row.name for row in error.report.errors] == ["neck.up.0.weight"]


def test_a_stem_is_averaged_before_it_is_replicated(source: ResidualEncoder, weights: Weights) -> None:
    model = small(4, kernels=((1, 3, 3), (3, 3, 3)))
    report = load_weights(model, weights, stem="replicate", average_kernels=True)
    mean = source.stem.conv.weight.mean(2, keepdim=True)
    torch.testing.assert_close(model.stem.conv.weight, mean.repeat(1, 4, 1, 1, 1) / 4)
    assert report.rows[0].reason == (
        "found (2, 1, 3, 3, 3), wanted (2, 4, 1, 3, 3): average_kernels: mean of the kernel along z; repeated over 4 "
        "channels, divided by 4"
    )


def test_an_option_that_nothing_needs_changes_nothing(source: ResidualEncoder, weights: Weights) -> None:
    model = small()
    assert load_weights(model, weights, skip_deeper=True, average_kernels=True).counts["reshaped"] == 0
    assert equal(model, source)


# --- a model that cannot take the values --------------------------------------------------------------------------


def test_values_out_of_the_range_of_the_models_type(weights: Weights) -> None:
    weights.tensors["encoder.stages.1.0.conv2.norm.bias"][1] = 1e6
    model = small().half()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"encoder\.stages\.1\.0\.conv2\.norm\.bias as torch\.float16 cannot hold"):
        load_weights(model, weights)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_model_without_memory(weights: Weights) -> None:
    with pytest.raises(ValueError, match="on device 'meta', wanted a model with memory"):
        load_weights(small().to("meta"), weights)


def test_model_scope_and_patterns_must_be_of_their_kind(weights: Weights) -> None:
    with pytest.raises(ValueError, match="model: found FeaturePyramid, wanted an encoder for scope 'encoder'"):
        load_weights(unet(small()), weights)
    with pytest.raises(ValueError, match="model: found ResidualEncoder, wanted a FeaturePyramid for scope 'all'"):
        load_weights(small(), weights, scope="all")
    with pytest.raises(ValueError, match="allow: found the text"):
        load_weights(small(), weights, allow="encoder.*")


@pytest.mark.parametrize(
    "options",
    [
        {"scope": "all"},
        {"stem": "mean"},
        {"stem": "dataset:pet"},
        {"stem": "dataset:mr"},
        {"allow": "encoder.*"},
        {"allow": ["encoder.stages.*"]},
        {"skip_deeper": True},
        {"average_kernels": True},
        {"stem": "replicate", "skip_deeper": True, "average_kernels": True},
    ],
)
def test_whatever_fails_changes_nothing(weights: Weights, options: dict[str, Any]) -> None:
    model = ResidualEncoder(2, channels=(2, 6), blocks=(2, 1), kernels=((1, 3, 3), (5, 3, 3)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError):
        load_weights(model, weights, **options)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


# --- the report ---------------------------------------------------------------------------------------------------


def test_the_report_prints_and_saves(weights: Weights) -> None:
    report = load_weights(small(4), weights, stem="replicate")
    lines = str(report).splitlines()
    assert lines[0] == f"{weights.path}: 22 loaded, 1 reshaped, 14 skipped, 0 missing"
    assert len(lines) == 1 + len(report.rows)
    content = json.loads(report.to_json())
    assert content["counts"] == report.counts
    assert content["rows"][0] == {
        "name": "encoder.stem.conv.weight",
        "status": "reshaped",
        "reason": report.rows[0].reason,
        "error": False,
    }
    assert content["found"] == content["wanted"] == {"encoder": weights.header["encoder"]}


def test_notes_of_the_file_are_in_the_report(weights: Weights) -> None:
    weights.header["notes"] = ["downsampling is assumed"]
    report = load_weights(small(), weights)
    assert str(report).splitlines()[1] == "note: downsampling is assumed"
    assert json.loads(report.to_json())["notes"] == ["downsampling is assumed"]


def test_the_report_of_a_failure_marks_the_failing_rows(weights: Weights) -> None:
    marked = [line for line in str(fails(small(4), weights).report).splitlines() if line.startswith("! ")]
    assert len(marked) == 1
    assert "encoder.stem.conv.weight" in marked[0]


@pytest.mark.parametrize(
    ("model", "option"),
    [
        (small(4), "stem='replicate'"),
        (small(channels=(2, 4, 4)), "skip_deeper=True"),
        (small(kernels=((1, 3, 3), (3, 3, 3))), "average_kernels=True"),
    ],
    ids=["channels", "stages", "kernels"],
)
def test_an_error_names_the_option_that_helps(model: ResidualEncoder, option: str, weights: Weights) -> None:
    with pytest.raises(TransferError, match=option):
        load_weights(model, weights)
