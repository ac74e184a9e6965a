"""Decoders of other programs that are necks here: nnU-Net's U-Net decoder and nnDetection's U-FPN."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from girih_backbones.descriptions import make_encoder, make_neck
from girih_backbones.interfaces import Description

_UNET = re.compile(r"decoder\.(?:transpconvs\.(\d+)|stages\.(\d+)\.convs\.0\.(conv|norm))\.(weight|bias)")
_UFPN = re.compile(r"(?:decoder|neck)\.(?:(lateral|out)\.P(\d+)\.0|up\.P(\d+))\.conv\.(weight|bias)")


def read_neck(
    rest: Mapping[str, Tensor], encoder: Description, in_channels: int
) -> tuple[Description | None, dict[str, Tensor], str | None]:
    """Return the description of the decoder as a neck, its tensors, and why there is none if it is none here.

    The output heads of a decoder belong to no neck.
    """
    decoder = {name: tensor for name, tensor in rest.items() if name.startswith(("decoder.", "neck."))}
    if not decoder:
        return None, {}, None
    n = len(encoder["kwargs"]["channels"])
    readings: tuple[
        tuple[Callable[[str, int], str | None], Callable[[Mapping[str, Tensor], int], Description]], ...
    ] = (
        (_unet_name, _unet_description),
        (_ufpn_name, _ufpn_description),
    )
    for name_here, describe_here in readings:
        tensors = {here: tensor for name, tensor in decoder.items() if (here := name_here(name, n)) is not None}
        if not tensors:
            continue
        if any(tensor.ndim not in (1, 5) for tensor in tensors.values()):
            return None, {}, "it is not three-dimensional"
        others = [name for name in decoder if name_here(name, n) is None and ".seg_layers." not in name]
        if others:
            return None, {}, f"it has {others[0]}, which no neck has"
        description = describe_here(tensors, n)
        activation = encoder["kwargs"].get("activation", "leaky_relu")
        if description["class"] == "UNetDecoder" and activation != "leaky_relu":  # nnU-Net has one for the whole U-Net
            return None, {}, f"its activation is {activation}, as the encoder's; that of UNetDecoder is leaky_relu"
        difference = _difference(tensors, description, encoder, in_channels)
        return (None, {}, difference) if difference else (description, tensors, None)
    return None, {}, "its structure is not known"


def _unet_name(name: str, n: int) -> str | None:
    """nnU-Net counts the levels from the coarsest."""
    match = _UNET.fullmatch(name)
    if match is None:
        return None
    if match[1] is not None:
        return f"up.{n - 2 - int(match[1])}.{match[4]}"
    return f"fuse.{n - 2 - int(match[2])}.{match[3]}.{match[4]}"


def _unet_description(tensors: Mapping[str, Tensor], n: int) -> Description:
    weights = (tensors.get(f"fuse.{level}.conv.weight") for level in range(n - 1))
    kernels = [[3, 3, 3] if weight is None else list(weight.shape[2:]) for weight in weights]
    return {"class": "UNetDecoder", "kwargs": {"kernels": kernels, "init": "torch"}}


def _ufpn_name(name: str, n: int) -> str | None:
    """NnDetection names the way up after the level it starts at, here it is the level it leads to."""
    match = _UFPN.fullmatch(name)
    if match is None:
        return None
    if match[1] is not None:
        return f"{match[1]}.{int(match[2])}.{match[4]}"
    return f"up.{int(match[3]) - 1}.{match[4]}"


def _ufpn_description(tensors: Mapping[str, Tensor], n: int) -> Description:
    widths = [len(tensors.get(f"lateral.{level}.bias", ())) for level in range(n)]
    width = max(widths)
    first = widths.index(width)
    return {"class": "UFPN", "kwargs": {"out_channels": max(1, width), "first_level": first, "init": "torch"}}


def _difference(
    tensors: Mapping[str, Tensor], description: Description, encoder: Description, in_channels: int
) -> str | None:
    """Say what keeps the tensors from being the described neck; None if nothing does."""
    with torch.device("meta"):
        try:
            neck = make_neck(description, make_encoder(encoder, in_channels))
        except ValueError as error:
            return str(error)
    wanted = {name: tuple(tensor.shape) for name, tensor in neck.state_dict().items()}
    for name, shape in wanted.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shape:
            return f"{description['class']} {name}: found {found}, wanted {shape}"
    extra = sorted(tensors.keys() - wanted.keys())
    return f"{description['class']} has no {extra[0]}" if extra else None
