"""The package as a whole: light to import, and a README whose commands and code run as written."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import girih_metrics
from girih_metrics.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_import_needs_neither_torch_nor_matplotlib():
    code = "import girih_metrics, sys; print([m for m in ('torch', 'matplotlib', 'sklearn') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_public_names_exist_and_are_sorted_by_kind():
    assert all(hasattr(girih_metrics, name) for name in girih_metrics.__all__)
    assert len(set(girih_metrics.__all__)) == len(girih_metrics.__all__)


def test_readme_code_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    scope = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)
    assert "1.0" in capsys.readouterr().out


@pytest.mark.parametrize("line", re.findall(r"^girih-metrics .*$", README, re.MULTILINE))
def test_readme_commands_parse_up_to_their_files(line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(line)[1:]) == 2  # the files are not there
    assert capsys.readouterr().err.startswith("girih-metrics: ")
