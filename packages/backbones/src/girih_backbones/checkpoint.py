"""Files that torch.save wrote, opened so that nothing in them runs."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

MAX_PICKLE_BYTES = 64 * 2**20  # of everything but the tensors: plans and logs of ten thousand epochs are below 10 MB
MAX_PLAN_BYTES = 2**20  # of an adaptation plan beside the file

# What a log of numpy numbers names. Each is read as nothing: not even numpy is called with what the file holds.
_NUMPY_NUMBERS = frozenset(
    {
        "numpy.dtype",
        "numpy.ndarray",
        *(
            f"{module}.multiarray.{name}"
            for module in ("numpy.core", "numpy._core")
            for name in ("scalar", "_reconstruct")
        ),
    }
)
_DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


def read_checkpoint(path: Path, max_bytes: int) -> dict[str, Any]:
    """Return the dictionary in a checkpoint; its tensors lie on the CPU and in the file until they are copied.

    PyTorch's restricted reader (`weights_only=True`) builds tensors and plain containers only. Before it starts, the
    archive is checked to be no larger than it looks and the pickle to name no code. Numbers of numpy, which the log of
    a trainer is full of, are read as nothing; only while such a file is read does that hold in the whole process.

    Raises:
        ValueError: the file is not an archive of torch.save, is damaged, too large or names code, or holds something
            else than a dictionary.
    """
    _check_archive(path, max_bytes)
    with _damage_is_refused():
        named = set(get_unsafe_globals_in_checkpoint(path))
    code = sorted(named - _NUMPY_NUMBERS)
    if code:
        raise ValueError(f"pickle: found a reference to {code[0]!r}, which is code; wanted tensors and plain data")
    with _damage_is_refused(), safe_globals([(_Nothing, name) for name in sorted(named)]):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(content, dict):
        raise ValueError(f"found {type(content).__name__}, wanted a dictionary with weights in it")
    return content


def read_plan_beside(path: Path) -> dict[str, Any] | None:
    """Return the content of `adaptation_plan.json` in the folder of a checkpoint, or None where there is none.

    Raises:
        ValueError: the plan is too large, or not a JSON object.
    """
    plan = path.with_name("adaptation_plan.json")
    if not plan.is_file():
        return None
    size = plan.stat().st_size
    if size > MAX_PLAN_BYTES:
        raise ValueError(f"{plan.name}: found {size} bytes, wanted at most {MAX_PLAN_BYTES}")
    try:
        content = json.loads(plan.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{plan.name}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{plan.name}: found {type(content).__name__}, wanted an object")
    return content


def check_state(name: str, state: object) -> dict[str, Tensor]:
    """Return the dense tensors of floating numbers in `state`, a dictionary of tensors; `name` is for messages.

    Raises:
        ValueError: names the first entry that is no tensor, weights of whole numbers, or a tensor larger than the
            values it has in the file.
    """
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"{name}: found {type(state).__name__} of no entries, wanted a dictionary of tensors")
    checked: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if not isinstance(key, str):
            raise ValueError(f"{name}: found the key {key!r}, wanted text")
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_nested:
            raise ValueError(f"key {key}: found {type(tensor).__name__}, wanted a dense tensor")
        if not tensor.is_floating_point():
            if key.endswith((".weight", ".bias")):
                raise ValueError(f"key {key}: found {tensor.dtype}, wanted floating numbers")
            continue  # counters and the like: no convolution or normalisation has them
        if tensor.device.type != "cpu" or tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise ValueError(f"key {key}: found shape {tuple(tensor.shape)}, which the file does not hold in full")
        checked[key] = tensor.detach()
    return checked


class _Nothing:
    """Stands for a number of numpy, whatever it is built from."""

    def __init__(self, *ignored: object) -> None:
        pass

    def __setstate__(self, ignored: object) -> None:
        pass


def _check_archive(path: Path, max_bytes: int) -> None:
    """Refuse what is no zip archive of stored records, or becomes too large in memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, UnicodeDecodeError, struct.error, EOFError) as error:
        raise ValueError(f"truncated or damaged checkpoint: {error}") from error
    pickles = [record for record in records if record.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(
            "found a zip file that is no checkpoint: wanted the record data.pkl in it, as torch.save writes"
        )
    packed = [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise ValueError(f"record {packed[0]}: found it compressed, wanted it stored, as torch.save writes it")
    total = sum(record.file_size for record in records)
    if total > max_bytes:
        raise ValueError(f"found {total} bytes in the archive, wanted at most {max_bytes}")
    if pickles[0].file_size > MAX_PICKLE_BYTES:
        raise ValueError(f"record data.pkl: found {pickles[0].file_size} bytes, wanted at most {MAX_PICKLE_BYTES}")


@contextmanager
def _damage_is_refused() -> Iterator[None]:
    """Turn whatever a damaged pickle makes the reader raise into a ValueError of one line."""
    try:
        yield
    except _DAMAGE as error:
        lines = str(error).strip().splitlines()
        raise ValueError(f"damaged checkpoint: {': '.join([type(error).__name__, *lines[:1]])}") from error
