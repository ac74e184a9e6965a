"""What the README shows runs as written."""

import importlib
import re
from pathlib import Path

import pytest

from girih_ssl import testing
from girih_ssl.testing.contract import CHECKS

README = (Path(__file__).parents[1] / "README.md").read_text()
USE, METHOD, TEST = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_five_lines_run():
    names: dict[str, object] = {}
    exec(compile(USE, "README.md", "exec"), names)
    assert set(names["weights"]) == set(testing.TinyEncoder().state_dict())


def test_the_new_method_keeps_the_contract(tmp_path, monkeypatch):
    (tmp_path / "denoising.py").write_text(METHOD)
    (tmp_path / "test_denoising.py").write_text(TEST)
    monkeypatch.syspath_prepend(tmp_path)
    contract = importlib.import_module("test_denoising").TestDenoising
    for check in testing.check_objective(contract.config):
        contract().test_contract(check)


def test_the_new_method_is_about_twenty_lines():
    lines = METHOD.partition("@dataclass")[2].splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 28


@pytest.mark.parametrize("where", ["README.md", "CHANGELOG.md"])
def test_the_number_of_checks_is_right(where):
    text = (Path(__file__).parents[1] / where).read_text()
    assert f"{len(CHECKS)} named checks" in text
