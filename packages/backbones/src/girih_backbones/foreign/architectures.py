"""Encoders as nnU-Net's plans describe them, in this package's terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from girih_backbones.descriptions import preset
from girih_backbones.foreign.layouts import Kind
from girih_backbones.header import is_count, list_of, short
from girih_backbones.interfaces import Description
from girih_backbones.topology import MOST_UNITS, Triples, make_topology
from girih_backbones.units import Activation

# Names without keyword arguments are whole descriptions. NoSkipResEncL differs in the decoder only.
_PRESETS = {"ResEncL": "resenc_l", "NoSkipResEncL": "resenc_l"}
# ConvBackbone is the plain encoder of nnDetection v2; its plans are those of a PlainConvUNet.
_CLASSES: Mapping[str, Kind] = {
    "ResEncL": "ResidualEncoder",
    "NoSkipResEncL": "ResidualEncoder",
    "ResidualEncoderUNet": "ResidualEncoder",
    "PlainConvUNet": "PlainEncoder",
    "ConvBackbone": "PlainEncoder",
}
_ACTIVATIONS: Mapping[str, Activation] = {"LeakyReLU": "leaky_relu", "ReLU": "relu"}


@dataclass(frozen=True)
class Architecture:
    """An encoder; one entry per stage, finest first. `where` says what told so, for messages."""

    where: str
    kind: Kind
    channels: tuple[int, ...]
    steps: Triples
    kernels: Triples
    depth: tuple[int, ...]
    bias: bool
    activation: Activation

    def without_last_stage(self) -> Architecture:
        """Return the encoder without its coarsest stage."""
        shorter = {name: getattr(self, name)[:-1] for name in ("channels", "steps", "kernels", "depth")}
        return replace(self, **shorter)

    def description(self) -> Description:
        """Return what `make_encoder` takes."""
        kwargs: dict[str, Any] = {
            "channels": list(self.channels),
            "downsampling": [list(step) for step in self.steps],
            "kernels": [list(kernel) for kernel in self.kernels],
        }
        if self.kind == "ResidualEncoder":
            return {"class": self.kind, "kwargs": {**kwargs, "blocks": list(self.depth), "init": "torch"}}
        plain = {"convs": list(self.depth), "activation": self.activation, "bias": self.bias, "init": "torch"}
        return {"class": self.kind, "kwargs": {**kwargs, **plain}}


def known_name(name: object, where: str) -> str:
    """Return the last part of a class name if this package has such an encoder.

    Raises:
        ValueError: it has not.
    """
    last = name.rpartition(".")[2] if isinstance(name, str) else ""
    if last not in _CLASSES:
        raise ValueError(f"{where}: found {short(name)}, wanted one of {sorted(_CLASSES)}")
    return last


def from_preset(name: str, where: str) -> Architecture:
    """Return the encoder that a name without keyword arguments stands for.

    Raises:
        ValueError: the name needs keyword arguments.
    """
    if name not in _PRESETS:
        raise ValueError(f"{where}: found {name!r} without arch_kwargs, wanted them, or one of {sorted(_PRESETS)}")
    kwargs = preset(_PRESETS[name])["kwargs"]
    topology = make_topology(
        kwargs["channels"], kwargs["downsampling"], kwargs["kernels"], kwargs["blocks"], depth_name="blocks"
    )
    return Architecture(
        where,
        "ResidualEncoder",
        topology.channels,
        topology.downsampling,
        topology.kernels,
        topology.depth,
        True,
        "leaky_relu",
    )


def from_arch_kwargs(name: str, kwargs: Mapping[str, Any], where: str) -> Architecture:
    """Return the encoder that keyword arguments of dynamic-network-architectures describe.

    Raises:
        ValueError: they describe something that this package's encoders cannot be, or no encoder.
    """
    kind = _CLASSES[name]
    for key, wanted in (("conv_op", "Conv3d"), ("norm_op", "InstanceNorm3d"), ("block", "BasicBlockD")):
        value = kwargs.get(key)
        if value is not None and str(value).rpartition(".")[2] != wanted:
            raise ValueError(f"{where}.{key}: found {short(value)}, wanted {wanted}")
    refused = ("dropout_op", "squeeze_excitation", "bottleneck_channels", "nonlin_first", "disable_default_stem")
    for key in refused:
        if kwargs.get(key):
            raise ValueError(f"{where}.{key}: found {short(kwargs[key])}, wanted none")
    for key, accepted in (("pool", ("conv",)), ("pool_type", ("conv",))):
        if kwargs.get(key) is not None and kwargs[key] not in accepted:
            raise ValueError(f"{where}.{key}: found {short(kwargs[key])}, wanted {accepted[0]!r}")
    norm, nonlin = (_options(kwargs, key, where) for key in ("norm_op_kwargs", "nonlin_kwargs"))
    if norm.get("eps", 1e-5) != 1e-5 or norm.get("affine", True) is not True:
        raise ValueError(f"{where}.norm_op_kwargs: found {short(norm)}, wanted eps 1e-5 and affine")
    activation = str(kwargs.get("nonlin", "LeakyReLU")).rpartition(".")[2]
    if activation not in _ACTIVATIONS or (kind == "ResidualEncoder" and activation != "LeakyReLU"):
        raise ValueError(f"{where}.nonlin: found {short(kwargs['nonlin'])}, wanted LeakyReLU")
    slope = nonlin.get("negative_slope", 0.01)
    if activation == "LeakyReLU" and slope != 0.01:
        raise ValueError(f"{where}.nonlin_kwargs: found a slope of {short(slope)}, wanted 0.01")
    depth_key = "n_conv_per_stage" if kind == "PlainEncoder" and "n_conv_per_stage" in kwargs else "n_blocks_per_stage"
    n = kwargs.get("n_stages", len(_per_stage(kwargs.get("features_per_stage"), None, f"{where}.features_per_stage")))
    if not is_count(n):
        raise ValueError(f"{where}.n_stages: found {short(n)}, wanted a whole number")
    stem = kwargs.get("stem_channels")
    channels = _per_stage(kwargs.get("features_per_stage"), n, f"{where}.features_per_stage")
    if stem is not None and stem != channels[0]:
        raise ValueError(f"{where}.stem_channels: found {short(stem)}, wanted {short(channels[0])} as the first stage")
    return _architecture(
        where,
        kind,
        channels,
        _triples(kwargs.get("strides"), n, f"{where}.strides"),
        _triples(kwargs.get("kernel_sizes"), n, f"{where}.kernel_sizes"),
        _per_stage(kwargs.get(depth_key), n, f"{where}.{depth_key}"),
        bias=kwargs.get("conv_bias", False) is True,
        activation=_ACTIVATIONS[activation],
    )


def from_flat_plan(name: str, configuration: Mapping[str, Any], where: str) -> Architecture:
    """Return the encoder of a configuration as nnU-Net wrote it before 2.5: bias, instance norm, LeakyReLU.

    Raises:
        ValueError: a field is missing or of another kind.
    """
    steps, kernels = configuration.get("pool_op_kernel_sizes"), configuration.get("conv_kernel_sizes")
    if not isinstance(steps, list):
        raise ValueError(f"{where}.pool_op_kernel_sizes: found {short(steps)}, wanted a list")
    n = len(steps)
    base, most = configuration.get("UNet_base_num_features"), configuration.get("unet_max_num_features")
    if not (is_count(base) and is_count(most)):
        raise ValueError(f"{where}.UNet_base_num_features: found {short(base)} to {short(most)}, wanted whole numbers")
    depth = _per_stage(configuration.get("n_conv_per_stage_encoder"), n, f"{where}.n_conv_per_stage_encoder")
    return _architecture(
        where,
        _CLASSES[name],
        [min(base * 2**stage, most) for stage in range(n)],
        _triples(steps, n, f"{where}.pool_op_kernel_sizes"),
        _triples(kernels, n, f"{where}.conv_kernel_sizes"),
        depth,
        bias=True,
        activation="leaky_relu",
    )


def _architecture(
    where: str,
    kind: Kind,
    channels: list[int],
    steps: list[list[int]],
    kernels: list[list[int]],
    depth: list[int],
    *,
    bias: bool,
    activation: Activation,
) -> Architecture:
    try:
        topology = make_topology(channels, steps, kernels, depth, depth_name="depth")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return Architecture(
        where, kind, topology.channels, topology.downsampling, topology.kernels, topology.depth, bias, activation
    )


def _options(kwargs: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = kwargs.get(key)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{where}.{key}: found {short(value)}, wanted an object")
    return value or {}


def _per_stage(value: object, n: int | None, where: str) -> list[int]:
    """Return one whole number per stage; a single one stands for all."""
    numbers = _spread(value, n)
    if numbers is None or not all(is_count(number) for number in numbers):
        raise ValueError(f"{where}: found {short(value)}, wanted one whole number for each stage")
    return numbers


def _triples(value: object, n: int, where: str) -> list[list[int]]:
    """Return three whole numbers per stage; a single one stands for three, or for all stages."""
    entries = [[entry] * 3 if isinstance(entry, int) else entry for entry in _spread(value, n) or ()]
    if not entries or not all(list_of(is_count, 3)(entry) for entry in entries):
        raise ValueError(f"{where}: found {short(value)}, wanted three whole numbers for each stage")
    return entries


def _spread(value: object, n: int | None) -> list[Any] | None:
    if isinstance(value, int) and n is not None and 0 < n <= MOST_UNITS:
        return [value] * n
    return value if isinstance(value, list) and n in (None, len(value)) else None
