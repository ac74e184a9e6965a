"""Weights in the structure of nnU-Net v2, with nnssl's adaptation plan, so that others load them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from girih_backbones.described import check_tensors, preset_of
from girih_backbones.header import check_header
from girih_backbones.interfaces import Description, WeightsHeader
from girih_backbones.weights import Weights
from girih_backbones.writing import write_whole

_STAGE = re.compile(r"stages\.(\d+)\.(\d+)\.(.+)")
_NECK = re.compile(r"neck\.(up|fuse)\.(\d+)\.(.+)")
_LEAF = re.compile(r"(.*)\.(conv|norm)\.(weight|bias)")
_NORMALISATION = {"zscore": "ZScoreNormalization", "zscore_mask": "ZScoreNormalization", "none": "NoNormalization"}
_OPERATIONS = {
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "dropout_op": None,
    "nonlin": "torch.nn.modules.activation.LeakyReLU",
}


def export_nnunet(path: str | Path, weights: Weights, *, stem: str | None = None) -> tuple[str, ...]:
    """Write weights as a checkpoint in the structure of nnU-Net v2, with the plan that nnssl's descendants read.

    The file holds `network_weights` under dynamic-network-architectures' names, every alias included, and
    `nnssl_adaptation_plan`; only tensors and plain containers. A U-Net decoder goes along where that architecture has
    the same; without one, only what takes an encoder alone can use the file. Stems of datasets are written as
    MultiTalent does. It is written whole or not at all.

    Args:
        path: the file, by custom `checkpoint_final.pth`.
        weights: what `read_weights` returned.
        stem: the dataset whose stem others load by default, if the weights have stems; default: the one that equals
            the encoder's.

    Returns:
        The names of the tensors, and of the numbers of the normalisation, that the structure has no place for.

    Raises:
        ValueError: the tensors are not what the header describes, or `stem` names no stem, or none is given and the
            encoder's stem is that of no dataset.
        OSError: the file cannot be written.
    """
    header = check_header(weights.header)
    check_tensors(weights.tensors, header)
    default = _default_stem(weights, stem)
    description = header["encoder"]
    neck = header["neck"]
    with_decoder = neck is not None and _is_nnunet_decoder(neck, description)
    network: dict[str, Tensor] = {}
    left: list[str] = []
    for name, tensor in weights.tensors.items():
        foreign = _foreign_name(name, description, with_decoder=with_decoder, with_stems=default is not None)
        if foreign is None:
            left.append(name)
            continue
        for alias in _aliases(foreign):
            network[alias] = tensor
    if default is not None and _is_own_stem(weights, default):
        left = [name for name in left if not name.startswith("encoder.stem.")]  # written as the dataset's
    if with_decoder:
        network.update({f"decoder.{k}": v for k, v in list(network.items()) if k.startswith("encoder.")})
    content = {"network_weights": network, "nnssl_adaptation_plan": _plan(header, default)}
    write_whole(Path(path), lambda aside: torch.save(content, aside))
    return (*left, *(f"normalisation.{name}" for name in _numbers_left(header["normalisation"])))


def _default_stem(weights: Weights, stem: str | None) -> str | None:
    datasets = sorted(weights.header["stems"])
    if "convs" in datasets:
        raise ValueError("stems: found the dataset 'convs', wanted another name: it is the stem's own list there")
    if stem is not None:
        if stem not in datasets:
            raise ValueError(f"stem: found {stem!r}, wanted one of the datasets of the weights: {datasets}")
        return stem
    if not datasets:
        return None
    for dataset in datasets:
        if _is_own_stem(weights, dataset):
            return dataset
    raise ValueError(f"stem: found none, wanted one of {datasets}; the encoder's own stem is that of no dataset")


def _is_own_stem(weights: Weights, dataset: str) -> bool:
    """Whether the encoder's own stem equals that of a dataset."""
    own = {name.removeprefix("encoder."): t for name, t in weights.tensors.items() if name.startswith("encoder.stem.")}
    other = {name: weights.tensors.get(name.replace("stem.", f"stems.{dataset}.", 1)) for name in own}
    return all(t is not None and t.shape == own[name].shape and torch.equal(t, own[name]) for name, t in other.items())


def _is_nnunet_decoder(neck: Description, encoder: Description) -> bool:
    """Whether nnU-Net's U-Net has this decoder on this encoder: one convolution a level, the encoder's settings."""
    kwargs = encoder["kwargs"]
    as_nnunet = kwargs.get("bias", True) and kwargs.get("activation", "leaky_relu") == "leaky_relu"
    return neck["class"] == "UNetDecoder" and as_nnunet and neck["kwargs"]["kernels"] == kwargs["kernels"][:-1]


def _foreign_name(name: str, encoder: Description, *, with_decoder: bool, with_stems: bool) -> str | None:
    """Return the name of a tensor in nnU-Net's structure, without aliases; None if it has no place there."""
    n = len(encoder["kwargs"]["channels"])
    part, _, rest = name.partition(".")
    if part == "stems":
        dataset, _, leaf = rest.partition(".")
        return f"encoder.stem.{dataset}.convs.0.{leaf}"
    if part == "neck":
        match = _NECK.fullmatch(name)
        if match is None or not with_decoder:
            return None
        level = n - 2 - int(match[2])
        return (
            f"decoder.transpconvs.{level}.{match[3]}"
            if match[1] == "up"
            else f"decoder.stages.{level}.convs.0.{match[3]}"
        )
    plain = encoder["class"] == "PlainEncoder"
    if rest.startswith("stem."):
        if with_stems:
            return None
        return f"encoder.stages.0.0.convs.0.{rest[5:]}" if plain else f"encoder.stem.convs.0.{rest[5:]}"
    match = _STAGE.fullmatch(rest)
    if match is None:
        return None
    stage, unit, leaf = int(match[1]), int(match[2]), match[3]
    if plain:
        first = 1 if stage == 0 and not with_stems else 0  # the stem is the first unit
        return f"encoder.stages.{stage}.0.convs.{unit + first}.{leaf}"
    pooled = encoder["kwargs"]["downsampling"][stage] != [1, 1, 1]
    return f"encoder.stages.{stage}.blocks.{unit}.{leaf.replace('skip.proj', f'skip.{int(pooled)}')}"


def _aliases(name: str) -> tuple[str, ...]:
    """Return every name under which dynamic-network-architectures registers a tensor."""
    match = _LEAF.fullmatch(name)
    if match is None:
        return (name,)
    return name, f"{match[1]}.all_modules.{0 if match[2] == 'conv' else 1}.{match[3]}"


def _plan(header: WeightsHeader, default: str | None) -> dict[str, Any]:
    """Return the adaptation plan; what is unknown is None, and lists of it are empty."""
    encoder, plain = header["encoder"], header["encoder"]["class"] == "PlainEncoder"
    if default is not None:
        stem, module = f"encoder.stem.{default}", f"encoder.stem.{default}.convs.0"
    elif plain:
        stem, module = "encoder.stages.0", "encoder.stages.0.0.convs.0"
    else:
        stem, module = "encoder.stem", "encoder.stem.convs.0"
    scheme = header["normalisation"]["scheme"] if header["normalisation"] else None
    named = _NORMALISATION.get(scheme or "", "CTNormalization")
    in_channels = header["in_channels"] if default is None else header["stems"][default]
    name = "ResEncL" if preset_of(encoder) == "resenc_l" else "PlainConvUNet" if plain else "ResidualEncoderUNet"
    kwargs = None if name == "ResEncL" else _arch_kwargs(encoder)
    return {
        "architecture_plans": {
            "arch_class_name": name,
            "arch_kwargs": kwargs,
            "arch_kwargs_requiring_import": None if kwargs is None else list(_OPERATIONS),
        },
        "pretrain_plan": {
            "dataset_name": None,
            "plans_name": "girih",
            "original_median_spacing_after_transp": header["spacing_zyx_mm"],
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": {
                "girih": {
                    "data_identifier": "girih",
                    "preprocessor_name": "DefaultPreprocessor",
                    "spacing_style": "onemmiso" if header["spacing_zyx_mm"] == [1, 1, 1] else "custom",
                    "normalization_schemes": [] if scheme is None else [named] * in_channels,
                    "use_mask_for_norm": [] if scheme is None else [scheme == "zscore_mask"] * in_channels,
                    "resampling_fn_data": "resample_data_or_seg_to_shape",
                    "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
                    "resampling_fn_mask": "resample_data_or_seg_to_shape",
                    "resampling_fn_mask_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
                    "spacing": header["spacing_zyx_mm"],
                    "patch_size": header["patch_zyx"],
                }
            },
            "experiment_planner_used": "girih",
        },
        "pretrain_num_input_channels": in_channels,
        "recommended_downstream_patchsize": header["patch_zyx"],
        "key_to_encoder": "encoder.stages",
        "key_to_stem": stem,
        "keys_to_in_proj": [f"{module}.conv", f"{module}.all_modules.0"],
        "key_to_lpe": None,
        **_intensities(header["normalisation"], in_channels),
    }


def _numbers_left(normalisation: Mapping[str, Any] | None) -> list[str]:
    """Return which numbers of a normalisation are there and in no plan: only CT's have a place, all three together."""
    there = [name for name in ("clip", "mean", "std") if normalisation and normalisation[name] is not None]
    return [] if _intensities(normalisation, 1) else there


def _intensities(normalisation: Mapping[str, Any] | None, channels: int) -> dict[str, Any]:
    """Return the numbers of a CT normalisation as nnU-Net's plans call them; nnssl's plans have no place for them."""
    if not normalisation or normalisation["scheme"] != "ct":
        return {}
    clip, mean, std = normalisation["clip"], normalisation["mean"], normalisation["std"]
    if clip is None or mean is None or std is None:
        return {}
    numbers = (
        {"percentile_00_5": clip[0], "percentile_99_5": clip[1], "mean": mean[c], "std": std[c]}
        for c in range(min(channels, len(mean), len(std)))
    )
    return {"foreground_intensity_properties_per_channel": {str(c): values for c, values in enumerate(numbers)}}


def _arch_kwargs(encoder: Description) -> dict[str, Any]:
    """Return the keyword arguments of dynamic-network-architectures for this encoder in a U-Net."""
    kwargs = encoder["kwargs"]
    plain = encoder["class"] == "PlainEncoder"
    n = len(kwargs["channels"])
    relu = kwargs.get("activation") == "relu"
    return {
        "n_stages": n,
        "features_per_stage": kwargs["channels"],
        "kernel_sizes": kwargs["kernels"],
        "strides": kwargs["downsampling"],
        "n_conv_per_stage" if plain else "n_blocks_per_stage": kwargs["convs" if plain else "blocks"],
        "n_conv_per_stage_decoder": [1] * (n - 1),
        "conv_bias": kwargs.get("bias", True),
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op_kwargs": None,
        "nonlin_kwargs": {"inplace": True},
        **_OPERATIONS,
        **({"nonlin": "torch.nn.modules.activation.ReLU"} if relu else {}),
    }
