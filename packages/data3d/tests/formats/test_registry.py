"""The formats as a whole: registry, options, counts, the command line, speed on large tables."""

import inspect
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

import girih_data3d as d3
from girih_data3d.cli import main
from girih_data3d.formats import FORMATS, Counts, Format, compare_counts, get_format, options_of, read_format
from girih_data3d.formats.options import check_options, parse_options


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def read_made_up(
    folder: Path,
    *,
    flag: bool = False,
    number: float = 1.5,
    whole: int = 3,
    text: str | None = None,
    choice: Literal["one", "two"] = "one",
) -> d3.Dataset:
    """Read it.

    Args:
        folder: where.
        flag: says yes
            or no.
        number: of things.
    """
    return d3.Dataset(f"{flag} {number} {whole} {text} {choice}", (), (d3.CaseSource("a", (folder / "a.nii.gz",)),))


MADE_UP = Format("made-up", "Made up", "nowhere", "none", read_made_up)


def test_every_option_is_documented_and_has_a_default() -> None:
    assert list(FORMATS) == sorted(FORMATS)
    for name, known in FORMATS.items():
        assert known.name == name
        assert all((known.title, known.home, known.licence))
        assert "ManifestError" in (inspect.getdoc(known.read) or "")
        for option in options_of(known).values():
            assert option.doc, (name, option.name)
            assert option.accepts(option.default), (name, option.name)
            assert option.wanted
            assert parse_options(known, [f"{option.name}={option.default}"]) == {option.name: option.default}


def test_stated_parts_add_up() -> None:
    for name, known in FORMATS.items():
        if known.counts is not None:
            assert sum(known.counts.parts.values()) == known.counts.images, name


def test_nothing_heavy_is_imported() -> None:
    heavy = "openpyxl", "defusedxml", "SimpleITK", "pydicom", "yaml", "torch"
    before = "import sys, nibabel, zarr; before = set(sys.modules)"  # they bring pydicom and yaml if there are
    program = f"{before}; import girih_data3d.formats; print([m for m in {heavy} if m in set(sys.modules) - before])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_format() -> None:
    with pytest.raises(ValueError, match=r"no format 'kits', known are .*kits21.*ribfrac"):
        get_format("kits")


def test_options_from_text() -> None:
    texts = ["flag=yes", "number=2", "whole=4", "text=a=b", "choice=TWO"]
    found = parse_options(MADE_UP, texts)
    assert found == {"flag": True, "number": 2.0, "whole": 4, "text": "a=b", "choice": "two"}
    assert parse_options(MADE_UP, ["text=none"]) == {"text": None}
    assert options_of(MADE_UP)["flag"].doc == "says yes or no."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour=red", "no option 'colour', it has flag, number, whole, text, choice"),
        ("flag=maybe", "flag is 'maybe', wanted true | false"),
        ("number=many", "number is 'many', wanted a number"),
        ("whole=1.5", "whole is '1.5', wanted a whole number"),
        ("choice=three", "choice is 'three', wanted one | two"),
        ("flag", "option 'flag', wanted NAME=VALUE"),
    ],
)
def test_options_that_there_are_not(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_options(MADE_UP, [text])
    assert message in str(caught.value)


def test_options_given_twice() -> None:
    with pytest.raises(ValueError, match="option 'flag' is given twice"):
        parse_options(MADE_UP, ["flag=yes", "flag=no"])


@pytest.mark.parametrize("given", [{"flag": 1}, {"whole": True}, {"whole": 1.0}, {"number": "1"}, {"choice": None}])
def test_types_in_python(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        check_options(MADE_UP, given)


def test_python_names_the_format_and_the_option(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"format kits21: no option 'classes', it has objects, min_voxels, partial"):
        read_format("kits21", tmp_path, classes="x")
    with pytest.raises(ValueError, match=r"format kits21: min_voxels is '3', wanted a whole number"):
        read_format("kits21", tmp_path, min_voxels="3")


@pytest.fixture
def folder(tmp_path: Path, scans: dict[str, Any]) -> Path:
    root = tmp_path / "data"
    for name in ("plain", "touching"):
        scans[name].write(root / "images" / f"{name}.nii.gz")
        scans[name].write(root / "labels" / f"{name}.nii.gz", scans[name].labels())
    return root


def test_command_lists_the_formats(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "formats")
    assert code == 0
    for known in FORMATS.values():
        assert f"{known.name}: {known.title}\n" in text
    assert "stated: 500 images (train 336, val 84, test 80), 4422 objects" in text
    code, text, _ = run(capsys, "formats", "kits21")
    assert code == 0
    assert "-o objects=instances (instances | components)" in text
    assert "not checked against the real files yet:\n    - whether the 826 objects" in text
    assert "case_00000" in text
    assert run(capsys, "formats", "kits19")[0] == 2


def test_command_prepares(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ("prepare", folder, out, "--workers", 0, "--keep-spacing", "--format", "folder")
    code, text, _ = run(capsys, *command, "-o", "classes=nodule", "-o", "modality=CT")
    assert (code, text) == (0, f"{out}: 2 done, 0 skipped, 0 failed\n")
    store = d3.Store.open(out)
    assert (store.classes, store["plain"].modality, len(store.index.labels)) == (("nodule",), "CT", 4)


def test_command_says_what_it_passes_over(
    scans: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans["plain"].write(tmp_path / "scans" / "a.nii.gz")
    for number in range(12):
        (tmp_path / "scans" / f"{number:02}.txt").touch()
    code, _, error = run(capsys, "prepare", tmp_path / "scans", tmp_path / "out", "--workers", 0)
    assert code == 0
    names = ", ".join(f"{number:02}.txt" for number in range(10))
    assert error.startswith(f"girih-data3d: passed over: {names} and 2 more\n")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--format", "folders"), "no format 'folders', known are"),
        (("--format", "folder", "-o", "kinds=x"), "format folder: no option 'kinds', it has images"),
        (("--format", "folder", "-o", "kind=x"), "kind is 'x', wanted instances | classes | semantic"),
        (("-o", "kind=classes"), "options are those of a format; give --format"),
        (("--format", "kits21"), "looked for folders case_00000"),
    ],
)
def test_command_refuses(
    more: tuple[str, ...], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, error = run(capsys, "prepare", folder, tmp_path / "out", *more)
    assert (code, text) == (2, "")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_counts_of_a_prepared_dataset(
    tmp_path: Path,
    scans: dict[str, Any],
    prepare: Callable[..., d3.Store],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sources = []
    for name, part in (("plain", "train"), ("touching", "test"), ("empty", None)):
        image = scans[name].write(tmp_path / f"{name}.nii.gz")
        label = scans[name].write(tmp_path / f"{name}_labels.nii.gz", scans[name].labels())
        instances = (label,) if part is not None else ()
        sources.append(d3.CaseSource(name, (image,), instances=instances, part=part))
    store = prepare(d3.Dataset("made", ("thing",), tuple(sources)))
    stated = {"train": 1, "test": 1}
    known = Format("made-up", "Made up", "nowhere", "none", read_made_up, Counts(2, 4, stated, official=stated))
    assert [(row.what, row.found, row.stated) for row in compare_counts(known, store)] == [
        ("images", 2, 2),
        ("objects", 4, 4),
        ("part train", 1, 1),
        ("part test", 1, 1),
    ]
    with pytest.raises(ValueError, match="format made-up: no counts are stated of it"):
        compare_counts(MADE_UP, store)
    code, text, error = run(capsys, "verify", store.root, "--format", "folder")
    assert (code, text) == (2, "")  # before anything is verified
    assert "format folder: no counts are stated of it" in error
    code, text, _ = run(capsys, "verify", store.root, "--format", "ribfrac")
    assert code == 1
    assert "images: 2 / 500  differs\nobjects: 4 / 4422  differs\npart train: 1 / 420  differs\n" in text
    assert text.endswith(f"{store.root}: 0 of 4 as stated of D02 RibFrac (found / stated)\n")
    monkeypatch.setattr("girih_data3d.formats_cli.get_format", lambda name: known)
    monkeypatch.setattr("girih_data3d.cli.get_format", lambda name: known)
    assert run(capsys, "verify", store.root, "--format", "made-up")[0] == 0


def test_each_folder_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
        for number in range(300):
            (tmp_path / name / f"{number}.nii.gz").touch()
    calls: Counter[str] = Counter()

    def count(name: str) -> None:
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, **more: (calls.update([name]), original(*given, **more))[1])

    for name in ("scandir", "stat", "listdir", "open"):
        count(name)
    assert len(read_format("folder", tmp_path).sources) == 300
    assert calls["scandir"] == 3
    assert calls["stat"] + calls["listdir"] + calls["open"] < 5


@pytest.mark.long
def test_fifty_thousand_cases_take_seconds(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    for name in ("image", "label"):
        (tmp_path / name).mkdir()
        for number in range(50000):
            (tmp_path / name / f"RibFrac{number}-{name}.nii.gz").touch()
    rows = [[f"RibFrac{n}", label, min(label, 1)] for n in range(50000) for label in range(5)]
    write_rows(tmp_path / "ribfrac-train-info-1.csv", [["public_id", "label_id", "label_code"], *rows])
    program = f"""
import time
from girih_data3d.formats import read_format
start = time.process_time()
assert len(read_format("ribfrac", {str(tmp_path)!r}).sources) == 50000
print(time.process_time() - start)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 20
