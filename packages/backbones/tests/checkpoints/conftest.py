"""Checkpoints as other programs write them, small: the names, the doubles and the plans, not the sizes.

Written from the published structure of each, without the code under test; `peers` compares the names with the real
networks of dynamic-network-architectures.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

Triple = tuple[int, int, int]


@pytest.fixture
def fakes() -> ModuleType:
    """This file's functions."""
    return sys.modules[__name__]


# --- state_dicts --------------------------------------------------------------------------------------------------


def numbers(*shape: int) -> Tensor:
    """Random values, none of them a default."""
    return torch.randn(shape)


def unit(
    prefix: str, out: int, into: int, kernel: Sequence[int] = (3, 3, 3), *, bias: bool = True
) -> dict[str, Tensor]:
    """A block of dynamic-network-architectures: convolution and norm, each listed once more in `all_modules`."""
    named = {"conv.weight": numbers(out, into, *kernel)} | ({"conv.bias": numbers(out)} if bias else {})
    named |= {"norm.weight": numbers(out), "norm.bias": numbers(out)}
    listed = {f"all_modules.{0 if k.startswith('conv') else 1}.{k.split('.')[1]}": v for k, v in named.items()}
    return {f"{prefix}.{key}": tensor for key, tensor in {**named, **listed}.items()}


def residual_stages(
    channels: Sequence[int], blocks: Sequence[int], steps: Sequence[Triple], kernels: Sequence[Triple]
) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    width = channels[0]
    for s, (out, depth, step, kernel) in enumerate(zip(channels, blocks, steps, kernels, strict=True)):
        for b in range(depth):
            block = f"encoder.stages.{s}.blocks.{b}"
            state |= unit(f"{block}.conv1", out, width, kernel) | unit(f"{block}.conv2", out, out, kernel)
            if width != out:
                state |= unit(f"{block}.skip.{int(step != (1, 1, 1))}", out, width, (1, 1, 1), bias=False)
            width = out
    return state


def plain_stages(
    channels: Sequence[int], convs: Sequence[int], kernels: Sequence[Triple], *, in_channels: int | None, bias: bool
) -> dict[str, Tensor]:
    """Stages of nnU-Net's PlainConvUNet; without `in_channels` the first unit is a stem elsewhere."""
    state: dict[str, Tensor] = {}
    width = channels[0] if in_channels is None else in_channels
    for s, (out, depth, kernel) in enumerate(zip(channels, convs, kernels, strict=True)):
        for c in range(depth - 1 if in_channels is None and s == 0 else depth):
            state |= unit(f"encoder.stages.{s}.0.convs.{c}", out, width, kernel, bias=bias)
            width = out
    return state


def with_decoder(
    encoder: dict[str, Tensor],
    channels: Sequence[int],
    steps: Sequence[Triple],
    kernels: Sequence[Triple],
    *,
    convs: int = 1,
    bias: bool = True,
    heads: dict[str, int] | int = 1,
) -> dict[str, Tensor]:
    """A U-Net: the encoder, once more under `decoder.encoder` as the same tensors, and the decoder's own."""
    state = dict(encoder) | {f"decoder.{key}": tensor for key, tensor in encoder.items()}
    n = len(channels)
    for i in range(n - 1):
        level = n - 2 - i
        out, below, step = channels[level], channels[level + 1], steps[level + 1]
        for c in range(convs):
            state |= unit(f"decoder.stages.{i}.convs.{c}", out, out if c else 2 * out, kernels[level], bias=bias)
        state[f"decoder.transpconvs.{i}.weight"] = numbers(below, out, *step)
        if bias:
            state[f"decoder.transpconvs.{i}.bias"] = numbers(out)
        for name, classes in heads.items() if isinstance(heads, dict) else [("", heads)]:
            head = f"decoder.seg_layers.{name}.{i}" if name else f"decoder.seg_layers.{i}"
            state |= {f"{head}.weight": numbers(classes, out, 1, 1, 1), f"{head}.bias": numbers(classes)}
    return state


def topology(channels: Sequence[int], steps: Any = None, kernels: Any = None) -> tuple[list[Triple], list[Triple]]:
    n = len(channels)
    return steps or [(1, 1, 1)] + [(2, 2, 2)] * (n - 1), kernels or [(3, 3, 3)] * n


def residual_unet(
    in_channels: int = 1,
    channels: Sequence[int] = (2, 4),
    blocks: Sequence[int] = (1, 2),
    *,
    steps: Any = None,
    kernels: Any = None,
    stems: dict[str, int] | None = None,
    heads: dict[str, int] | int = 1,
) -> dict[str, Tensor]:
    """ResidualEncoderUNet of nnU-Net and nnssl; with `stems`, MultiTalent's."""
    steps, kernels = topology(channels, steps, kernels)
    encoder: dict[str, Tensor] = {}
    for name, n in ({"": in_channels} if stems is None else stems).items():
        encoder |= unit(f"encoder.stem{'.' + name if name else ''}.convs.0", channels[0], n, kernels[0])
    encoder |= residual_stages(channels, blocks, steps, kernels)
    return with_decoder(encoder, channels, steps, kernels, heads=heads)


def plain_unet(
    in_channels: int = 1,
    channels: Sequence[int] = (2, 4),
    convs: Sequence[int] = (2, 2),
    *,
    steps: Any = None,
    kernels: Any = None,
    stems: dict[str, int] | None = None,
    decoder_convs: int = 2,
) -> dict[str, Tensor]:
    """PlainConvUNet of nnU-Net; with `stems`, MultiTalent's, which take the place of the first unit."""
    steps, kernels = topology(channels, steps, kernels)
    encoder: dict[str, Tensor] = {}
    for name, n in (stems or {}).items():
        encoder |= unit(f"encoder.stem.{name}.convs.0", channels[0], n, kernels[0])
    encoder |= plain_stages(channels, convs, kernels, in_channels=None if stems else in_channels, bias=True)
    return with_decoder(encoder, channels, steps, kernels, convs=decoder_convs)


def stale(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What nnssl's conversion to sparse convolutions leaves: every alias in the encoder is another tensor.

    Only `all_modules` is trained; `conv`, `norm`, and the dense encoder that the decoder still holds, are not.
    """
    untrained = {k: numbers(*v.shape) for k, v in state.items() if k.startswith("decoder.encoder.")}
    untrained |= {k: numbers(*v.shape) for k, v in state.items() if k.startswith("encoder.") and "all_modules" not in k}
    return state | untrained


def conv_backbone(
    stems: dict[str, int] | None = None,
    channels: Sequence[int] = (2, 4),
    *,
    in_channels: int = 1,
    out_channels: int = 8,
    first_level: int = 1,
) -> dict[str, Tensor]:
    """ConvBackbone and U-FPN of nnDetection v2; with `stems`, MultiTalent's, which take the first unit's place."""
    state: dict[str, Tensor] = {}
    for name, n in (stems or {}).items():
        state |= {f"stem.{name}.0.weight": numbers(channels[0], n, 3, 3, 3)}
        state |= {f"stem.{name}.1.{what}": numbers(channels[0]) for what in ("weight", "bias")}
    width = channels[0] if stems else in_channels
    for level, out in enumerate(channels):
        for c in range(1 if stems and level == 0 else 2):
            prefix = f"backbone.levels.{level}.component.{c}"
            state[f"{prefix}.conv.weight"] = numbers(out, width, 3, 3, 3)
            state |= {f"{prefix}.norm.{what}": numbers(out) for what in ("weight", "bias")}
            width = out
    state |= ufpn(channels, out_channels, first_level)
    for name in stems or {}:
        state |= {f"seg_layer.{name}.0.weight": numbers(3, 4, 1, 1, 1), f"seg_layer.{name}.0.bias": numbers(3)}
    return state


def ufpn(channels: Sequence[int], out_channels: int, first_level: int) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    widths = [max(8, out_channels >> max(0, first_level - level)) for level in range(len(channels))]
    for level, width in enumerate(widths):
        state[f"decoder.lateral.P{level}.0.conv.weight"] = numbers(width, channels[level], 1, 1, 1)
        state[f"decoder.lateral.P{level}.0.conv.bias"] = numbers(width)
        state[f"decoder.out.P{level}.0.conv.weight"] = numbers(width, width, 3, 3, 3)
        state[f"decoder.out.P{level}.0.conv.bias"] = numbers(width)
        if level > 0:
            state[f"decoder.up.P{level}.conv.weight"] = numbers(width, widths[level - 1], 2, 2, 2)
            state[f"decoder.up.P{level}.conv.bias"] = numbers(widths[level - 1])
    return state


def retina_unet_v001(channels: Sequence[int] = (2, 4), in_channels: int = 1) -> dict[str, Tensor]:
    """Encoder and U-FPN of nnDetection v0.1: no bias before a norm."""
    state: dict[str, Tensor] = {}
    width = in_channels
    for stage, out in enumerate(channels):
        for c in range(2):
            prefix = f"encoder.stages.{stage}.convs.0.{c}"
            state[f"{prefix}.conv.weight"] = numbers(out, width, 3, 3, 3)
            state |= {f"{prefix}.norm.{what}": numbers(out) for what in ("weight", "bias")}
            width = out
    return state | ufpn(channels, 8, 1)


def generic_unet(channels: Sequence[int] = (2, 4, 4), in_channels: int = 1) -> dict[str, Tensor]:
    """Generic_UNet of nnU-Net v1, which MultiTalent v1 trains: the coarsest stage is two lists of one unit."""
    state: dict[str, Tensor] = {}
    width, last = in_channels, len(channels) - 1
    for stage, out in enumerate(channels):
        for c in range(2):
            prefix = f"conv_blocks_context.{stage}" + (f".{c}.blocks.0" if stage == last else f".blocks.{c}")
            state |= {f"{prefix}.conv.weight": numbers(out, width, 3, 3, 3), f"{prefix}.conv.bias": numbers(out)}
            state |= {f"{prefix}.instnorm.{what}": numbers(out) for what in ("weight", "bias")}
            width = out
    for i in range(last):
        state[f"tu.{i}.weight"] = numbers(channels[last - i], channels[last - i - 1], 2, 2, 2)
    state["seg_outputs.0.weight"] = numbers(47, channels[0], 1, 1, 1)
    return state


# --- plans --------------------------------------------------------------------------------------------------------


def adaptation_plan(
    name: str = "ResidualEncoderUNet",
    kwargs: dict[str, Any] | None = None,
    *,
    stem: str = "encoder.stem",
    encoder: str = "encoder.stages",
    projection: Sequence[str] = ("encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"),
    in_channels: int = 1,
    schemes: Sequence[str] = ("ZScoreNormalization",),
    masked: Any = (False,),
    patch: Any = (160, 160, 160),
    spacing: Any = (1.0, 1.0, 1.0),
) -> dict[str, Any]:
    return {
        "architecture_plans": {
            "arch_class_name": name,
            "arch_kwargs": kwargs,
            "arch_kwargs_requiring_import": None if kwargs is None else ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "pretrain_plan": {
            "dataset_name": "Dataset745_OpenMind",
            "plans_name": "nnsslPlans",
            "original_median_spacing_after_transp": [1, 1, 1],
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": {
                "onemmiso": {
                    "data_identifier": "nnsslPlans_onemmiso",
                    "preprocessor_name": "DefaultPreprocessor",
                    "spacing_style": "onemmiso",
                    "normalization_schemes": list(schemes),
                    "use_mask_for_norm": list(masked) if isinstance(masked, tuple) else masked,
                    "resampling_fn_data": "resample_data_or_seg_to_shape",
                    "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
                    "resampling_fn_mask": "resample_data_or_seg_to_shape",
                    "resampling_fn_mask_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
                    "spacing": spacing if spacing is None else list(spacing),
                    "patch_size": list(patch),
                }
            },
            "experiment_planner_used": "OneMmExperimentPlanner",
        },
        "pretrain_num_input_channels": in_channels,
        "recommended_downstream_patchsize": [160, 160, 160],
        "key_to_encoder": encoder,
        "key_to_stem": stem,
        "keys_to_in_proj": list(projection),
        "key_to_lpe": None,
    }


def arch_kwargs(
    channels: Sequence[int] = (2, 4),
    blocks: Sequence[int] = (1, 2),
    *,
    steps: Any = None,
    kernels: Any = None,
    plain: bool = False,
    **changes: Any,
) -> dict[str, Any]:
    """Keyword arguments of dynamic-network-architectures as plans hold them."""
    steps, kernels = topology(channels, steps, kernels)
    return {
        "n_stages": len(channels),
        "features_per_stage": list(channels),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [list(kernel) for kernel in kernels],
        "strides": [list(step) for step in steps],
        "n_conv_per_stage" if plain else "n_blocks_per_stage": list(blocks),
        "n_conv_per_stage_decoder": [1] * (len(channels) - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        **changes,
    }


def nnunet_init_args(kwargs: dict[str, Any] | None, name: str, **configuration: Any) -> dict[str, Any]:
    """`init_args` of an nnU-Net v2 trainer for one CT channel; without `kwargs` in the flat form of before 2.5."""
    network = {
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
            "arch_kwargs": kwargs,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }
    }
    intensities = {"max": 3000.0, "mean": 99.5, "median": 100.0, "min": -1000.0, "percentile_00_5": -900.0}
    intensities |= {"percentile_99_5": 300.0, "std": 141.0}
    return {
        "plans": {
            "dataset_name": "Dataset007_Pancreas",
            "plans_name": "nnUNetResEncUNetLPlans",
            "transpose_forward": [0, 1, 2],
            "configurations": {
                "3d_fullres": {
                    "data_identifier": "nnUNetPlans_3d_fullres",
                    "batch_size": 2,
                    "patch_size": [28, 256, 256],
                    "spacing": [5.0, 0.8, 0.8],
                    "normalization_schemes": ["CTNormalization"],
                    "use_mask_for_norm": [False],
                    **(network if kwargs is not None else {}),
                    **configuration,
                },
                "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
            },
            "foreground_intensity_properties_per_channel": {"0": intensities},
        },
        "configuration": "3d_fullres",
        "fold": 0,
        "dataset_json": {"channel_names": {"0": "CT"}, "labels": {"background": 0, "tumour": 1}},
        "unpack_dataset": True,
        "device": torch.device("cpu"),
    }


# --- files --------------------------------------------------------------------------------------------------------


def trainer_fields(state: dict[str, Tensor], trainer: str) -> dict[str, Any]:
    """What the trainers of nnU-Net and nnssl save beside the weights; the log holds numpy's numbers."""
    momentum = {i: {"momentum_buffer": torch.zeros_like(t)} for i, t in enumerate(list(state.values())[:2])}
    return {
        "optimizer_state": {"state": momentum, "param_groups": [{"lr": 0.01, "params": [0, 1]}]},
        "grad_scaler_state": {"scale": 65536.0, "_growth_tracker": 7},
        "logging": {"train_losses": [np.float32(0.5), np.float64(0.25)], "lrs": [0.01], "dice": [np.array([0.5, 0.7])]},
        "_best_ema": np.float64(0.9),
        "current_epoch": 1000,
        "init_args": {},
        "trainer_name": trainer,
    }


def save(
    path: Path, state: dict[str, Tensor], *, plan: Any = None, trainer: str = "BaseMAETrainer", **more: Any
) -> Path:
    """An nnssl checkpoint; with `plan` inside."""
    content = {"network_weights": state, **trainer_fields(state, trainer)}
    content |= {} if plan is None else {"nnssl_adaptation_plan": plan}
    torch.save(content | more, path)
    return path


def save_beside(path: Path, plan: Any) -> None:
    path.with_name("adaptation_plan.json").write_text(json.dumps(plan))
