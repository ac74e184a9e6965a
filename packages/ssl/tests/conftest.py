import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)  # the networks are tiny and the machine may be busy


@pytest.fixture(scope="session")
def genesis_rule() -> ModuleType:
    """The slow reference of Models Genesis, loaded by its path: test modules cannot import each other."""
    spec = importlib.util.spec_from_file_location("reference_genesis", Path(__file__).with_name("reference_genesis.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
