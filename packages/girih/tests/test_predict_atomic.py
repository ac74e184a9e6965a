"""A file is written whole or not at all, also when the disk is full or a limit is reached."""

import errno
import gzip
import io
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from girih.atomic import PREFIX, remove_stale, write_aside, write_bytes, write_json, write_text


@pytest.fixture
def small_files() -> Iterator[None]:
    """The system refuses to let a file grow beyond 64 KiB, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_finds_no_room_leaves_what_was_there(tmp_path: Path, small_files: None) -> None:
    place = tmp_path / "folder" / "content.json"
    write_text(place, "before")
    with pytest.raises(OSError, match="File too large") as error:
        write_bytes(place, bytes(1 << 17))
    assert error.value.errno == errno.EFBIG
    assert error.value.filename == str(place)
    assert place.read_text() == "before"
    assert [path.name for path in place.parent.iterdir()] == ["content.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_at_the_last_moment(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place = tmp_path / "content.json"
    write_json(place, {"before": 1})
    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        patched.setattr(Path, "replace", full if call == "replace" else Path.replace)
        with pytest.raises(OSError, match=rf"\[Errno 28\] No space left on device: '{place}'"):
            write_json(place, {"after": 1})
    assert place.read_text() == '{\n "before": 1\n}\n'
    assert list(tmp_path.iterdir()) == [place]


def test_content_that_cannot_be_read_speaks_for_itself(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Not a gzipped file"):
        write_aside(tmp_path / "content", gzip.GzipFile(fileobj=io.BytesIO(b"no gzip")))
    assert not list(tmp_path.iterdir())


def test_what_killed_calls_left_goes_after_a_day(tmp_path: Path) -> None:
    old, young, other = (tmp_path / name for name in (f"{PREFIX}old", f"{PREFIX}young", "old"))
    for path in (old, young, other):
        path.write_text("")
    for path in (old, other):
        os.utime(path, times=(time.time() - 2 * 24 * 3600,) * 2)
    remove_stale(tmp_path)
    remove_stale(tmp_path / "nowhere")
    assert sorted(tmp_path.iterdir()) == [young, other]
