"""Weights on disk: safetensors with a JSON header that says what network they are and how they were trained."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from girih_backbones.descriptions import describe, make_encoder, make_neck, make_stem
from girih_backbones.encoder import Encoder
from girih_backbones.header import SCHEMA, check_header
from girih_backbones.interfaces import WeightsHeader

MAX_BYTES = 8 * 2**30  # of a weights file; ResEncL is 0.36 GB
MAX_HEADER_BYTES = 2**20


class WeightsError(ValueError):
    """A weights file cannot be used; the message names the file, and the field or tensor at fault."""


@dataclass(frozen=True, eq=False)
class Weights:
    """The content of a weights file: float32 tensors on the CPU by name, the header, and where it was read.

    Names are `encoder.stem.*`, `encoder.stages.*`, `neck.*` and `stems.<dataset>.*`.
    """

    tensors: dict[str, Tensor]
    header: WeightsHeader
    path: Path | None = None


def save_weights(
    path: str | Path,
    *,
    encoder: Encoder,
    neck: nn.Module | None = None,
    stems: Mapping[str, nn.Module] | nn.ModuleDict | None = None,
    patch_zyx: Sequence[int] | None = None,
    spacing_zyx_mm: Sequence[float] | None = None,
    normalisation: Mapping[str, Any] | None = None,
    modality: str | None = None,
    objective: str | None = None,
    objective_config: Mapping[str, Any] | None = None,
    steps: int | None = None,
    source: str | None = None,
    versions: Mapping[str, str] | None = None,
) -> None:
    """Write the networks' tensors as float32 with their description, whole or not at all.

    The file is written beside `path` and renamed over it. `stems` are the stems of single datasets by name. What a
    header field means stands in `WeightsHeader`; what is not given is recorded as unknown. `versions` is added to
    those of girih-backbones and torch.

    Raises:
        ValueError: a tensor is not finite, a header field is not of its kind, or a network is not as described.
        OSError: the file cannot be written.
    """
    path = Path(path)
    stem_parts = dict(stems.items()) if stems is not None else {}
    header = {
        "schema": SCHEMA,
        "encoder": describe(encoder),
        "neck": None if neck is None else describe(neck),
        "in_channels": encoder.in_channels,
        "stems": {name: _image_channels(name, stem) for name, stem in stem_parts.items()},
        "patch_zyx": patch_zyx,
        "spacing_zyx_mm": spacing_zyx_mm,
        "normalisation": normalisation,
        "modality": modality,
        "objective": objective,
        "objective_config": objective_config,
        "steps": steps,
        "source": source,
        "versions": {"girih-backbones": version("girih-backbones"), "torch": torch.__version__, **(versions or {})},
    }
    try:
        text = json.dumps(header, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"header: cannot be written as JSON: {error}") from error
    checked = check_header(json.loads(text))
    tensors = {
        f"{prefix}.{name}": tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
        for prefix, module in _parts(encoder, neck, stem_parts).items()
        for name, tensor in module.state_dict().items()
    }
    _check_tensors(tensors, checked)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    _write_whole(path, tensors, {"girih": text})


def read_weights(path: str | Path, /, *, max_bytes: int = MAX_BYTES) -> Weights:
    """Read a weights file and check it: size, format, header, and every tensor against the described network.

    No code of the file runs. The tensors are copies: the file may be replaced afterwards.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the file is truncated, too large or of another format, a header field is missing or wrong, a
            tensor is not what the header describes, not float32, or holds a value that is not finite.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such weights file")
    try:
        _check_format(path, max_bytes)
        with ExitStack() as stack:
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except SafetensorError as error:
                raise ValueError(f"truncated or damaged safetensors file: {error}") from error
            header = _parse_header((file.metadata() or {}).get("girih"))
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
        _check_tensors(tensors, header)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    return Weights(tensors, header, path)


def _parts(encoder: nn.Module, neck: nn.Module | None, stems: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the modules of a file by the prefix of their tensors."""
    necks = {} if neck is None else {"neck": neck}
    return {"encoder": encoder, **necks, **{f"stems.{name}": stem for name, stem in stems.items()}}


def _image_channels(name: str, stem: nn.Module) -> int:
    for part in stem.modules():
        if isinstance(part, nn.Conv3d):
            return part.in_channels
    raise ValueError(f"stems[{name!r}]: found {type(stem).__name__} without a 3D convolution, wanted a stem")


def _write_whole(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write aside, flush to the disk, rename; a failure leaves an older file as it was and nothing beside it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, aside, metadata)
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written: {error}") from error
    finally:
        aside.unlink(missing_ok=True)


def _check_format(path: Path, max_bytes: int) -> None:
    if not path.is_file():
        raise ValueError("found a folder, wanted a safetensors file")
    size = path.stat().st_size
    if size > max_bytes:
        raise ValueError(f"found {size} bytes, wanted at most {max_bytes}")
    with path.open("rb") as file:
        start = file.read(9)  # safetensors: 8 bytes of header length, then the header's opening brace
    if start[8:] == b"{":
        return
    if start.startswith((b"PK\x03\x04", b"\x80")):
        raise ValueError("found a pickle or zip file as torch.save writes it, wanted safetensors (no code inside)")
    if not start:
        raise ValueError("found an empty file, wanted safetensors")
    raise ValueError(f"found a file that begins with {start!r}, wanted safetensors")


def _parse_header(text: str | None) -> WeightsHeader:
    if text is None:
        raise ValueError("header: the safetensors metadata have no entry 'girih', wanted the JSON header")
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"header: found {len(text)} characters, wanted at most {MAX_HEADER_BYTES}")
    try:
        return check_header(json.loads(text))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"header: not JSON: {error}") from error


def _check_tensors(tensors: Mapping[str, Tensor], header: WeightsHeader) -> None:
    """Compare names, shapes, kinds and values with the network of the header, built without memory."""
    with torch.device("meta"):
        encoder = make_encoder(header["encoder"], header["in_channels"])
        neck = None if header["neck"] is None else make_neck(header["neck"], encoder)
        stems = {name: make_stem(encoder, channels) for name, channels in header["stems"].items()}
    wanted = {
        f"{prefix}.{name}": tuple(tensor.shape)
        for prefix, module in _parts(encoder, neck, stems).items()
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
