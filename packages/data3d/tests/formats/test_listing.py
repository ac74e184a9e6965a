"""Which folder is the dataset's, and what is said where there is none; and the kit that the other tests use."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import girih_data3d as d3
from girih_data3d.formats.listing import Listing, find_root, list_folder

WANTED = "images and labels"


def is_root(listing: Listing) -> bool:
    return listing.holds("images", "labels")


def make(folder: Path) -> Path:
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    return folder


def test_junk_of_operating_systems_is_not_there(tmp_path: Path) -> None:
    make(tmp_path)
    for name in ("._images", ".DS_Store", "Thumbs.db", "b.csv", "a.csv"):
        (tmp_path / name).touch()
    (tmp_path / "__MACOSX").mkdir()
    found = list_folder(tmp_path)
    assert (found.files, found.folders) == (("a.csv", "b.csv"), ("images", "labels"))


@pytest.mark.parametrize("given", [".", "..", "images"])
def test_one_level_too_high_or_too_low(tmp_path: Path, given: str) -> None:
    root = make(tmp_path / "outer" / "data")
    found = find_root(root / given, is_root, WANTED, inner=("images",))
    assert found.folder.resolve() == root.resolve()


def test_folder_above_only_from_a_known_one(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(d3.ManifestError, match=r"labels: looked for images and labels, here .*; found an empty folder"):
        find_root(tmp_path / "labels", is_root, WANTED, inner=("images",))


def test_two_levels_are_refused_with_what_lies_there(tmp_path: Path) -> None:
    make(tmp_path / "a" / "b")
    (tmp_path / "read.me").touch()
    with pytest.raises(d3.ManifestError, match=r"found \['a/', 'read.me'\]$"):
        find_root(tmp_path, is_root, WANTED)


def test_two_candidates_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "a"), make(tmp_path / "b")
    with pytest.raises(d3.ManifestError, match=r"2 folders in it hold images and labels \(a, b\)"):
        find_root(tmp_path, is_root, WANTED)


@pytest.mark.parametrize("name", ["data.zip", "Task07.tar", "x.TAR.GZ"])
def test_archives_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(d3.ManifestError, match=rf"found \['{name}'\]; unpack {name} \(1 archives\) first"):
        find_root(tmp_path, is_root, WANTED)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(d3.ManifestError, match="nowhere: not a readable folder: No such file"):
        find_root(tmp_path / "nowhere", is_root, WANTED)


@pytest.mark.parametrize("suffix", [".nii.gz", ".mhd"])
def test_kit(
    suffix: str,
    scans: dict[str, Any],
    tmp_path: Path,
    prepare: Callable[..., d3.Store],
    assert_planted: Callable[..., None],
) -> None:
    sources = []
    for name, scan in scans.items():
        image = scan.write(tmp_path / f"{name}{suffix}")
        labels = scan.write(tmp_path / f"{name}_labels{suffix}", labels=scan.labels())
        sources.append(d3.CaseSource(name, (image,), instances=(labels,)))
    store = prepare(d3.Dataset("kit", ("thing",), tuple(sources)))
    for name, scan in scans.items():
        assert_planted(store, name, scan, [(0, box) for box in scan.boxes.values()])
    moved = [(0, tuple(edge + 1 for edge in box)) for box in scans["plain"].boxes.values()]
    with pytest.raises(AssertionError):
        assert_planted(store, "plain", scans["plain"], moved)
