import re
from pathlib import Path

import pytest

import girih_backbones

README = Path(__file__).parents[1] / "README.md"


def test_the_examples_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(first, str(README), "exec"), {})
    assert "repeated over 4 channels, divided by 4" in capsys.readouterr().out
    exec(compile(second, str(README), "exec"), {})
    assert "multiply_accumulates" in capsys.readouterr().out


@pytest.mark.parametrize("name", girih_backbones.__all__)
def test_every_public_name_is_in_the_readme(name: str) -> None:
    assert re.search(rf"\b{name}\b", README.read_text())
