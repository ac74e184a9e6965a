"""A third party's objective: installed, listed, checked by the kit, and a broken one found out."""

import subprocess
import sys
from pathlib import Path

import girih_plugin_example

import girih_ssl
from girih_ssl.testing import ObjectiveContract, check_objective

ROOT = Path(__file__).parents[1]


class TestDenoise(ObjectiveContract):
    config = girih_plugin_example.DenoiseConfig()


def test_an_installed_objective_appears_in_the_help() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "girih.cli", "pretrain", "--help"], check=True, capture_output=True, text=True
    )
    assert "mae" in done.stdout
    assert "denoise" in done.stdout
    assert "Restore a patch from a noisy copy" in done.stdout


def test_its_options_appear_in_its_own_help() -> None:
    command = [sys.executable, "-m", "girih.cli", "pretrain", "denoise", "--help"]
    assert "--objective.sigma" in subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_registry_knows_it() -> None:
    assert girih_ssl.objectives()["denoise"] is girih_plugin_example.DenoiseConfig


def test_a_broken_objective_fails_exactly_the_check_of_what_is_broken() -> None:
    failed = []
    for check in check_objective(girih_plugin_example.ForgetfulConfig()):
        try:
            check()
        except AssertionError:
            failed.append(check.name)
    assert failed == ["every_seed_matters"]


def test_the_contributors_guide_shows_this_very_objective() -> None:
    source = Path(girih_plugin_example.__file__).read_text()
    block = next(b for b in (ROOT / "CONTRIBUTING.md").read_text().split("```python\n") if "class DenoiseConfig" in b)
    assert block.split("```")[0].strip() in source
