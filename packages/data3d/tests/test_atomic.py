"""Writing aside: files come whole or not at all, and never in the place of a folder."""

from pathlib import Path

import pytest

from girih_data3d.atomic import check_writable, write_text, written_aside


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with somebody's file."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "scan.nii.gz").write_text("years of work")
    return tmp_path / "data"


def test_a_file_never_replaces_a_folder(folder: Path) -> None:
    with (
        pytest.raises(IsADirectoryError, match="data is a folder, wanted the name of a file"),
        written_aside(folder.parent, folder) as aside,
    ):
        aside.write_text("new")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_text(folder, "new")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        check_writable(folder)
    assert (folder / "scan.nii.gz").read_text() == "years of work"
    assert [path.name for path in folder.parent.iterdir() if path.name != ".tmp"] == ["data"]


def test_a_folder_replaces_a_folder(folder: Path) -> None:
    with written_aside(folder.parent, folder) as aside:
        aside.mkdir()
        (aside / "new").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["new"]


def test_text_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for text in ("old", "new \u00e4"):
        write_text(tmp_path / "deep" / "a.json", text)
    assert (tmp_path / "deep" / "a.json").read_text(encoding="utf-8") == "new \u00e4"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.json"]


def test_what_cannot_be_written_is_known_before(folder: Path) -> None:
    check_writable(folder / "plan.json")
    check_writable(folder / "not" / "yet" / "plan.json")
    check_writable(folder / "scan.nii.gz")
    assert [path.name for path in folder.iterdir()] == ["scan.nii.gz"]
    with pytest.raises(NotADirectoryError, match=r"scan.nii.gz is a file, wanted a folder"):
        check_writable(folder / "scan.nii.gz" / "plan.json")
