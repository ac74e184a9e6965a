"""One name for every tensor of a state_dict that dynamic-network-architectures and its wrappers wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# DataParallel, torch.compile, Lightning modules, and the U-Net inside nnssl's SparK3D, in any order.
WRAPPERS = ("module.", "_orig_mod.", "model.", "architecture.")
COPIES = "decoder.encoder."  # the decoder's reference to the encoder; stale in S3D, whose encoder was replaced

# A block lists its convolution and its normalisation twice. Only this list is run; nnssl's conversion to sparse
# convolutions replaces both entries separately, so that in S3D the other ones keep their first values.
_LISTED = re.compile(r"(.+\.)all_modules\.([01])\.(weight|bias)")
_LEAVES = ("conv", "norm")
_STEM = re.compile(r"((?:.+\.)?stem)(?:\.[^.]+)?")  # where the stems are, and the dataset of one


@dataclass(frozen=True)
class State:
    """Tensors by their one name, the key of each in the file, and what was decided on the way."""

    tensors: dict[str, Tensor]
    keys: dict[str, str]
    notes: tuple[str, ...]

    def key(self, name: str) -> str:
        """Return the key in the file, for messages."""
        return self.keys.get(name, name)


def without_aliases(state: Mapping[str, Tensor]) -> State:
    """Strip the wrappers' prefixes, drop the decoder's copy of the encoder, and let `all_modules.*` win over aliases.

    Raises:
        ValueError: two keys have one name.
    """
    listed: dict[str, tuple[str, Tensor]] = {}
    named: dict[str, tuple[str, Tensor]] = {}
    for key, tensor in state.items():
        name = _unwrapped(key)
        if name.startswith(COPIES):
            continue
        match = _LISTED.fullmatch(name)
        found = named if match is None else listed
        if match is not None:
            name = f"{match[1]}{_LEAVES[int(match[2])]}.{match[3]}"
        if name in found:
            raise ValueError(f"key {key}: found a second tensor for {name}, the first is {found[name][0]}")
        found[name] = (key, tensor)
    both = {**named, **listed}
    stale = [name for name in listed if name in named and not _same(named[name][1], listed[name][1])]
    notes: tuple[str, ...] = ()
    if stale:
        notes = (
            f"{len(stale)} tensors have another value under their alias; those of all_modules were used, which the "
            f"network runs (first alias: {named[stale[0]][0]})",
        )
    return State(
        {name: tensor for name, (_, tensor) in both.items()}, {name: key for name, (key, _) in both.items()}, notes
    )


def under_usual_names(state: State, key_to_encoder: str | None, key_to_stem: str | None) -> State:
    """Put the stages and the stem that a plan points to under `encoder.stages` and `encoder.stem`.

    A stem inside the stages, and one of a dataset (`<place>.stem.<dataset>`), keep their places there.

    Raises:
        ValueError: the file has another tensor of that name.
    """
    moves: list[tuple[re.Pattern[str], str]] = []
    if key_to_encoder is not None:
        moves.append((re.compile(rf"{re.escape(_unwrapped(key_to_encoder))}\.(\d+\..+)"), "encoder.stages"))
    stem = _STEM.fullmatch(_unwrapped(key_to_stem or ""))
    if stem is not None:
        moves.append((re.compile(rf"{re.escape(stem[1])}\.((?:[^.]+\.)?convs\.0\..+)"), "encoder.stem"))
    tensors: dict[str, Tensor] = {}
    keys: dict[str, str] = {}
    for name, tensor in state.tensors.items():
        moved = next((f"{to}.{match[1]}" for begins, to in moves if (match := begins.fullmatch(name))), name)
        if moved in tensors:
            raise ValueError(f"key {state.key(name)}: found a second tensor for {moved}, the first is {keys[moved]}")
        tensors[moved], keys[moved] = tensor, state.key(name)
    return State(tensors, keys, state.notes)


def _unwrapped(key: str) -> str:
    while True:
        for wrapper in WRAPPERS:
            if key.startswith(wrapper):
                key = key.removeprefix(wrapper)
                break
        else:
            return key


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()) or torch.equal(a, b)
