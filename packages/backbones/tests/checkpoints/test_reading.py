"""Every structure that is read: whose tensors, which network, what is said about it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from girih_backbones import Encoder, ResidualEncoder, describe, load_weights, make_encoder, preset, read_weights

NOTHING_KNOWN = {"patch_zyx", "spacing_zyx_mm", "normalisation", "modality", "objective", "objective_config", "steps"}


def in_nnunet(name: str, *, leaf: str = "all_modules") -> str:
    """The key of a tensor of `ResidualEncoder` in nnU-Net's structure, written down once more for the tests."""
    name = re.sub(r"^stem", "encoder.stem.convs.0", name)
    name = re.sub(r"^stages\.(\d+)\.(\d+)", r"encoder.stages.\1.blocks.\2", name).replace("skip.proj", "skip.1")
    if leaf == "all_modules":
        name = re.sub(r"\bconv\.(weight|bias)$", r"all_modules.0.\1", re.sub(r"\bnorm\.", "all_modules.1.", name))
    return name


def filled(encoder: Encoder, state: dict[str, torch.Tensor], leaf: str = "all_modules") -> Encoder:
    encoder.load_state_dict({name: state[in_nnunet(name, leaf=leaf)] for name in encoder.state_dict()})
    return encoder


def features(encoder: Encoder) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    size = [2 * stride for stride in encoder.strides[-1]]
    with torch.no_grad():
        return encoder(torch.randn(1, encoder.in_channels, *size, generator=generator))


def read(path: Path, **kwargs: Any) -> tuple[Encoder, Any]:
    """Return the encoder of a file, filled with its weights, and the weights."""
    weights = read_weights(path)
    encoder = make_encoder(weights.header["encoder"], weights.header["in_channels"])
    load_weights(encoder, weights, **kwargs)
    return encoder, weights


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# --- nnssl: MAE, Models Genesis, VoCo -----------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [True, False])
def test_nnssl_with_its_plan_inside_or_beside(tmp_path: Path, fakes, inside: bool) -> None:
    state = fakes.residual_unet()
    plan = fakes.adaptation_plan(kwargs=fakes.arch_kwargs())
    path = fakes.save(tmp_path / "checkpoint_final.pth", state, plan=plan if inside else None)
    if not inside:
        fakes.save_beside(path, plan)
    encoder, weights = read(path)
    assert equal(features(encoder), features(filled(ResidualEncoder(1, channels=(2, 4), blocks=(1, 2)), state)))
    header = dict(weights.header)
    assert header.pop("encoder") == describe(encoder)
    assert header == {
        "schema": 1,
        "neck": {"class": "UNetDecoder", "kwargs": {"kernels": [[3, 3, 3]], "init": "torch"}},
        "in_channels": 1,
        "stems": {},
        "patch_zyx": [160, 160, 160],
        "spacing_zyx_mm": [1.0, 1.0, 1.0],
        "normalisation": {"scheme": "zscore", "clip": None, "mean": None, "std": None},
        "modality": None,
        "objective": None,
        "objective_config": None,
        "steps": None,
        "source": "nnssl checkpoint checkpoint_final.pth, trainer BaseMAETrainer, epoch 1000",
        "versions": {},
        "notes": ["left out: decoder.seg_layers (2 tensors)"],
    }


def test_the_plan_inside_goes_before_the_one_beside(tmp_path: Path, fakes) -> None:
    path = fakes.save(
        tmp_path / "c.pth",
        fakes.residual_unet(),
        plan=fakes.adaptation_plan(kwargs=fakes.arch_kwargs(), patch=(8, 8, 8)),
    )
    fakes.save_beside(path, fakes.adaptation_plan("PrimusM"))
    assert read_weights(path).header["patch_zyx"] == [8, 8, 8]


def test_a_plan_of_nnunet_inside_goes_before_one_beside(tmp_path: Path, fakes) -> None:
    init_args = fakes.nnunet_init_args(fakes.arch_kwargs(), "ResidualEncoderUNet")
    path = fakes.save(tmp_path / "c.pth", fakes.residual_unet(), init_args=init_args)
    fakes.save_beside(path, fakes.adaptation_plan("PrimusM"))
    assert read_weights(path).header["patch_zyx"] == [28, 256, 256]


def test_the_decoder_is_a_neck_here(tmp_path: Path, fakes) -> None:
    state = fakes.residual_unet(channels=(2, 3, 5), blocks=(1, 1, 1))
    tensors = read_weights(fakes.save(tmp_path / "c.pth", state)).tensors
    assert torch.equal(tensors["neck.up.0.weight"], state["decoder.transpconvs.1.weight"])  # 0 is the coarsest there
    assert torch.equal(tensors["neck.fuse.1.norm.bias"], state["decoder.stages.0.convs.0.norm.bias"])
    assert not any("seg_layers" in name for name in tensors)


def test_voco_has_a_projector_and_no_decoder(tmp_path: Path, fakes) -> None:
    state = {k: v for k, v in fakes.residual_unet().items() if not k.startswith("decoder.")}
    state |= {"projector.0.weight": torch.randn(4, 6)}
    plan = fakes.adaptation_plan(kwargs=fakes.arch_kwargs(), patch=(192, 192, 64))
    _, weights = read(fakes.save(tmp_path / "c.pth", state, plan=plan))
    assert weights.header["neck"] is None
    assert weights.header["patch_zyx"] == [192, 192, 64]
    assert weights.header["notes"] == ["left out: projector (1 tensors)"]


def test_wrappers_before_the_names_are_stripped(tmp_path: Path, fakes) -> None:
    state = {f"module._orig_mod.{key}": tensor for key, tensor in fakes.residual_unet().items()}
    plan = fakes.adaptation_plan(kwargs=fakes.arch_kwargs())
    encoder, _ = read(fakes.save(tmp_path / "c.pth", state, plan=plan))
    bare = {key.removeprefix("module._orig_mod."): tensor for key, tensor in state.items()}
    assert equal(features(encoder), features(filled(ResidualEncoder(1, channels=(2, 4), blocks=(1, 2)), bare)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_become_float32(tmp_path: Path, fakes, dtype: torch.dtype) -> None:
    state = {key: tensor.to(dtype) for key, tensor in fakes.residual_unet().items()}
    tensors = read_weights(fakes.save(tmp_path / "c.pth", state)).tensors
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert torch.equal(tensors["encoder.stem.conv.weight"], state["encoder.stem.convs.0.conv.weight"].float())


def test_a_bare_state_dict_is_enough(tmp_path: Path, fakes) -> None:
    state = fakes.residual_unet()
    torch.save(state, tmp_path / "bare.pt")
    encoder, _ = read(tmp_path / "bare.pt")
    assert equal(features(encoder), features(filled(ResidualEncoder(1, channels=(2, 4), blocks=(1, 2)), state)))


def test_names_without_the_list_of_modules_are_enough(tmp_path: Path, fakes) -> None:
    state = {k: v for k, v in fakes.residual_unet().items() if "all_modules" not in k}
    encoder, weights = read(fakes.save(tmp_path / "c.pth", state))
    assert equal(features(encoder), features(filled(ResidualEncoder(1, channels=(2, 4), blocks=(1, 2)), state, "conv")))
    assert not any("alias" in note for note in weights.header["notes"])


def test_the_tensors_do_not_depend_on_the_file(tmp_path: Path, fakes) -> None:
    state = fakes.residual_unet()
    path = fakes.save(tmp_path / "c.pth", state)
    weights = read_weights(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(weights.tensors["encoder.stem.conv.weight"], state["encoder.stem.convs.0.conv.weight"])


def test_a_citation_is_kept(tmp_path: Path, fakes) -> None:
    citations = [{"type": "paper", "name": "Missing Piece", "apa_citations": ["Eckstein, K. et al. (2025)."]}]
    notes = read_weights(fakes.save(tmp_path / "c.pth", fakes.residual_unet(), citations=citations)).header["notes"]
    assert notes[-1] == "please cite Missing Piece: Eckstein, K. et al. (2025)."


# --- S3D ----------------------------------------------------------------------------------------------------------


def test_s3d_without_a_plan_takes_what_was_trained(tmp_path: Path, fakes) -> None:
    kernels, steps = [(1, 3, 3), (3, 3, 3), (3, 3, 3)], [(1, 1, 1), (1, 2, 2), (2, 2, 2)]
    topology = {"channels": (2, 4, 4), "blocks": (1, 2, 1), "kernels": kernels}
    state = fakes.stale(fakes.residual_unet(steps=steps, **topology))
    spark = {f"architecture.{key}": tensor for key, tensor in state.items()} | {
        "mask_tokens.0": torch.zeros(1, 4, 1, 1, 1)
    }
    path = fakes.save(tmp_path / "s3d.pth", state, trainer="VariableSparkMAETrainer", spark_weights=spark)
    encoder, weights = read(path)
    mine = ResidualEncoder(1, downsampling=steps, **topology)
    trained, frozen = features(filled(mine, state)), features(filled(mine, state, "conv"))
    assert equal(features(encoder), trained)
    assert not equal(features(encoder), frozen)
    header = weights.header
    assert {name for name in header if header[name] is None} == NOTHING_KNOWN
    assert header["source"] == "nnssl S3D checkpoint s3d.pth, trainer VariableSparkMAETrainer, epoch 1000"
    units = 1 + 2 * 4 + 1  # the stem, two in each of four blocks, and the projection of stage 1
    differ = 4 * units - 1  # the projection has no bias
    assert header["notes"][0] == (
        f"{differ} tensors have another value under their alias; those of all_modules were used, which the network "
        "runs (first alias: encoder.stem.convs.0.conv.weight)"
    )
    assert "downsampling is that of the decoder's transposed convolutions" in header["notes"][1]
    assert "no plan" in header["notes"][2]
    assert header["notes"][0] in str(load_weights(encoder, weights))  # the report shows it


def test_s3d_with_spark_weights_only(tmp_path: Path, fakes) -> None:
    state = fakes.stale(fakes.residual_unet())
    torch.save({"spark_weights": {f"architecture.{key}": t for key, t in state.items()}}, tmp_path / "s3d.pth")
    encoder, _ = read(tmp_path / "s3d.pth")
    assert equal(features(encoder), features(filled(ResidualEncoder(1, channels=(2, 4), blocks=(1, 2)), state)))


def test_without_plan_and_decoder_the_steps_are_assumed_and_said(tmp_path: Path, fakes) -> None:
    # nnU-Net chooses the kernel of a stage with the pooling that leaves it: (1, 3, 3), then a step of (1, 2, 2)
    kernels = [(1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)]
    steps = [(1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 1, 1)]  # the last stage does not pool, which its skip shows
    state = fakes.residual_unet(channels=(2, 3, 4, 5), blocks=(1, 1, 1, 1), steps=steps, kernels=kernels)
    state = {key: tensor for key, tensor in state.items() if not key.startswith("decoder.")}
    header = read_weights(fakes.save(tmp_path / "c.pth", state)).header
    assert header["encoder"]["kwargs"]["downsampling"] == [list(step) for step in steps]
    assert any("downsampling is assumed, as no tensor and no plan tells it" in note for note in header["notes"])


def test_a_decoder_of_some_levels_tells_their_steps(tmp_path: Path, fakes) -> None:
    state = fakes.conv_backbone(channels=(2, 4, 4))
    del state["decoder.up.P2.conv.weight"], state["decoder.up.P2.conv.bias"]
    state["decoder.up.P1.conv.weight"] = fakes.numbers(8, 8, 1, 2, 2)
    header = read_weights(fakes.save(tmp_path / "c.pth", state)).header
    assert header["encoder"]["kwargs"]["downsampling"] == [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
    assert any("downsampling of stage 2 is assumed" in note for note in header["notes"])


TRIPLES = st.tuples(*[st.sampled_from([1, 2])] * 3)
STAGES = st.lists(
    st.tuples(st.integers(1, 4), TRIPLES, st.tuples(*[st.sampled_from([1, 3])] * 3), st.integers(1, 2)),
    min_size=2,
    max_size=4,
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])  # `fakes` has no state
@given(stages=STAGES, in_channels=st.integers(1, 3), plain=st.booleans())
def test_the_tensors_of_a_unet_tell_its_topology(
    tmp_path_factory, fakes, stages, in_channels: int, plain: bool
) -> None:
    channels, steps, kernels, depth = (list(entries) for entries in zip(*stages, strict=True))
    steps[0] = (1, 1, 1)
    build = fakes.plain_unet if plain else fakes.residual_unet
    state = build(in_channels, channels, depth, steps=steps, kernels=kernels)
    header = read_weights(fakes.save(tmp_path_factory.mktemp("any") / "c.pth", state)).header
    kwargs = header["encoder"]["kwargs"]
    assert kwargs["channels"] == channels
    assert kwargs["downsampling"] == [list(step) for step in steps]
    assert kwargs["kernels"] == [list(kernel) for kernel in kernels]
    assert kwargs["convs" if plain else "blocks"] == depth
    assert header["in_channels"] == in_channels


# --- nnU-Net v2 ---------------------------------------------------------------------------------------------------


def test_nnunet_with_its_plans(tmp_path: Path, fakes) -> None:
    steps, kernels = [(1, 1, 1), (1, 2, 2)], [(1, 3, 3), (3, 3, 3)]
    state = fakes.residual_unet(steps=steps, kernels=kernels, heads=2)
    init_args = fakes.nnunet_init_args(fakes.arch_kwargs(steps=steps, kernels=kernels), "ResidualEncoderUNet")
    encoder, weights = read(fakes.save(tmp_path / "c.pth", state, trainer="nnUNetTrainer", init_args=init_args))
    mine = ResidualEncoder(1, channels=(2, 4), blocks=(1, 2), downsampling=steps, kernels=kernels)
    assert equal(features(encoder), features(filled(mine, state)))
    header = weights.header
    assert header["patch_zyx"] == [28, 256, 256]
    assert header["spacing_zyx_mm"] == [5.0, 0.8, 0.8]
    assert header["normalisation"] == {"scheme": "ct", "clip": [-900.0, 300.0], "mean": [99.5], "std": [141.0]}
    assert header["modality"] == "CT"
    assert header["source"] == "nnU-Net v2 checkpoint c.pth, trainer nnUNetTrainer, epoch 1000"
    assert header["neck"]["kwargs"]["kernels"] == [[1, 3, 3]]


def test_nnunet_plain_network_has_its_stem_in_stage_0(tmp_path: Path, fakes) -> None:
    state = fakes.plain_unet(in_channels=2, convs=(2, 3))
    kwargs = fakes.arch_kwargs(blocks=(2, 3), plain=True)
    weights = read_weights(
        fakes.save(tmp_path / "c.pth", state, init_args=fakes.nnunet_init_args(kwargs, "PlainConvUNet"))
    )
    assert weights.header["encoder"]["kwargs"]["convs"] == [2, 3]
    for here, there in (("stem", "0.0.convs.0"), ("stages.0.0", "0.0.convs.1"), ("stages.1.2", "1.0.convs.2")):
        found = weights.tensors[f"encoder.{here}.conv.weight"]
        assert torch.equal(found, state[f"encoder.stages.{there}.all_modules.0.weight"])
    assert weights.header["neck"] is None  # two convolutions a level
    assert any(note.startswith("decoder left out: it has decoder.stages.0.convs.1") for note in weights.header["notes"])


def test_a_relu_decoder_is_no_neck_here(tmp_path: Path, fakes) -> None:
    state = fakes.plain_unet(decoder_convs=1)
    plan = fakes.adaptation_plan("PlainConvUNet", fakes.arch_kwargs(blocks=(2, 2), plain=True, nonlin="torch.nn.ReLU"))
    plan |= {"key_to_stem": "encoder.stages.0", "keys_to_in_proj": ["encoder.stages.0.0.convs.0.conv"]}
    header = read_weights(fakes.save(tmp_path / "c.pth", state, plan=plan)).header
    assert header["encoder"]["kwargs"]["activation"] == "relu"
    assert header["neck"] is None
    assert any(note.startswith("decoder left out: its activation is relu") for note in header["notes"])


def test_nnunet_before_its_architecture_had_a_name(tmp_path: Path, fakes) -> None:
    flat = {
        "UNet_class_name": "ResidualEncoderUNet",
        "UNet_base_num_features": 2,
        "unet_max_num_features": 3,
        "n_conv_per_stage_encoder": [1, 2, 1],
        "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2], [1, 2, 2]],
        "conv_kernel_sizes": [[3, 3, 3]] * 3,
    }
    init_args = fakes.nnunet_init_args(None, "", **flat) | {"configuration": "3d_cascade_fullres"}
    state = fakes.residual_unet(
        channels=(2, 3, 3), blocks=(1, 2, 1), steps=[(1, 1, 1), (2, 2, 2), (1, 2, 2)], in_channels=2
    )
    header = read_weights(fakes.save(tmp_path / "c.pth", state, init_args=init_args)).header
    assert header["encoder"]["kwargs"]["downsampling"] == [[1, 1, 1], [2, 2, 2], [1, 2, 2]]
    assert header["encoder"]["kwargs"]["channels"] == [2, 3, 3]
    assert header["in_channels"] == 2


def test_one_number_stands_for_all_stages(tmp_path: Path, fakes) -> None:
    kwargs = fakes.arch_kwargs(n_blocks_per_stage=1, kernel_sizes=3, strides=[1, 2])
    plan = fakes.adaptation_plan(kwargs=kwargs)
    header = read_weights(fakes.save(tmp_path / "c.pth", fakes.residual_unet(blocks=(1, 1)), plan=plan)).header
    assert header["encoder"]["kwargs"]["downsampling"] == [[1, 1, 1], [2, 2, 2]]


# --- MultiTalent --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", ["residual_unet", "plain_unet", "conv_backbone"])
def test_every_stem_of_multitalent_is_listed_and_can_be_chosen(tmp_path: Path, fakes, structure: str) -> None:
    stems = {"351_0": 1, "004": 4, "351_5": 1}
    state = getattr(fakes, structure)(stems=stems)
    _, weights = read(fakes.save(tmp_path / "c.pth", state))
    assert weights.header["stems"] == stems
    assert weights.header["in_channels"] == 1
    key = {"conv_backbone": "stem.004.0.weight"}.get(structure, "encoder.stem.004.convs.0.all_modules.0.weight")
    model = make_encoder(weights.header["encoder"], 4)
    report = load_weights(model, weights, stem="dataset:004")
    assert torch.equal(model.stem.conv.weight, state[key])
    assert report.rows[0].reason == "from stems.004.conv.weight"


def test_the_plan_names_the_default_stem(tmp_path: Path, fakes) -> None:
    state = fakes.residual_unet(stems={"351_0": 1, "004": 4}, heads={"351_0": 2, "004": 3})
    stem = "encoder.stem.004"
    plan = fakes.adaptation_plan(
        kwargs=fakes.arch_kwargs(), stem=stem, projection=[f"{stem}.convs.0.conv"], in_channels=4
    )
    _, weights = read(fakes.save(tmp_path / "c.pth", state, plan=plan))
    assert weights.header["in_channels"] == 4
    assert torch.equal(weights.tensors["encoder.stem.conv.weight"], weights.tensors["stems.004.conv.weight"])
    assert weights.header["notes"][0] == "the encoder's stem is that of dataset 004 of 2, as the plan says"


@pytest.mark.parametrize("structure", ["residual_unet", "plain_unet"])
def test_bare_names_of_a_backbone(tmp_path: Path, fakes, structure: str) -> None:
    state = getattr(fakes, structure)(stems={"351_0": 1, "004": 4})
    bare = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    plan = fakes.adaptation_plan(
        "ResidualEncoderUNet" if structure == "residual_unet" else "PlainConvUNet",
        fakes.arch_kwargs(blocks=(1, 2) if structure == "residual_unet" else (2, 2), plain=structure == "plain_unet"),
        encoder="stages",
        stem="stem.004",
        projection=["stem.004.convs.0.conv"],
        in_channels=4,
    )
    mine, other = (
        read_weights(fakes.save(tmp_path / name, tensors, plan=told)).tensors
        for name, tensors, told in (("bare.pth", bare, plan), ("full.pth", state, None))
    )
    for name, tensor in mine.items():
        if not name.startswith("encoder.stem."):
            assert torch.equal(tensor, other[name])
    assert torch.equal(mine["encoder.stem.conv.weight"], other["stems.004.conv.weight"])


@pytest.mark.parametrize(("stems", "chosen"), [({"9": 1, "351_0": 1}, "351_0"), ({"9": 2, "10": 1}, "10")])
def test_a_default_that_nobody_named_is_noted(tmp_path: Path, fakes, stems: dict[str, int], chosen: str) -> None:
    weights = read_weights(fakes.save(tmp_path / "c.pth", fakes.residual_unet(stems=stems)))
    assert torch.equal(weights.tensors["encoder.stem.norm.bias"], weights.tensors[f"stems.{chosen}.norm.bias"])
    assert any(
        f"that of dataset {chosen} of 2" in note and "the file names no default" in note
        for note in weights.header["notes"]
    )


def test_the_stem_of_a_plain_network_is_the_first_unit(tmp_path: Path, fakes) -> None:
    for name, state, second in (
        ("dna", fakes.plain_unet(stems={"a": 1}), "encoder.stages.0.0.convs.0.all_modules.0.weight"),
        ("nndet", fakes.conv_backbone({"a": 1}), "backbone.levels.0.component.0.conv.weight"),
    ):
        weights = read_weights(fakes.save(tmp_path / f"{name}.pth", state))
        assert weights.header["encoder"]["kwargs"]["convs"] == [2, 2]
        assert torch.equal(weights.tensors["encoder.stages.0.0.conv.weight"], state[second])


def test_a_first_stage_that_is_only_a_stem(tmp_path: Path, fakes) -> None:
    weights = read_weights(fakes.save(tmp_path / "c.pth", fakes.plain_unet(stems={"a": 1}, convs=(1, 2))))
    assert weights.header["encoder"]["kwargs"]["convs"] == [1, 2]


def test_multitalent_v1(tmp_path: Path, fakes) -> None:
    state = fakes.generic_unet()
    torch.save({"epoch": 1000, "state_dict": state, "plot_stuff": [[1.0], []]}, tmp_path / "model_final.model")
    header = read_weights(tmp_path / "model_final.model").header
    assert header["encoder"]["kwargs"] == {
        "channels": [2, 4, 4],
        "downsampling": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "kernels": [[3, 3, 3]] * 3,
        "convs": [2, 2, 2],
        "activation": "leaky_relu",
        "bias": True,
        "init": "torch",
    }
    tensors = read_weights(tmp_path / "model_final.model").tensors
    assert torch.equal(tensors["encoder.stages.2.1.norm.bias"], state["conv_blocks_context.2.1.blocks.0.instnorm.bias"])


# --- nnDetection --------------------------------------------------------------------------------------------------


def test_conv_backbone_with_multitalents_plan(tmp_path: Path, fakes) -> None:
    state = fakes.conv_backbone({"351_0": 1, "004": 4}, channels=(2, 4, 4), out_channels=16)
    kwargs = fakes.arch_kwargs(channels=(2, 4, 4, 4), blocks=(2, 2, 2, 2), plain=True, conv_bias=False)  # one more
    plan = fakes.adaptation_plan(
        "PlainConvUNet", kwargs, encoder="backbone", stem="stem.351_0", projection=["stem.351_0.0"]
    )
    _, weights = read(fakes.save(tmp_path / "c.pth", state, plan=plan))
    header = weights.header
    assert header["encoder"]["kwargs"] == {
        "channels": [2, 4, 4],
        "downsampling": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "kernels": [[3, 3, 3]] * 3,
        "convs": [2, 2, 2],
        "activation": "leaky_relu",
        "bias": False,
        "init": "torch",
    }
    assert any("one stage more than the network" in note for note in header["notes"])
    assert header["neck"] == {"class": "UFPN", "kwargs": {"out_channels": 16, "first_level": 1, "init": "torch"}}
    assert torch.equal(weights.tensors["neck.up.1.weight"], state["decoder.up.P2.conv.weight"])
    assert torch.equal(weights.tensors["neck.out.0.bias"], state["decoder.out.P0.0.conv.bias"])


def transfer_plan(encoder: str, stem: str, **more: Any) -> dict[str, Any]:
    """The plan that nnDetection's fine-tuning writes: where the tensors are, and not what they make."""
    return {"key_to_encoder": encoder, "key_to_stem": stem, "keys_to_in_proj": [], **more}


def test_a_plan_without_an_architecture_leaves_it_to_the_tensors(tmp_path: Path, fakes) -> None:
    state = fakes.residual_unet()
    plan = transfer_plan("encoder.stages", "encoder.stem", pretrain_num_input_channels=1)
    encoder, weights = read(fakes.save(tmp_path / "c.pth", state, plan=plan))
    assert equal(features(encoder), features(filled(ResidualEncoder(1, channels=(2, 4), blocks=(1, 2)), state)))
    assert any(note.startswith("the plan names no architecture: stages, channels") for note in weights.header["notes"])


@pytest.mark.parametrize("place", ["backbone.", "encoder.encoder.", "model.backbone.", "net.0.", ""])
@pytest.mark.parametrize("stem", ["stem", "stem.004"])
def test_the_plan_says_where_the_encoder_is(tmp_path: Path, fakes, place: str, stem: str) -> None:
    state = fakes.residual_unet(2, stems=None if stem == "stem" else {"004": 2, "351_0": 1})
    state = {key: tensor for key, tensor in state.items() if key.startswith("encoder.")}
    moved = {f"{place}{key.removeprefix('encoder.')}": tensor for key, tensor in state.items()}
    plan = transfer_plan(f"{place}stages", f"{place}{stem}")
    path = fakes.save(tmp_path / "c.pth", moved | {"head.conv.weight": torch.zeros(1)}, plan=plan)
    weights, usual = read_weights(path), read_weights(fakes.save(tmp_path / "u.pth", state))
    assert weights.header["in_channels"] == 2
    assert weights.header["stems"] == usual.header["stems"]
    assert torch.equal(
        weights.tensors["encoder.stem.conv.weight"], state[f"encoder.{stem}.convs.0.all_modules.0.weight"]
    )
    for name, tensor in usual.tensors.items():
        assert name.startswith("encoder.stem.") or torch.equal(weights.tensors[name], tensor)


def test_a_plan_finds_a_plain_encoder_with_the_stem_inside(tmp_path: Path, fakes) -> None:
    state = {key: tensor for key, tensor in fakes.plain_unet().items() if key.startswith("encoder.")}
    moved = {key.replace("encoder.", "backbone.", 1): tensor for key, tensor in state.items()}
    plan = transfer_plan("backbone.stages", "backbone.stages.0")
    tensors = read_weights(fakes.save(tmp_path / "c.pth", moved, plan=plan)).tensors
    assert torch.equal(tensors["encoder.stem.conv.weight"], state["encoder.stages.0.0.convs.0.conv.weight"])


def test_a_detector_of_nndetection_v2(tmp_path: Path, fakes) -> None:
    state = fakes.conv_backbone()
    detector = {f"model.{key.replace('decoder', 'neck', 1)}": tensor for key, tensor in state.items()}
    torch.save(
        {"state_dict": detector | {"model.head.classifier.conv.weight": torch.zeros(1)}}, tmp_path / "model.ckpt"
    )
    weights = read_weights(tmp_path / "model.ckpt")
    assert weights.header["neck"]["class"] == "UFPN"
    assert torch.equal(weights.tensors["encoder.stem.conv.weight"], state["backbone.levels.0.component.0.conv.weight"])


def test_retina_unet_of_v01_has_relu_and_no_bias(tmp_path: Path, fakes) -> None:
    state = fakes.retina_unet_v001()
    weights = read_weights(fakes.save(tmp_path / "c.pth", state))
    assert weights.header["encoder"]["kwargs"]["activation"] == "relu"
    assert weights.header["encoder"]["kwargs"]["bias"] is False
    assert torch.equal(
        weights.tensors["encoder.stages.0.0.conv.weight"], state["encoder.stages.0.convs.0.1.conv.weight"]
    )


# --- the header ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "normalisation"),
    [
        ({"masked": (True,)}, {"scheme": "zscore_mask", "clip": None, "mean": None, "std": None}),
        ({"masked": None}, None),
        ({"masked": False}, {"scheme": "zscore", "clip": None, "mean": None, "std": None}),
        ({"schemes": ["NoNormalization"]}, {"scheme": "none", "clip": None, "mean": None, "std": None}),
        ({"schemes": ["RescaleTo01Normalization"]}, None),
        ({"schemes": ["CTNormalization"]}, None),  # without its numbers
        ({"schemes": ["ZScoreNormalization", "NoNormalization"], "masked": (False, False)}, None),
    ],
)
def test_normalisation_is_kept_where_it_can_be(
    tmp_path: Path, fakes, changes: dict, normalisation: dict | None
) -> None:
    plan = fakes.adaptation_plan(kwargs=fakes.arch_kwargs(), **changes)
    header = read_weights(fakes.save(tmp_path / "c.pth", fakes.residual_unet(), plan=plan)).header
    assert header["normalisation"] == normalisation
    assert any("normalisation not kept" in note for note in header["notes"]) == (normalisation is None)


def test_data_without_resampling_has_no_spacing(tmp_path: Path, fakes) -> None:
    plan = fakes.adaptation_plan(kwargs=fakes.arch_kwargs(), spacing=None, patch=(192.0, 192, 192))
    header = read_weights(fakes.save(tmp_path / "c.pth", fakes.residual_unet(), plan=plan)).header
    assert header["spacing_zyx_mm"] is None
    assert header["patch_zyx"] == [192, 192, 192]


def test_what_is_not_of_the_headers_kind_is_noted(tmp_path: Path, fakes) -> None:
    init_args = fakes.nnunet_init_args(fakes.arch_kwargs(), "ResidualEncoderUNet")
    init_args["plans"]["configurations"]["3d_fullres"] |= {"patch_size": [64, 64], "spacing": [1, -1, 1]}
    init_args["dataset_json"]["channel_names"] = {"0": "CT", "1": "PET"}
    header = read_weights(fakes.save(tmp_path / "c.pth", fakes.residual_unet(), init_args=init_args)).header
    assert [header[field] for field in ("patch_zyx", "spacing_zyx_mm", "modality")] == [None] * 3
    for note in ("patch not kept: [64, 64]", "spacing not kept: [1, -1, 1]", "modality not kept: ['CT', 'PET']"):
        assert note in header["notes"]


def test_transposed_axes_are_noted(tmp_path: Path, fakes) -> None:
    plan = fakes.adaptation_plan(kwargs=fakes.arch_kwargs())
    plan["pretrain_plan"]["transpose_forward"] = [2, 0, 1]
    notes = read_weights(fakes.save(tmp_path / "c.pth", fakes.residual_unet(), plan=plan)).header["notes"]
    assert notes[0].startswith("axes were transposed to [2, 0, 1]")


# --- the real size ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ResEncL", "NoSkipResEncL"])
def test_the_name_resencl_is_the_preset(tmp_path: Path, fakes, name: str) -> None:
    channels, blocks = (32, 64, 128, 256, 320, 320), (1, 3, 4, 6, 6, 6)
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in fakes.residual_unet(channels=channels, blocks=blocks).items()}
    assert len(shapes) == 956
    one = torch.zeros(320 * 640 * 27, dtype=torch.float16)  # every tensor is a piece of one: the file has 11 MB
    state = {key: one[: shape.numel()].view(shape) for key, shape in shapes.items() if not key.startswith("decoder.")}
    path = fakes.save(tmp_path / "checkpoint_final.pth", state, plan=fakes.adaptation_plan(name))
    weights = read_weights(path)
    assert weights.header["encoder"] == preset("resenc_l")
    assert len(weights.tensors) == 224
    assert sum(tensor.numel() for tensor in weights.tensors.values()) == 90_296_576
