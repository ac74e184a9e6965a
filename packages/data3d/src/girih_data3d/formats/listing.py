"""What lies in a folder, by one look at it; and which of the folders around is the dataset's."""

import os
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from girih_data3d.errors import ManifestError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".rar", ".7z")
JUNK = frozenset({"__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "@eadir"})
"""What operating systems leave behind, in lower case; beside all names that begin with a dot (._ of macOS)."""


@dataclass(frozen=True)
class Listing:
    """Names in a folder, sorted, without what operating systems leave behind."""

    folder: Path
    files: tuple[str, ...]
    folders: tuple[str, ...]

    @cached_property
    def names(self) -> frozenset[str]:
        """Return the names of all files and folders."""
        return frozenset(self.files) | frozenset(self.folders)

    def holds(self, *names: str) -> bool:
        """Return whether all these files or folders are here."""
        return self.names.issuperset(names)


def list_folder(folder: Path) -> Listing:
    """Return what lies in a folder: one pass over it, no file is opened or asked for its size.

    Raises:
        ManifestError: no such folder, or not readable.
    """
    files: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.name.lower() not in JUNK:
                    (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        raise ManifestError(f"{folder}: not a readable folder: {error.strerror or error}") from error
    return Listing(folder, tuple(sorted(files)), tuple(sorted(folders)))


def find_file(folder: Path, name: str, places: Sequence[str]) -> Path | None:
    """Return the file of a name in the first of some folders that has it, which are given from a folder on."""
    return next((path for path in (folder / place / name for place in places) if path.is_file()), None)


def find_root(folder: Path, is_root: Callable[[Listing], bool], wanted: str, *, inner: Sequence[str] = ()) -> Listing:
    """Return the dataset's folder: the one given, or the only fitting one inside it, or the one that it lies in.

    Args:
        folder: as given by the user, perhaps one level too high or too low.
        is_root: says of a folder's content whether it is the dataset's.
        wanted: what is looked for, for the message: "dataset.json, imagesTr and labelsTr".
        inner: names of folders inside the dataset's; given one of them, the folder above is taken.

    Raises:
        ManifestError: there is none, or several; the message says what was looked for and what lies there.
    """
    here = list_folder(folder)
    if is_root(here):
        return here
    if folder.resolve().name in inner:
        above = list_folder(folder.resolve().parent)
        if is_root(above):
            return above
    inside = [found for name in here.folders if is_root(found := list_folder(folder / name))]
    if len(inside) > 1:
        names = ", ".join(found.folder.name for found in inside[:5])
        raise ManifestError(f"{folder}: {len(inside)} folders in it hold {wanted} ({names}), wanted one: name it")
    if inside:
        return inside[0]
    archives = [name for name in here.files if name.lower().endswith(ARCHIVES)]
    if archives:
        hint = f"; unpack {archives[0]} ({len(archives)} archives) first"
    else:
        hint = ""
    raise ManifestError(f"{folder}: looked for {wanted}, here and one folder deeper; found {_shown(here)}{hint}")


def _shown(listing: Listing) -> str:
    names = [f"{name}/" for name in listing.folders] + list(listing.files)
    return reprlib.repr(names) if names else "an empty folder"
