"""Weights in files: safetensors with a JSON header as written here, and the checkpoints of other programs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from girih_backbones import hub
from girih_backbones.checkpoint import read_checkpoint, read_plan_beside
from girih_backbones.described import check_tensors, named_parts
from girih_backbones.descriptions import describe
from girih_backbones.encoder import Encoder
from girih_backbones.foreign import convert
from girih_backbones.header import SCHEMA, check_header
from girih_backbones.interfaces import WeightsHeader
from girih_backbones.stems import image_channels
from girih_backbones.writing import write_whole

MAX_BYTES = 8 * 2**30  # of a weights file; ResEncL is 0.36 GB, with decoder, optimiser and a copy 1.6 GB
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
    stem_parts = dict(stems.items()) if stems is not None else {}
    header = {
        "schema": SCHEMA,
        "encoder": describe(encoder),
        "neck": None if neck is None else describe(neck),
        "in_channels": encoder.in_channels,
        "stems": {name: image_channels(stem) for name, stem in stem_parts.items()},
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
    tensors = {
        f"{prefix}.{name}": tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
        for prefix, module in named_parts(encoder, neck, stem_parts).items()
        for name, tensor in module.state_dict().items()
    }
    _write(Path(path), tensors, header)


def write_weights(path: str | Path, weights: Weights) -> None:
    """Write what `read_weights` returned as safetensors, whole or not at all, e.g. another program's checkpoint.

    Raises:
        ValueError: the tensors are not what the header describes.
        OSError: the file cannot be written.
    """
    header = weights.header
    versions = header["versions"] or {"girih-backbones": version("girih-backbones"), "torch": torch.__version__}
    _write(Path(path), weights.tensors, {**header, "versions": versions})


def read_weights(path_or_id: str | Path, /, *, max_bytes: int = MAX_BYTES, sha256: str | None = None) -> Weights:
    """Read a file and check it: size, format, header, and every tensor against the described network.

    The file is safetensors as `save_weights` writes it, or a checkpoint of nnssl, MultiTalent, nnU-Net or nnDetection
    with its plan inside or beside it. A text "hf://owner/name@revision/file" is a file on the Hugging Face Hub. No code
    of the file runs. The tensors are copies: the file may be replaced afterwards.

    Args:
        path_or_id: where the file is.
        max_bytes: the largest file, and the largest content of it, that is read.
        sha256: the file's hash, if it is known; the file must have it.

    Raises:
        FileNotFoundError: there is no such file on this machine.
        WeightsError: the file is truncated, too large or of no known format, contains code, has another hash, a field
            is missing or wrong, a tensor is not what header or plan describe, or holds a value that is not finite; or
            it cannot be fetched.
    """
    if isinstance(path_or_id, str) and path_or_id.startswith(hub.SCHEME):
        try:
            fetched = hub.fetch(path_or_id, max_bytes=max_bytes)
        except ValueError as error:
            raise WeightsError(f"{path_or_id}: {error}") from error
        digest = sha256 or fetched.sha256
        weights = read_weights(fetched.path, max_bytes=max_bytes, sha256=digest)
        before = weights.header["source"]
        source = (
            f"{fetched.source}, sha256 {digest}" if before is None else f"{before}; {fetched.source}, sha256 {digest}"
        )
        return replace(weights, header={**weights.header, "source": source})
    path = Path(path_or_id)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such weights file")
    try:
        archive = _is_archive(path, max_bytes)
        if sha256 is not None:
            _check_hash(path, sha256)
        if archive:
            content = read_checkpoint(path, max_bytes)
            tensors, found = convert(content, read_plan_beside(path), name=path.name, max_bytes=max_bytes)
            header = check_header(found)
        else:
            tensors, header = _read_safetensors(path)
        check_tensors(tensors, header)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    return Weights(tensors, header, path)


def _write(path: Path, tensors: dict[str, Tensor], header: Mapping[str, Any]) -> None:
    try:
        text = json.dumps(header, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"header: cannot be written as JSON: {error}") from error
    check_tensors(tensors, check_header(json.loads(text)))

    content = save(tensors, {"girih": text})  # its save_file makes files that nobody else may read
    write_whole(path, lambda aside: aside.write_bytes(content))


def _is_archive(path: Path, max_bytes: int) -> bool:
    """Return whether the file is a zip archive as torch.save writes it; it is safetensors otherwise."""
    if not path.is_file():
        raise ValueError("found a folder, wanted a weights file")
    size = path.stat().st_size
    if size > max_bytes:
        raise ValueError(f"found {size} bytes, wanted at most {max_bytes}")
    with path.open("rb") as file:
        start = file.read(9)  # safetensors: 8 bytes of header length, then the header's opening brace
    if start[8:] == b"{":
        return False
    if start.startswith(b"PK\x03\x04"):
        return True
    if start.startswith(b"\x80"):
        raise ValueError(
            "found a bare pickle, as torch.save wrote before PyTorch 1.6, wanted safetensors or a zip file"
        )
    if not start:
        raise ValueError("found an empty file, wanted safetensors or a checkpoint of torch.save")
    raise ValueError(f"found a file that begins with {start!r}, wanted safetensors or a checkpoint of torch.save")


def _check_hash(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        raise ValueError(f"sha256: found {found}, wanted {sha256}")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], WeightsHeader]:
    with ExitStack() as stack:
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
        except SafetensorError as error:
            raise ValueError(f"truncated or damaged safetensors file: {error}") from error
        header = _parse_header((file.metadata() or {}).get("girih"))
        return {name: file.get_tensor(name).clone() for name in file.keys()}, header  # noqa: SIM118 (not a dict)


def _parse_header(text: str | None) -> WeightsHeader:
    if text is None:
        raise ValueError("header: the safetensors metadata have no entry 'girih', wanted the JSON header")
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"header: found {len(text)} characters, wanted at most {MAX_HEADER_BYTES}")
    try:
        return check_header(json.loads(text))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"header: not JSON: {error}") from error
