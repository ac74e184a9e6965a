"""Objectives are found by entry point: real distributions' metadata on the path, as pip writes it."""

import pytest

from girih_ssl import MAEConfig, PluginError, objectives

GOOD = """
from dataclasses import dataclass

@dataclass(frozen=True)
class ShuffleConfig:
    def build(self, parts): ...

@dataclass
class Thawed:
    def build(self, parts): ...

NOT_A_CONFIG = 3
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Make `install(distribution, name, target, source)` put a distribution with one objective on the path."""

    def install(distribution, name, target, source=GOOD):
        folder = tmp_path / distribution
        info = folder / f"{distribution}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[girih.objectives]\n{name} = {target}\n")
        (folder / f"{target.partition(':')[0]}.py").write_text(source)
        monkeypatch.syspath_prepend(folder)

    return install


def test_our_own_are_registered():
    assert objectives()["mae"] is MAEConfig


def test_a_plugin_appears_beside_ours(install):
    install("acme_shuffle", "shuffle", "acme_shuffle_module:ShuffleConfig")
    found = objectives()
    assert {"mae", "shuffle"} <= set(found)
    assert len(found) == len(list(found))
    assert found["shuffle"].__name__ == "ShuffleConfig"


def test_a_name_claimed_twice_names_both_distributions(install):
    install("rival_mae", "mae", "rival_mae_module:ShuffleConfig")
    with pytest.raises(ValueError, match=r"'mae'.*(rival_mae 1\.2 and girih-ssl|girih-ssl .* and rival_mae 1\.2)"):
        objectives()


def test_a_broken_plugin_is_in_nobodys_way_until_it_is_asked_for(install):
    install("acme_broken", "broken", "acme_broken_module:Config", source="import a_package_that_is_not_there")
    found = objectives()
    assert "broken" in found
    assert found["mae"] is MAEConfig
    with pytest.raises(PluginError, match=r"'broken' of the distribution acme_broken 1\.2: cannot import .*not_there"):
        found["broken"]


@pytest.mark.parametrize("target", [f"acme_odd_module:{name}" for name in ("NOT_A_CONFIG", "dataclass", "Thawed")])
def test_what_is_no_config_is_refused(install, target):
    install("acme_odd", "odd", target)
    with pytest.raises(PluginError, match="wanted a frozen dataclass with build"):
        objectives()["odd"]


def test_an_unknown_name_is_a_key_error():
    with pytest.raises(KeyError, match=r"'simclr'.*is not installed; found .*mae, models_genesis"):
        objectives()["simclr"]
    assert "simclr" not in objectives()
    assert "mae" in repr(objectives())
