"""girih-data3d split and leakage: what they write, what they say, their exit codes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import girih_data3d as d3
from girih_data3d import Fold, Split, read_split
from girih_data3d.cli import main

Command = Callable[..., int]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve cases of ten patients, three cases with a lesion, one unlabelled; case 11 shows what case 10 shows."""
    folder = tmp_path_factory.mktemp("split-cli")
    sphere = d3.ObjectLabel(0, center_ras_mm=(4.0, 4.0, 4.0), diameter_mm=3.0)
    sources = []
    for number in range(12):
        image = folder / f"{number}.nii.gz"
        noise = np.random.default_rng(min(number, 10)).normal(0, 1, (8, 8, 8)).astype(np.float32)
        d3.write_nifti(noise, image, affine=np.eye(4))
        sources.append(
            d3.CaseSource(
                f"c{number:02}",
                (image,),
                patient_id=f"p{number % 10}",
                part="test" if number % 10 in (3, 4) else "train",
                objects=None if number == 9 else (sphere,) * (number in (0, 5, 6)),
            )
        )
    report = d3.prepare_many(
        d3.Dataset("kits21", ("x",), tuple(sources)), folder / "store", d3.PrepareSpec(), workers=0
    )
    assert not report.failed
    return folder / "store"


@pytest.fixture
def command() -> Command:
    return lambda *arguments: main([str(argument) for argument in arguments])


def test_split_by_default(root: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "split.json"
    assert command("split", root, "--out", out) == 0
    split = read_split(out)
    split.check(d3.Store.open(root))
    assert [len(ids) for ids in split.parts().values()] == [7, 2, 3]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{out}: holdout: test 0.2, val 0.2 of the rest; seed 0"
    assert lines[1].split() == ["cases", "patients", "objects", "unlabelled"]
    rows = {line.split()[0]: [int(n) for n in line.split()[1:]] for line in lines[2:]}
    assert list(rows) == ["train", "val", "test"]
    assert [sum(column) for column in zip(*rows.values(), strict=True)] == [12, 10, 3, 1]


def test_split_by_other_rules(root: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "split.json"
    assert command("split", root, "--out", out, "--rule", "kfold", "--folds", 3, "--test", 0.1, "--seed", 5) == 0
    split = read_split(out)
    assert (len(split.folds), len(split.test), split.seed) == (3, 2, 5)
    assert "2 val" in capsys.readouterr().out
    official = ("split", root, "--out", out, "--rule", "official", "--val", 0.3, "--fraction", 0.5)
    assert command(*official) == 2
    assert "holds another split" in capsys.readouterr().err
    assert read_split(out) == split
    assert command(*official, "--overwrite") == 0
    assert command(*official) == 0
    split = read_split(out)
    assert [len(ids) for ids in split.parts().values()] == [3, 3, 2]
    assert split.test == ("c03", "c04")
    assert "left out" in capsys.readouterr().out


def test_split_of_the_paper(root: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "split.json"
    assert command("split", root, "--out", out, "--rule", "paper") == 0
    assert "published: 204/51/45; these are 5/2/2, so the dataset has other cases" in capsys.readouterr().out
    assert command("split", root, "--out", out, "--paper", "cta-a", "--fraction", 0.5, "--overwrite") == 0
    assert read_split(out).test == ("c03", "c04")
    assert "published" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rule", "official", "--test", 0.2), "--test is no option of the rule official"),
        (("--folds", 5), "--folds is no option of the rule holdout"),
        (("--paper", "kits21", "--val", 0.2), "--val is no option of the rule paper"),
        (("--paper", "kits21", "--rule", "kfold"), "--paper is no option of the rule kfold"),
        (("--paper", "kits21", "--stratify"), "--stratify is no option of the rule paper"),
        (("--fraction", 0), "fraction is 0.0, wanted above 0"),
        (("--stratify",), "case 'c09' holds is not known, for it is unlabelled"),
        (("--paper", "ribfrac"), "no labelled case of the official part 'val'"),
    ],
)
def test_split_refuses(
    root: Path,
    tmp_path: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    message: str,
) -> None:
    assert command("split", root, "--out", tmp_path / "split.json", *arguments) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_leakage_between_datasets(
    root: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "again.nii"
    noise = np.random.default_rng(3).normal(0, 1, (8, 8, 8)).astype(np.float32)
    d3.write_nifti(noise, image, affine=np.diag([0.5, 0.5, 3, 1]))
    sources = (d3.CaseSource("other name", (image,), patient_id="p1"),)
    d3.prepare_many(d3.Dataset("pool", (), sources), tmp_path / "pool", d3.PrepareSpec(), workers=0)
    assert command("leakage", tmp_path / "pool", root) == 1
    line, total = capsys.readouterr().out.splitlines()
    assert line.split("\t")[:3] == ["other name", "c03", "the same voxels"]
    assert total == f"{tmp_path / 'pool'}, {root}: 1 leaks (1 by the same voxels)"
    fit = Split("kits21", "by hand", 0, (Fold(("c03", "c01"), ("c05",)), Fold(("c00",), ("c02",))))
    fit.write(tmp_path / "split.json")
    assert command("leakage", tmp_path / "pool", root, "--split", tmp_path / "split.json") == 0
    assert command("leakage", tmp_path / "pool", root, "--split", tmp_path / "split.json", "--same-patients") == 0
    Split("kits21", "by hand", 0, (Fold(("c00",), ("c03", "c11")),)).write(tmp_path / "split.json")
    capsys.readouterr()
    assert command("leakage", tmp_path / "pool", root, "--split", tmp_path / "split.json", "--same-patients") == 1
    assert "2 leaks (1 by the same voxels, 1 by the same patient)" in capsys.readouterr().out


def test_leakage_within_a_split(
    root: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    split = tmp_path / "split.json"
    Split("kits21", "by hand", 0, (Fold(("c00", "c01"), ("c02", "c10")),), ("c11",)).write(split)
    assert command("leakage", root, "--split", split) == 1
    first, second, third, total = capsys.readouterr().out.splitlines()
    assert first.startswith("c00\tc10\tthe same patient\tp0")
    assert second.startswith("c01\tc11\tthe same patient\tp1")
    assert third.startswith("c10\tc11\tthe same voxels\t")
    assert total == f"{root}, {split}: 3 leaks (1 by the same voxels, 2 by the same patient)"
    Split("kits21", "by hand", 0, (Fold(("c00", "c10"), ("c02",)),), ("c03",)).write(split)
    assert command("leakage", root, "--split", split) == 0
    assert command("leakage", root) == 2
    assert "a second dataset, or --split, is needed" in capsys.readouterr().err
    assert command("leakage", root, "--split", split, "--same-patients") == 2
    assert "--same-patients is for two datasets" in capsys.readouterr().err
    Split("other", "by hand", 0, (Fold(("c00",), ("c02",)),)).write(split)
    for arguments in ((root,), (root, root)):
        assert command("leakage", *arguments, "--split", split) == 2
        assert "the split is of dataset 'other', found dataset 'kits21'" in capsys.readouterr().err
