"""Files that are refused: the file, the key or field, what was found and what was wanted; and nothing runs."""

import contextlib
import io
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from girih_backbones import WeightsError, read_weights
from girih_backbones.foreign import convert


def refused(path: Path, **kwargs: Any) -> str:
    """Return the message of a refusal, which is one line and names the file."""
    with pytest.raises(WeightsError) as caught:
        read_weights(path, **kwargs)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


# --- what is no checkpoint ----------------------------------------------------------------------------------------


class Bomb:
    """What a pickle may ask for when it is loaded: any call at all."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.victim}",)


@pytest.mark.parametrize("where", ["weights", "log", "whole"])
def test_a_pickle_bomb_does_not_go_off(tmp_path: Path, fakes, where: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / "c.pth"
    armed = Bomb(victim)
    if where == "whole":
        torch.save(armed, path)
    elif where == "log":
        fakes.save(path, fakes.residual_unet(), logging={"loss": [armed]})
    else:
        fakes.save(path, fakes.residual_unet() | {"encoder.stages.1.blocks.1.conv2.conv.bias": armed})
    message = refused(path)
    assert "pickle: found a reference to 'posix.system', which is code; wanted tensors and plain data" in message
    assert not victim.exists()
    torch.load(path, weights_only=False)  # the bomb is a real one
    assert victim.exists()


class OddNumber:
    """A call of numpy with what it does not take."""

    def __reduce__(self) -> tuple:
        return np.dtype, ("no such type",)


def test_numbers_of_numpy_are_read_as_nothing(tmp_path: Path, fakes) -> None:
    fakes.save(tmp_path / "odd.pth", fakes.residual_unet(), logging=[OddNumber()])
    assert read_weights(tmp_path / "odd.pth")  # not even numpy is called
    path = fakes.save(tmp_path / "c.pth", fakes.residual_unet())  # its log has some
    with pytest.raises(pickle.UnpicklingError, match="numpy"):
        torch.load(path, weights_only=True)
    assert read_weights(path)
    with pytest.raises(pickle.UnpicklingError, match="numpy"):  # and they are not allowed to anyone else afterwards
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("old", [True, False])
def test_a_bare_pickle_is_refused(tmp_path: Path, old: bool) -> None:
    path = tmp_path / "c.pth"
    if old:
        torch.save({"network_weights": {}}, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps({"network_weights": {}}))
    assert "found a bare pickle, as torch.save wrote before PyTorch 1.6, wanted safetensors" in refused(path)


@pytest.mark.parametrize("kept", [10, 0.1, 0.5, 0.9, -1])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, fakes, kept: float) -> None:
    path = fakes.save(tmp_path / "c.pth", fakes.residual_unet())
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if 0 < kept < 1 else int(kept)])
    assert "truncated or damaged checkpoint" in refused(path)


def test_damage_anywhere_is_a_refusal_or_goes_unseen(tmp_path: Path, fakes) -> None:
    path = tmp_path / "c.pth"
    content = fakes.save(path, fakes.residual_unet(channels=(1, 1), blocks=(1, 1)), plan={}).read_bytes()
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("c/data.pkl").header_offset
    draw = random.Random(0)
    refusals = 0
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(draw.choice([1, 3])):
            damaged[draw.randrange(start, start + 3000)] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            read_weights(path)
        except WeightsError:
            refusals += 1
    assert refusals == 150  # the plan is empty, so that what is not damaged is refused as well


def test_a_zip_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<a/>")
    assert "found a zip file that is no checkpoint: wanted the record data.pkl" in refused(path)


def test_a_compressed_archive_is_refused_before_it_grows(tmp_path: Path) -> None:
    path, plain = tmp_path / "c.pth", io.BytesIO()
    torch.save({"network_weights": {"w": torch.zeros(10_000)}}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for record in source.infolist():
            target.writestr(record.filename, source.read(record))
    assert "found it compressed, wanted it stored" in refused(path)


def test_sizes_are_limited(tmp_path: Path, fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fakes.save(tmp_path / "c.pth", fakes.residual_unet())
    size = path.stat().st_size
    assert read_weights(path, max_bytes=size)
    assert f"found {size} bytes, wanted at most {size - 1}" in refused(path, max_bytes=size - 1)
    monkeypatch.setattr("girih_backbones.checkpoint.MAX_PICKLE_BYTES", 100)
    assert "record data.pkl: found" in refused(path)


def test_many_names_for_one_tensor_do_not_grow_in_memory(tmp_path: Path, fakes) -> None:
    one = torch.zeros(320 * 320 * 27)
    state = {f"encoder.stages.0.blocks.{b}.conv1.conv.weight": one.view(320, 320, 3, 3, 3) for b in range(50)}
    state |= {"encoder.stem.convs.0.conv.weight": one[: 320 * 27].view(320, 1, 3, 3, 3)}
    path = fakes.save(tmp_path / "c.pth", state)
    limit = 2 * path.stat().st_size
    assert f"bytes of weights, wanted at most {limit}" in refused(path, max_bytes=limit)


def test_a_tensor_larger_than_its_values_is_refused(tmp_path: Path, fakes) -> None:
    state = fakes.residual_unet() | {"encoder.stem.convs.0.norm.weight": torch.zeros(1).expand(2**40)}
    assert (
        "key encoder.stem.convs.0.norm.weight: found shape (1099511627776,), which the file does not hold"
        in refused(fakes.save(tmp_path / "c.pth", state))
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "found list, wanted a dictionary"),
        ({}, "found a dictionary of nothing; wanted network_weights in it"),
        ({"epoch": 3, "model": {}}, "found a dictionary of epoch, model; wanted network_weights in it"),
        ({"network_weights": {}}, "network_weights: found dict of no entries"),
        ({"network_weights": [torch.zeros(1)]}, "network_weights: found list"),
        ({"network_weights": {3: torch.zeros(1)}}, "network_weights: found the key 3, wanted text"),
        ({"network_weights": {"a": "b"}}, "key a: found str, wanted a dense tensor"),
        ({"network_weights": {"a": torch.zeros(2).to_sparse()}}, "key a: found Tensor, wanted a dense tensor"),
        (
            {"network_weights": {"a": torch.zeros(2)}},
            "keys: found names that begin with a; wanted an encoder of nnU-Net",
        ),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "c.pth")
    assert message in refused(tmp_path / "c.pth")


def test_the_hash_must_be_the_expected_one(tmp_path: Path, fakes) -> None:
    import hashlib

    path = fakes.save(tmp_path / "c.pth", fakes.residual_unet())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_weights(path, sha256=digest.upper())
    assert f"sha256: found {digest}, wanted {'0' * 64}" in refused(path, sha256="0" * 64)


# --- tensors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_values_that_are_not_finite_are_refused_by_key(tmp_path: Path, fakes, value: float) -> None:
    state = fakes.residual_unet()
    state["encoder.stages.1.blocks.1.conv2.all_modules.1.bias"].fill_(value)
    assert "key encoder.stages.1.blocks.1.conv2.all_modules.1.bias: found values that are not finite" in refused(
        fakes.save(tmp_path / "c.pth", state)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.update({"encoder.stages.0.blocks.0.conv3.conv.weight": torch.zeros(2, 2, 1, 1, 1)}),
            "key encoder.stages.0.blocks.0.conv3.conv.weight: found shape (2, 2, 1, 1, 1) in the encoder",
        ),
        (
            lambda s: s.update({"module.encoder.stem.convs.0.norm.bias": torch.zeros(2)}),
            "key module.encoder.stem.convs.0.norm.bias: found a second tensor for encoder.stem.convs.0.norm.bias",
        ),
        (
            lambda s: s.update({"encoder.stages.00.blocks.0.conv1.norm.bias": torch.zeros(2)}),
            "found a second tensor for stages.0.0.conv1.norm.bias",
        ),
        (
            lambda s: s.update({"encoder.stages.0.0.convs.0.norm.bias": torch.zeros(2)}),
            "keys: found the encoders of nnU-Net and residual, wanted one",
        ),
        (
            lambda s: [s.pop(k) for k in list(s) if "stages.1.blocks.0" in k],
            "units of stage 1: found 1, wanted 0, 1, ... without a gap",
        ),
        (
            lambda s: [s.pop(k) for k in list(s) if "encoder.stages.0" in k],
            "stages: found 1, wanted 0, 1, ... without a gap",
        ),
        (lambda s: [s.pop(k) for k in list(s) if ".stem." in k], "keys: found no stem"),
        (
            lambda s: s.update({"encoder.stages.0.blocks.0.conv1.all_modules.0.weight": torch.zeros(2, 2, 3, 3)}),
            "key encoder.stages.0.blocks.0.conv1.all_modules.0.weight: found shape (2, 2, 3, 3), wanted five axes",
        ),
        (
            lambda s: s.update({"encoder.stages.1.blocks.1.conv2.all_modules.0.weight": torch.zeros(4, 5, 3, 3, 3)}),
            "tensor encoder.stages.1.1.conv2.conv.weight: found shape (4, 5, 3, 3, 3), the header describes (4, 4,",
        ),
        (
            lambda s: [s.pop(k) for k in list(s) if "stages.0.blocks.0.conv2" in k and k.endswith(".bias")],
            "tensor encoder.stages.0.0.conv2.conv.bias: not found",
        ),
    ],
)
def test_an_encoder_that_is_none_here_is_refused(tmp_path: Path, fakes, change: Any, message: str) -> None:
    state = fakes.residual_unet()
    change(state)
    assert message in refused(fakes.save(tmp_path / "c.pth", state))


@pytest.mark.parametrize("what", ["missing", "whole numbers"])
def test_a_stale_alias_does_not_stand_in_for_what_the_network_runs(tmp_path: Path, fakes, what: str) -> None:
    state = fakes.stale(fakes.residual_unet())
    block = "encoder.stages.1.blocks.1.conv2"
    run = state.pop(f"{block}.all_modules.0.weight")
    if what == "missing":
        message = f"key {block}.conv.weight: found no all_modules beside it, wanted it as for the rest of the encoder"
    else:
        state[f"{block}.all_modules.0.weight"] = run.to(torch.int32)
        message = f"key {block}.all_modules.0.weight: found torch.int32, wanted floating numbers"
    assert message in refused(fakes.save(tmp_path / "c.pth", state))


def test_counters_beside_the_weights_are_passed_over(tmp_path: Path, fakes) -> None:
    state = fakes.residual_unet() | {"projector.1.num_batches_tracked": torch.tensor(3)}
    assert read_weights(fakes.save(tmp_path / "c.pth", state))


def test_a_plan_that_says_nothing_of_the_encoder_is_refused(tmp_path: Path, fakes) -> None:
    message = "nnssl_adaptation_plan.architecture_plans: not found, nor key_to_encoder; wanted one of them"
    assert message in refused(fakes.save(tmp_path / "c.pth", fakes.residual_unet(), plan={"pretrain_plan": None}))


def test_two_encoders_are_not_mixed(tmp_path: Path, fakes) -> None:
    state = fakes.residual_unet()
    state |= {k.replace("encoder.", "backbone.", 1): v for k, v in state.items() if k.startswith("encoder.stages.")}
    plan = {"key_to_encoder": "backbone.stages", "key_to_stem": "encoder.stem"}
    assert "found a second tensor for encoder.stages.0" in refused(fakes.save(tmp_path / "c.pth", state, plan=plan))


def test_a_decoder_that_is_no_neck_here_is_left_out(tmp_path: Path, fakes) -> None:
    state = fakes.residual_unet()
    state["decoder.stages.0.convs.0.all_modules.0.weight"] = torch.zeros(2, 2, 3, 3, 3)  # no skip connection
    header = read_weights(fakes.save(tmp_path / "c.pth", state)).header
    assert header["neck"] is None
    assert (
        "decoder left out: UNetDecoder fuse.0.conv.weight: found (2, 2, 3, 3, 3), wanted (2, 4, 3, 3, 3)"
        in header["notes"]
    )


# --- plans --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("PrimusM", None, "architecture_plans.arch_class_name: found 'PrimusM', wanted one of ['ConvBackbone'"),
        ("SwinUNETR", {}, "arch_class_name: found 'SwinUNETR', wanted one of"),
        (None, None, "arch_class_name: found None, wanted one of"),
        ("ResidualEncoderUNet", None, "arch_class_name: found 'ResidualEncoderUNet' without arch_kwargs"),
        ("ResEncL", None, "found stages 6, the tensors have 2"),
        ("PlainConvUNet", {"plain": True}, "found a PlainEncoder, the tensors are those of a ResidualEncoder"),
        (
            "ResidualEncoderUNet",
            {"channels": (2, 8)},
            "found channels (2, 8), the tensors have (2, 4) (key encoder.stages.1.blocks.0.conv1.all_modules.0.weight)",
        ),
        ("ResidualEncoderUNet", {"blocks": (1, 3)}, "found blocks or convolutions (1, 3), the tensors have (1, 2)"),
        (
            "ResidualEncoderUNet",
            {"kernels": [(1, 3, 3), (3, 3, 3)]},
            "found kernels ((1, 3, 3), (3, 3, 3)), the tensors",
        ),
        ("ResidualEncoderUNet", {"steps": [(1, 1, 1), (1, 2, 2)]}, "found downsampling ((1, 2, 2),), the tensors have"),
        ("ResidualEncoderUNet", {"conv_bias": False}, "found bias False, the tensors have True"),
        (
            "ResidualEncoderUNet",
            {"conv_op": "torch.nn.modules.conv.Conv2d"},
            "conv_op: found 'torch.nn.modules.conv.Con",
        ),
        (
            "ResidualEncoderUNet",
            {"norm_op": "torch.nn.BatchNorm3d"},
            "norm_op: found 'torch.nn.BatchNorm3d', wanted Inst",
        ),
        ("ResidualEncoderUNet", {"norm_op_kwargs": {"eps": 1e-3}}, "norm_op_kwargs: found {'eps': 0.001}"),
        ("ResidualEncoderUNet", {"nonlin": "torch.nn.ReLU"}, "nonlin: found 'torch.nn.ReLU', wanted LeakyReLU"),
        ("ResidualEncoderUNet", {"nonlin_kwargs": {"negative_slope": 0.2}}, "found a slope of 0.2, wanted 0.01"),
        (
            "ResidualEncoderUNet",
            {"dropout_op": "torch.nn.Dropout3d"},
            "dropout_op: found 'torch.nn.Dropout3d', wanted no",
        ),
        ("ResidualEncoderUNet", {"squeeze_excitation": True}, "squeeze_excitation: found True, wanted none"),
        ("ResidualEncoderUNet", {"block": "a.BottleneckD"}, "block: found 'a.BottleneckD', wanted BasicBlockD"),
        ("ResidualEncoderUNet", {"pool_type": "max"}, "pool_type: found 'max', wanted 'conv'"),
        ("ResidualEncoderUNet", {"stem_channels": 7}, "stem_channels: found 7, wanted 2"),
        (
            "ResidualEncoderUNet",
            {"n_stages": 3},
            "features_per_stage: found [2, 4], wanted one whole number for each stage",
        ),
        ("ResidualEncoderUNet", {"n_stages": 10**9, "features_per_stage": 4}, "wanted one whole number for each"),
        (
            "ResidualEncoderUNet",
            {"strides": [[0, 1, 1], [2, 2, 2]]},
            "strides: found [[0, 1, 1], [2, 2, 2]], wanted three whole numbers",
        ),
    ],
)
def test_a_plan_that_contradicts_is_refused(tmp_path: Path, fakes, name: Any, kwargs: Any, message: str) -> None:
    kwargs = None if kwargs is None else fakes.arch_kwargs(**kwargs)
    path = fakes.save(tmp_path / "c.pth", fakes.residual_unet(), plan=fakes.adaptation_plan(name, kwargs))
    assert message in refused(path)


@pytest.mark.parametrize("steps", [[(1, 1, 1), (1, 1, 1), (2, 2, 2)], [(1, 1, 1), (2, 2, 2), (2, 2, 2)]])
def test_a_step_that_contradicts_the_skip_of_its_stage_is_refused(tmp_path: Path, fakes, steps: list) -> None:
    pools = steps[1] == (1, 1, 1)  # whether the network does
    real = [(1, 1, 1), (2, 2, 2) if pools else (1, 1, 1), (2, 2, 2)]
    state = fakes.residual_unet(channels=(2, 3, 4), blocks=(1, 1, 1), steps=real)
    state = {key: tensor for key, tensor in state.items() if not key.startswith("decoder.")}
    plan = fakes.adaptation_plan(kwargs=fakes.arch_kwargs(channels=(2, 3, 4), blocks=(1, 1, 1), steps=steps))
    found = refused(fakes.save(tmp_path / "c.pth", state, plan=plan))
    key = f"encoder.stages.1.blocks.0.skip.{int(pools)}.all_modules.0.weight"
    assert f"arch_kwargs: found downsampling {steps[1]} of stage 1, the tensors " in found
    assert f"{'pool' if pools else 'do not pool'} (key {key})" in found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pretrain_num_input_channels": 4}, "pretrain_num_input_channels: found 4, the stem's tensor has 1"),
        ({"pretrain_num_input_channels": "1"}, "pretrain_num_input_channels: found '1', wanted a whole number"),
        ({"pretrained_n_stages": 6}, "pretrained_n_stages: found 6, the tensors have 2"),
        ({"key_to_encoder": "eva"}, "key_to_encoder: found 'eva', wanted the beginning of a key"),
        ({"key_to_encoder": "encoder.stage"}, "key_to_encoder: found 'encoder.stage', wanted the beginning of a key"),
        ({"key_to_stem": "encoder.stem.351_0"}, "key_to_stem: found 'encoder.stem.351_0', wanted"),
        ({"key_to_stem": 5}, "key_to_stem: found 5, wanted text"),
        ({"keys_to_in_proj": ["down_projection.proj"]}, "keys_to_in_proj: found 'down_projection.proj', wanted"),
        ({"keys_to_in_proj": "encoder"}, "keys_to_in_proj: found 'encoder', wanted a list of text"),
        ({"architecture_plans": None}, "architecture_plans: found NoneType, wanted an object"),
        ({"pretrain_plan": {"configurations": {}}}, "configurations: found [], wanted one"),
        ({"pretrain_plan": {"configurations": {"a": 1}}}, "configurations.a: found int, wanted an object"),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_a_wrong_field_of_a_plan_is_named(tmp_path: Path, fakes, change: dict, message: str, inside: bool) -> None:
    plan = fakes.adaptation_plan(kwargs=fakes.arch_kwargs()) | change
    path = fakes.save(tmp_path / "c.pth", fakes.residual_unet(), plan=plan if inside else None)
    if not inside:
        fakes.save_beside(path, plan)
    found = refused(path)
    assert message in found
    assert f"{path}: {'nnssl_adaptation_plan' if inside else 'adaptation_plan.json'}." in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[" * 10_000, "not JSON"),
        ("[]", "found list, wanted an object"),
        (" " * 2**21, "wanted at most"),
    ],
)
def test_a_plan_beside_that_is_no_plan_is_refused(tmp_path: Path, fakes, text: str, message: str) -> None:
    path = fakes.save(tmp_path / "c.pth", fakes.residual_unet())
    path.with_name("adaptation_plan.json").write_text(text)
    found = refused(path)
    assert "adaptation_plan.json" in found
    assert message in found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"configuration": "2d"}, "found ['3d_cascade_fullres', '3d_fullres'], wanted '2d'"),
        ({"plans": {}}, "init_args.plans.configurations: found NoneType, wanted an object"),
        (
            {"plans": {"configurations": {"3d_fullres": {"inherits_from": "3d_fullres"}}}},
            "configurations that inherit in a circle",
        ),
        (
            {"plans": {"configurations": {"3d_fullres": {"architecture": {"network_class_name": "a.SwinUNETR"}}}}},
            "architecture.network_class_name: found 'a.SwinUNETR', wanted one of",
        ),
        (
            {"plans": {"configurations": {"3d_fullres": {"UNet_class_name": "PlainConvUNet"}}}},
            "3d_fullres.pool_op_kernel_sizes: found None, wanted a list",
        ),
    ],
)
def test_wrong_plans_of_nnunet_are_refused(tmp_path: Path, fakes, change: dict, message: str) -> None:
    init_args = fakes.nnunet_init_args(fakes.arch_kwargs(), "ResidualEncoderUNet") | change
    assert message in refused(fakes.save(tmp_path / "c.pth", fakes.residual_unet(), init_args=init_args))


# --- nonsense anywhere --------------------------------------------------------------------------------------------

NONSENSE = (None, 10**400, "x", [[]], {"x": torch.zeros(2)})


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to everything inside a plan."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, child in children for place in places(child, (*at, key)))]


def changed(value: Any, place: tuple[Any, ...], nonsense: Any) -> Any:
    if not place:
        return nonsense
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = changed(copy[place[0]], place[1:], nonsense)
    return copy


def convert_or_refuse(content: dict[str, Any]) -> None:
    with contextlib.suppress(ValueError):  # which read_weights makes a WeightsError; and nothing else
        convert(content, None, name="c.pth", max_bytes=2**20)


@pytest.fixture
def state(fakes) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in fakes.residual_unet().items() if key.startswith("encoder.")}


def test_nonsense_anywhere_in_a_plan_is_read_or_refused(fakes, state: dict[str, torch.Tensor]) -> None:
    plan = fakes.adaptation_plan(kwargs=fakes.arch_kwargs())
    assert convert({"network_weights": state}, plan, name="c.pth", max_bytes=2**20)[1]["patch_zyx"] == [160] * 3
    for place in places(plan):
        for nonsense in NONSENSE:
            convert_or_refuse({"network_weights": state, "nnssl_adaptation_plan": changed(plan, place, nonsense)})


@pytest.mark.parametrize("flat", [True, False])
def test_nonsense_anywhere_in_nnunets_plans_is_read_or_refused(
    fakes, state: dict[str, torch.Tensor], flat: bool
) -> None:
    configuration = {"UNet_class_name": "ResidualEncoderUNet", "UNet_base_num_features": 2, "unet_max_num_features": 4}
    configuration |= {"n_conv_per_stage_encoder": [1, 2], "conv_kernel_sizes": [[3, 3, 3]] * 2}
    configuration |= {"pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2]]}
    kwargs = None if flat else fakes.arch_kwargs()
    init_args = fakes.nnunet_init_args(kwargs, "ResidualEncoderUNet", **(configuration if flat else {}))
    content = {"network_weights": state, "init_args": init_args}
    assert convert(content, None, name="c.pth", max_bytes=2**20)[1]["modality"] == "CT"
    for place in places(init_args):
        for nonsense in NONSENSE:
            convert_or_refuse(content | {"init_args": changed(init_args, place, nonsense)})


@pytest.mark.parametrize("where", ["plan", "citations"])
def test_a_plan_that_grows_when_it_is_walked_is_refused(tmp_path: Path, fakes, where: str) -> None:
    lists: list[Any] = []
    for _ in range(60):
        lists = [lists, lists]  # 2**60 entries
    plan = fakes.adaptation_plan(kwargs=fakes.arch_kwargs()) | ({"notes": lists} if where == "plan" else {})
    path = fakes.save(tmp_path / "c.pth", fakes.residual_unet(), plan=plan, citations=lists if where != "plan" else [])
    assert "found more than 100000 entries, or deeper ones than 20 levels" in refused(path)


@pytest.mark.parametrize("field", ["trainer_name", "current_epoch", "citations", "init_args", "nnssl_adaptation_plan"])
def test_nonsense_beside_the_weights_is_read_or_refused(state: dict[str, torch.Tensor], field: str) -> None:
    for nonsense in (*NONSENSE, [{"name": 3, "apa_citations": {}}], float("nan"), torch.zeros(2)):
        convert_or_refuse({"network_weights": state, field: nonsense})
