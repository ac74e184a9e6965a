"""One thread, repeatable draws, and small files to read."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from safetensors import safe_open
from safetensors.torch import load_file, save_file

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def rewrite() -> Callable[..., None]:
    """Return a function that edits the header or the tensors of a weights file, without any of the package's checks."""

    def edit(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> None:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["girih"])
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(header, tensors)
        save_file(tensors, path, {"girih": json.dumps(header)})

    return edit
