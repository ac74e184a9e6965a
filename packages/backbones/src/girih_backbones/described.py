"""What a description stands for: tensors against it, and the preset that it is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from girih_backbones.descriptions import make_encoder, make_neck, make_stem, preset
from girih_backbones.interfaces import Description, WeightsHeader

PRESETS = ("resenc_l", "retina_unet_v001", "retina_unet_v002")


def named_parts(encoder: nn.Module, neck: nn.Module | None, stems: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the modules of a weights file by the prefix of their tensors."""
    necks = {} if neck is None else {"neck": neck}
    return {"encoder": encoder, **necks, **{f"stems.{name}": stem for name, stem in stems.items()}}


def check_tensors(tensors: Mapping[str, Tensor], header: WeightsHeader) -> None:
    """Compare names, shapes, kinds and values with the network of the header, built without memory.

    Raises:
        ValueError: no such network can be; or names the first tensor that is missing, not described, of another shape
            or type, or not finite.
    """
    try:
        with torch.device("meta"):
            encoder = make_encoder(header["encoder"], header["in_channels"])
            neck = None if header["neck"] is None else make_neck(header["neck"], encoder)
            stems = {name: make_stem(encoder, channels) for name, channels in header["stems"].items()}
    except RuntimeError as error:  # a tensor of more elements than a number of 64 bits counts
        first, *_ = str(error).splitlines()
        raise ValueError(f"header: describes a network that cannot be built: {first}") from error
    wanted = {
        f"{prefix}.{name}": tuple(tensor.shape)
        for prefix, module in named_parts(encoder, neck, stems).items()
        for name, tensor in module.state_dict().items()
    }
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing:
        raise ValueError(f"tensor {missing[0]}: not found, but in the described network ({len(missing)} such tensors)")
    if extra:
        raise ValueError(f"tensor {extra[0]}: found, but not in the described network ({len(extra)} such tensors)")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != wanted[name]:
            raise ValueError(f"tensor {name}: found shape {tuple(tensor.shape)}, the header describes {wanted[name]}")
        if tensor.dtype != torch.float32:
            raise ValueError(f"tensor {name}: found {tensor.dtype}, wanted torch.float32")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"tensor {name}: found values that are not finite (NaN or infinity)")


def preset_of(description: Description) -> str | None:
    """Return the name of the preset that a description is but for the initialisation; None if it is none."""
    for name in PRESETS:
        known = preset(name)
        if known["class"] == description["class"]:
            kwargs = {**description["kwargs"], "init": known["kwargs"]["init"]}
            if kwargs == known["kwargs"]:
                return name
    return None
