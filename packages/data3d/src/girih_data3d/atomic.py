"""Nothing half-written is ever visible: write aside on the same disk, flush, rename."""

import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ABANDONED_AFTER_S = 24 * 3600
"""Age from which an unfinished entry of another machine is taken for abandoned."""


@contextmanager
def written_aside(root: Path, target: Path) -> Iterator[Path]:
    """Yield a path in root/.tmp to write a file or folder to; on success it is flushed and becomes `target`.

    `target` lies below `root`. Of several writers of one target the last one stays. A folder replaces a folder; a file
    never does.

    Raises:
        IsADirectoryError: a file was written, and the target is a folder, which stays.
    """
    aside = root / ".tmp" / f"{os.getpid()}@{platform.node()}@{uuid.uuid4().hex}"
    aside.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield aside
        for path in [*aside.rglob("*"), aside]:
            _flush(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(aside, target)
        for parent in target.parents:
            _flush(parent)
            if parent == root:
                break
    finally:
        _remove(aside)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all, through another one in its folder, which is made if missing.

    Raises:
        OSError: it cannot be written, or is a folder; what was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".partial-{uuid.uuid4().hex}")
    try:
        with aside.open("x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        _refuse_folder(path)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Make sure, before long work, that a file can be written.

    Raises:
        OSError: it is a folder, or its folder is none or may not be written to.
    """
    _refuse_folder(path)
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{path}: {there} is a file, wanted a folder")
    if not os.access(path if path.exists() else there, os.W_OK):
        raise PermissionError(f"{path}: may not be written")


def remove_abandoned(root: Path) -> None:
    """Remove what dead processes of this machine, or anybody a day ago, left unfinished in root/.tmp."""
    folder = root / ".tmp"
    for path in folder.iterdir() if folder.is_dir() else ():
        process, _, rest = path.name.partition("@")
        ours = os.name == "posix" and process.isdigit() and rest.rpartition("@")[0] == platform.node()
        with suppress(FileNotFoundError):  # another process tidies up as well
            if (ours and not _alive(int(process))) or time.time() - path.stat().st_mtime > ABANDONED_AFTER_S:
                _remove(path)


def _replace(aside: Path, target: Path) -> None:
    """Rename; a folder that is replaced moves out of the way first, for folders are not overwritten."""
    if not aside.is_dir():
        _refuse_folder(target)
    while True:
        old = aside.with_name(f"{aside.name}.old")
        with suppress(FileNotFoundError, NotADirectoryError):
            if target.is_dir():
                target.replace(old)
        try:
            aside.replace(target)
        except OSError:
            if not (target.is_dir() and aside.is_dir()):
                raise
            _remove(old)  # another process put its own there in between
            continue
        _remove(old)
        return


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, wanted the name of a file")


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # not Linux
        return True
    return state not in ("Z", "X")  # a zombie: ended, but nobody has asked how
