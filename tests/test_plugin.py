"""A third party's objective: installed, listed, checked by the kit, and a broken one found out."""

import subprocess
import sys

import girih_plugin_example
import pytest

import girih_ssl
from girih_ssl.testing import ObjectiveContract, check_objective


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
    assert "--sigma" in subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_registry_knows_it() -> None:
    assert girih_ssl.objectives()["denoise"] is girih_plugin_example.DenoiseConfig


def test_a_broken_objective_fails_exactly_the_check_of_what_is_broken() -> None:
    failed = []
    for check in check_objective(girih_plugin_example.ForgetfulConfig()):
        try:
            check()
        except AssertionError:
            failed.append(check.__name__)
    assert failed == ["check_other_seed_other_loss"]
    with pytest.raises(AssertionError):
        next(c for c in check_objective(girih_plugin_example.ForgetfulConfig()) if c.__name__ == failed[0])()
