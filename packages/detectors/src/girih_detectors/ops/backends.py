"""Which code an op runs on: Triton kernels on CUDA, plain torch elsewhere."""

import functools
import importlib
import warnings
from types import ModuleType
from typing import Literal, get_args

import torch

Backend = Literal["auto", "triton", "torch"]
BACKENDS: tuple[str, ...] = get_args(Backend)


def check_backend(backend: str) -> None:
    """Raise a ValueError if there is no such backend."""
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}, wanted one of {', '.join(BACKENDS)}")


def triton_module(name: str, backend: str, device: torch.device) -> ModuleType | None:
    """Return the module of Triton kernels `name` beside this one, or None where plain torch is to run.

    Raises:
        ValueError: backend "triton", a device that is not CUDA, and no interpreter (TRITON_INTERPRET=1).
        ImportError: backend "triton" and Triton cannot be imported; "auto" warns of it, once.
    """
    if backend == "torch" or (backend == "auto" and device.type != "cuda"):
        return None
    what = name.removesuffix("_triton")
    try:
        kernels = importlib.import_module(f".{name}", __package__)
    except ImportError as error:
        missing = f"Triton for {what} cannot be had: {error}; pip install 'girih-detectors[triton]' (Linux) brings it"
        if backend == "triton":
            raise ImportError(missing, name=error.name) from error
        _warn_once(f"{missing}. Until then plain torch does it")
        return None
    if device.type != "cuda" and not kernels.INTERPRETED:
        raise ValueError(
            f"backend 'triton' of {what} wants tensors on a CUDA device, these are on {device}; "
            "on the CPU its kernels run only with TRITON_INTERPRET=1 in the environment from the start"
        )
    return kernels


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=1)  # no level names the caller: an operator is called by the dispatcher
