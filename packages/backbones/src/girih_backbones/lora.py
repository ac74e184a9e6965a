"""Low-rank adaptation (Hu et al. 2022) of convolutions and linear layers through peft, the extra `lora`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from girih_backbones.adapting import matching

ADAPTER = "default"  # peft's name for the only adapter of a model


def add_lora(
    model: nn.Module, *, rank: int = 8, alpha: int = 16, targets: Sequence[str] = ("*",), train: Sequence[str] = ()
) -> list[str]:
    """Freeze the model and give its layers trainable low-rank additions, in place; return the names of these layers.

    A layer W becomes W + alpha / rank * B A. For a convolution A is one of the same kernel to `rank` channels and B one
    of size 1 back. B starts at zero, so the model computes what it did. Load weights before, not after.

    Args:
        model: an encoder, or any model that holds one.
        rank: channels between A and B.
        alpha: the weight of the addition, times `rank`.
        targets: shell patterns of the names of modules to adapt, among those that are Conv3d or Linear; transposed
            convolutions have no low-rank form in peft.
        train: shell patterns of the names of parameters that train as they are, such as those of a new head.

    Raises:
        ImportError: peft is not installed.
        ValueError: a pattern in `targets` matches no layer, or a convolution of several groups, one in `train` no
            parameter, or the model is adapted.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'girih-backbones[lora]'") from error
    if rank < 1:
        raise ValueError(f"rank: found {rank}, wanted at least 1")
    if _adapted(model):
        raise ValueError(f"model: found a {type(model).__name__} that is adapted already, wanted merge_lora first")
    layers = {name: part for name, part in model.named_modules() if name and isinstance(part, nn.Conv3d | nn.Linear)}
    names = list(matching(layers, targets))
    for name in names:
        groups = getattr(layers[name], "groups", 1)
        if groups != 1:  # B A has no groups: it could be trained and not merged
            raise ValueError(f"{name}: found a convolution of {groups} groups, wanted 1")
    trained = matching(dict(model.named_parameters()), train)
    whole_names = "|".join(re.escape(name) for name in names)  # a list would also match the ends of longer names
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules=whole_names)
    inject_adapter_in_model(config, model, adapter_name=ADAPTER)  # freezes all but its own
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return names


def merge_lora(model: nn.Module) -> list[str]:
    """Add the low-rank parts to the weights and put the plain layers back, in place; return the layers' names.

    The state dict has its first keys again, so that the model can be saved. What was frozen stays so.

    Raises:
        ValueError: the model is not adapted.
    """
    adapted = _adapted(model)
    if not adapted:
        raise ValueError(f"model: found a {type(model).__name__} without low-rank additions, wanted add_lora first")
    for name, layer in adapted.items():
        base = layer.get_base_layer()
        with torch.no_grad():
            base.weight += _addition(layer)
        model.set_submodule(name, base)
    if hasattr(model, "peft_config"):  # or peft warns of a second adapter the next time
        del model.peft_config
    return list(adapted)


def _adapted(model: nn.Module) -> dict[str, Any]:
    return {name: part for name, part in model.named_modules() if hasattr(part, "lora_A")}


def _addition(layer: Any) -> Tensor:
    """Return alpha / rank * B A. peft 0.21 has this only for convolutions of more than one cell along z or y."""
    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    addition: Tensor = layer.scaling[ADAPTER] * torch.einsum("or,r...->o...", b.flatten(1), a)
    return addition
