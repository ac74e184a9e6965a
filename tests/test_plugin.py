"""A third party's objectives: installed, listed, checked by the kit, and a broken one found out."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import girih_plugin_example
import pytest
import torch
from girih_plugin_example import volume_fusion
from girih_plugin_example.volume_fusion import VolumeFusionConfig

import girih_ssl
from girih_ssl.testing import ObjectiveContract, check_objective, make_batch, tiny_parts

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "new-objective.md").read_text()
DISTRIBUTION = ROOT / "tests" / "plugin_example"


class TestDenoise(ObjectiveContract):
    config = girih_plugin_example.DenoiseConfig


class TestVolumeFusion(ObjectiveContract):
    config = VolumeFusionConfig


def test_installed_objectives_appear_in_the_help() -> None:
    listing = pretrain("--help").stdout
    for name, line in (
        ("mae", "Restore the hidden blocks of a volume"),
        ("denoise", "Restore a patch from a noisy copy"),
        ("volume_fusion", "Segment fused volumes by their opacity"),
    ):
        assert re.search(rf"^  {name} +{line}", listing, re.MULTILINE), listing


def test_their_options_appear_in_their_own_help() -> None:
    assert "--objective.sigma" in pretrain("denoise", "--help").stdout
    text = pretrain("volume_fusion", "--help").stdout
    assert all(f"--objective.{name}" in text for name in ("steps", "boxes", "smallest", "largest"))


def test_the_registry_knows_them() -> None:
    found = girih_ssl.objectives()
    assert found["denoise"] is girih_plugin_example.DenoiseConfig
    assert found["volume_fusion"] is VolumeFusionConfig


def test_a_name_that_two_distributions_claim_stops_the_command(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("acme_ssl", "apex_ssl")]
    for folder in folders:  # as pip leaves them
        info = folder / f"{folder.name}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {folder.name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text("[girih.objectives]\nrotation = module:RotationConfig\n")
    done = pretrain("--help", path=folders, code=2)
    assert re.search(
        r"'rotation'.*(acme_ssl 1\.2 and apex_ssl|apex_ssl 1\.2 and acme_ssl) 1\.2.*uninstall", done.stderr
    )


def test_a_broken_objective_fails_exactly_the_check_of_what_is_broken() -> None:
    failed = {}
    for check in check_objective(girih_plugin_example.ForgetfulConfig()):
        try:
            check()
        except AssertionError as error:
            failed[check.name] = str(error)
    assert list(failed) == ["every_seed_matters"]
    before, after = re.split(r"\d+\.\d+", failed["every_seed_matters"])  # the loss
    assert f"every_seed_matters: {before}" in GUIDE
    assert after in " ".join(GUIDE.split())


def test_the_contributors_guide_shows_this_very_objective() -> None:
    source = Path(girih_plugin_example.__file__).read_text()
    block = next(b for b in (ROOT / "CONTRIBUTING.md").read_text().split("```python\n") if "class DenoiseConfig" in b)
    assert block.split("```")[0].strip() in source


def test_a_real_method_is_one_file_one_entry_point_line_and_one_contract_line() -> None:
    file = DISTRIBUTION / "src" / "girih_plugin_example" / "volume_fusion.py"
    source = file.read_text()
    assert source == Path(volume_fusion.__file__).read_text()  # what is installed, perhaps as a copy
    assert len(source.splitlines()) <= 120
    assert str(file.relative_to(ROOT)) in GUIDE
    pyproject = (DISTRIBUTION / "pyproject.toml").read_text()
    name, target = "volume_fusion", "girih_plugin_example.volume_fusion:VolumeFusionConfig"
    assert tomllib.loads(pyproject)["project"]["entry-points"]["girih.objectives"][name] == target
    assert f'\n{name} = "{target}"\n' in pyproject
    assert f'\n{name} = "{target}"\n' in GUIDE
    contract = "class TestVolumeFusion(ObjectiveContract):\n    config = VolumeFusionConfig\n"
    assert contract in Path(__file__).read_text()
    assert contract in GUIDE


def test_the_guide_shows_files_and_lines_that_are_there() -> None:
    for language, path in re.findall(r"```\{literalinclude\} (?:(\w+) )?(\S+)", GUIDE) or pytest.fail("shows no file"):
        assert not language
        assert (ROOT / "docs" / path).is_file()
    for link in re.findall(r"\]\((?!http)([^)#]+)", GUIDE):
        assert (ROOT / "docs" / link).exists(), link


def test_volume_fusion_shows_the_network_every_opacity_where_it_says() -> None:
    objective = VolumeFusionConfig().build(tiny_parts())
    batch = make_batch(2)
    batch["image"] = torch.ones_like(batch["image"])
    batch["image"][1] = 0
    seen: list[torch.Tensor] = []
    objective.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    objective(batch)
    step = volume_fusion.draw_steps(batch["seed"], (32, 32, 32), VolumeFusionConfig())
    assert step.unique().tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(seen[0][0, 0], step[0] / 4)
    assert torch.equal(seen[0][1, 0], 1 - step[1] / 4)


def test_volume_fusion_draws_boxes_of_the_sizes_it_says() -> None:
    config, patch = VolumeFusionConfig(boxes=(1, 1)), (40, 16, 8)
    step = volume_fusion.draw_steps(torch.arange(200), patch, config)
    sides = []
    for row in step:
        inside = row.nonzero()
        low, high = inside.amin(0), inside.amax(0) + 1
        assert len(inside) == (high - low).prod()  # a full box of one value
        assert row[row > 0].unique().numel() == 1
        sides.append((high - low).tolist())
    found = torch.tensor(sides)
    assert found.amin(0).tolist() == [8, 8, 5]  # 0.625 of 8 voxels are 5
    assert found.amax(0).tolist() == [25, 10, 5]


def test_volume_fusion_knows_a_right_answer() -> None:  # 2 of 3 voxels overlap in class 0: 4 / (3 + 2); class 1: 2 / 3
    truth = torch.tensor([[[[[1, 1, 0]]], [[[0, 0, 1]]]]])
    share = torch.tensor([[[[[1.0, 1, 1]]], [[[0, 0, 0]]]]])
    scored = torch.ones(1, 1, 1, 1, 3, dtype=torch.bool)
    assert float(volume_fusion.dice(truth.float(), truth, scored)) == pytest.approx(1)
    assert float(volume_fusion.dice(share, truth, scored, smooth=1e-9)) == pytest.approx((4 / 5 + 0) / 2)
    scored[..., 2] = False  # where share and truth agree on the rest
    assert float(volume_fusion.dice(share, truth, scored)) == pytest.approx(1)


@pytest.mark.parametrize(
    "wrong", [{"steps": 1}, {"boxes": (5, 4)}, {"boxes": (0, 4)}, {"smallest": 0}, {"largest": 2.0}]
)
def test_volume_fusion_refuses_settings_that_cannot_be(wrong: dict) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: found"):
        VolumeFusionConfig(**wrong)


def pretrain(*arguments: str, path: list[Path] = [], code: int = 0) -> subprocess.CompletedProcess:  # noqa: B006
    """Run `girih pretrain` with folders put on the path, and check its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "girih.cli", "pretrain", *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    return done
