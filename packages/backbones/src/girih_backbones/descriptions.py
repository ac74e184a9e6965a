"""Networks as JSON: presets by name, and from a description to a module and back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from girih_backbones.encoder import Encoder
from girih_backbones.interfaces import Description
from girih_backbones.plain import PlainEncoder
from girih_backbones.residual import ResidualEncoder
from girih_backbones.ufpn import UFPN
from girih_backbones.unet import UNetDecoder

ENCODERS: Mapping[str, type[ResidualEncoder | PlainEncoder]] = {
    "ResidualEncoder": ResidualEncoder,
    "PlainEncoder": PlainEncoder,
}
NECKS: Mapping[str, type[UNetDecoder | UFPN]] = {"UNetDecoder": UNetDecoder, "UFPN": UFPN}

_SIX_STAGES: dict[str, Any] = {
    "channels": [32, 64, 128, 256, 320, 320],
    "downsampling": [[1, 1, 1]] + [[2, 2, 2]] * 5,
    "kernels": [[3, 3, 3]] * 6,
}
_PRESETS: Mapping[str, Description] = {
    # nnU-Net's ResEncL, as nnssl pre-trains it: PyTorch's own initialisation
    "resenc_l": {
        "class": "ResidualEncoder",
        "kwargs": {**_SIX_STAGES, "blocks": [1, 3, 4, 6, 6, 6], "init": "torch"},
    },
    # nnDetection v0.1, RetinaUNetV001 at six stages
    "retina_unet_v001": {
        "class": "PlainEncoder",
        "kwargs": {**_SIX_STAGES, "convs": [2] * 6, "activation": "relu", "bias": False, "init": "torch"},
    },
    # nnDetection v2, RetinaUNetFocalV002 at six stages
    "retina_unet_v002": {
        "class": "PlainEncoder",
        "kwargs": {**_SIX_STAGES, "convs": [2] * 6, "activation": "leaky_relu", "bias": False, "init": "he_fan_out"},
    },
}


def preset(name: str) -> Description:
    """Return the description of a published encoder: "resenc_l", "retina_unet_v001" or "retina_unet_v002".

    The description is the caller's own: change an entry to make a variant.

    Raises:
        ValueError: there is no such preset.
    """
    if name not in _PRESETS:
        raise ValueError(f"preset: found {name!r}, wanted one of {sorted(_PRESETS)}")
    return copy.deepcopy(_PRESETS[name])


def describe(module: nn.Module) -> Description:
    """Return what `make_encoder` or `make_neck` needs to build an encoder or a neck like this one again.

    Raises:
        ValueError: the module is not one of this package's encoders and necks.
    """
    name = type(module).__name__
    if type(module) not in (*ENCODERS.values(), *NECKS.values()):
        raise ValueError(f"module: found {name}, wanted one of {sorted([*ENCODERS, *NECKS])}")
    return {"class": name, "kwargs": copy.deepcopy(vars(module)["kwargs"])}


def make_encoder(description: Description, in_channels: int) -> Encoder:
    """Build the described encoder for images of `in_channels` channels.

    Raises:
        ValueError: an unknown class, or keyword arguments that the class does not take.
    """
    return _build("encoder", ENCODERS, description, in_channels)


def make_neck(description: Description, encoder: Encoder) -> UNetDecoder | UFPN:
    """Build the described neck for the maps of `encoder`.

    Raises:
        ValueError: an unknown class, or keyword arguments that the class does not take.
    """
    return _build("neck", NECKS, description, encoder.channels, encoder.strides)


def make_stem(encoder: Encoder, in_channels: int) -> nn.Module:
    """Return a freshly initialised stem of the encoder's kind for images of `in_channels` channels.

    Raises:
        ValueError: `in_channels` is not a positive whole number.
    """
    return encoder.new_stem(in_channels)


_M = TypeVar("_M")


def _build(kind: str, classes: Mapping[str, type[_M]], description: Description, *given: object) -> _M:
    name, kwargs = description.get("class"), description.get("kwargs")
    if name not in classes:
        raise ValueError(f"{kind} class: found {name!r}, wanted one of {sorted(classes)}")
    if not isinstance(kwargs, dict):
        raise ValueError(f"{kind} kwargs: found {kwargs!r}, wanted an object")
    try:
        return classes[name](*given, **kwargs)
    except TypeError as error:
        raise ValueError(f"{kind} kwargs of {name}: {error}") from error
