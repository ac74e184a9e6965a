"""Files of the Hugging Face Hub, from a server on this machine that answers the routes huggingface_hub asks for."""

import hashlib
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch

from girih_backbones import ResidualEncoder, WeightsError, export_nnunet, read_weights, save_weights

COMMITS = {"main": "a" * 40, "v1.0": "b" * 40, "refs/pr/1": "c" * 40}


@dataclass
class Hub:
    """Files by commit and name, and what was asked for."""

    files: dict[tuple[str, str], bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    @property
    def downloads(self) -> list[str]:
        return [line for line in self.asked if line.startswith("GET") and "/resolve/" in line]

    def put(self, name: str, content: bytes, revision: str = "main") -> str:
        self.files[COMMITS[revision], name] = content
        return hashlib.sha256(content).hexdigest()


class Answer(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        repository, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        revision = revision.replace("%2F", "/")
        commit = COMMITS.get(revision, revision)
        content = self.hub.files.get((commit, name))
        missing = None
        if repository != "girih/encoders":
            missing = "RepoNotFound"
        elif commit not in COMMITS.values():
            missing = "RevisionNotFound"
        elif content is None:
            missing = "EntryNotFound"
        self.send_response(200 if missing is None else 404)
        if missing is not None:
            self.send_header("X-Error-Code", missing)
            content = b""
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *ignored: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (Answer,), {"hub": files}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    here = {"endpoint": f"http://127.0.0.1:{server.server_port}", "cache_dir": tmp_path / "cache"}
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", partial(huggingface_hub.hf_hub_download, **here))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    yield files
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def written(tmp_path: Path) -> Path:
    encoder = ResidualEncoder(1, channels=(2, 4), blocks=(1, 2))
    save_weights(tmp_path / "encoder.safetensors", encoder=encoder, source="a test")
    export_nnunet(tmp_path / "checkpoint_final.pth", read_weights(tmp_path / "encoder.safetensors"))
    return tmp_path


def refused(identifier: str, **kwargs: object) -> str:
    with pytest.raises(WeightsError) as caught:
        read_weights(identifier, **kwargs)
    return str(caught.value)


def test_a_file_is_fetched_once_and_its_commit_and_hash_recorded(hub: Hub, written: Path) -> None:
    digest = hub.put("mae/encoder.safetensors", (written / "encoder.safetensors").read_bytes())
    weights = read_weights("hf://girih/encoders@main/mae/encoder.safetensors")
    local = read_weights(written / "encoder.safetensors")
    assert all(torch.equal(weights.tensors[name], tensor) for name, tensor in local.tensors.items())
    source = f"a test; hf://girih/encoders@{'a' * 40}/mae/encoder.safetensors, sha256 {digest}"
    assert weights.header["source"] == source
    assert read_weights("hf://girih/encoders/mae/encoder.safetensors").header["source"] == source  # main by default
    assert len(hub.downloads) == 1
    assert not any("adaptation_plan" in line for line in hub.asked)


@pytest.mark.parametrize(
    ("revision", "commit"), [("v1.0", "b" * 40), ("refs%2Fpr%2F1", "c" * 40), ("b" * 40, "b" * 40)]
)
def test_a_tag_a_reference_and_a_commit(hub: Hub, written: Path, revision: str, commit: str) -> None:
    for name in COMMITS:
        hub.put("e.safetensors", (written / "encoder.safetensors").read_bytes(), name)
    source = read_weights(f"hf://girih/encoders@{revision}/e.safetensors").header["source"]
    assert f"@{commit}/e.safetensors" in source


@pytest.mark.parametrize("inside", [True, False])
def test_a_plan_beside_a_checkpoint_comes_along(hub: Hub, written: Path, inside: bool) -> None:
    content = torch.load(written / "checkpoint_final.pth", weights_only=True)
    if not inside:
        import json

        plan = content.pop("nnssl_adaptation_plan") | {"recommended_downstream_patchsize": None}
        plan["pretrain_plan"]["configurations"]["girih"]["patch_size"] = [8, 8, 8]
        hub.put("S3D/adaptation_plan.json", json.dumps(plan).encode())
        torch.save(content, written / "checkpoint_final.pth")
    hub.put("S3D/checkpoint_final.pth", (written / "checkpoint_final.pth").read_bytes())
    header = read_weights("hf://girih/encoders@main/S3D/checkpoint_final.pth").header
    assert header["patch_zyx"] == (None if inside else [8, 8, 8])
    assert header["source"].startswith("nnssl checkpoint checkpoint_final.pth; hf://girih/encoders@aaaa")


def test_the_hash_must_be_the_expected_one(hub: Hub, written: Path) -> None:
    digest = hub.put("e.safetensors", (written / "encoder.safetensors").read_bytes())
    assert read_weights("hf://girih/encoders@main/e.safetensors", sha256=digest)
    found = refused("hf://girih/encoders@main/e.safetensors", sha256="0" * 64)
    assert f"sha256: found {digest}, wanted {'0' * 64}" in found


def test_a_large_file_is_not_fetched(hub: Hub) -> None:
    hub.put("e.safetensors", bytes(1000))
    found = refused("hf://girih/encoders@main/e.safetensors", max_bytes=999)
    assert found == "hf://girih/encoders@main/e.safetensors: found 1000 bytes, wanted at most 999"
    assert hub.downloads == []


def test_a_large_plan_is_not_fetched(hub: Hub, written: Path) -> None:
    hub.put("checkpoint_final.pth", (written / "checkpoint_final.pth").read_bytes())
    hub.put("adaptation_plan.json", bytes(2**20 + 1))
    found = refused("hf://girih/encoders@main/checkpoint_final.pth")
    assert "adaptation_plan.json: found 1048577 bytes, wanted at most 1048576" in found
    assert not any("adaptation_plan" in line for line in hub.downloads)


@pytest.mark.parametrize(
    ("identifier", "message"),
    [
        ("hf://girih/nothing@main/e.safetensors", "repository girih/nothing: not found, or not yours to see"),
        ("hf://girih/encoders@v9/e.safetensors", "revision v9: not found in girih/encoders"),
        ("hf://girih/encoders@main/no.safetensors", "file no.safetensors: not found in girih/encoders at main"),
        ("hf://girih/encoders@main", "found another form, wanted hf://owner/name@revision/file"),
        ("hf://encoders/e.safetensors", "found another form"),
        ("hf://girih/encoders@main/a@b", "found another form"),
        ("hf://girih/encoders@main/../../e.safetensors", "cannot contain a '..' path segment"),
    ],
)
def test_what_is_not_there_is_refused(hub: Hub, identifier: str, message: str) -> None:
    found = refused(identifier)
    assert found.startswith(f"{identifier}: ")
    assert message in found


@pytest.mark.parametrize("kind", ["OSError", "FileMetadataError", "HTTPError"])
def test_other_failures_are_one_line(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def fail(*ignored: object, **options: object) -> None:
        raise getattr(huggingface_hub.errors, kind, OSError)("connection reset\nby peer")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    assert refused("hf://girih/encoders@main/e.safetensors").endswith(": cannot be fetched: connection reset")


def test_offline_the_cache_serves(hub: Hub, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("e.safetensors", (written / "encoder.safetensors").read_bytes())
    hub.put("c.pth", (written / "checkpoint_final.pth").read_bytes())
    before = {name: read_weights(f"hf://girih/encoders@main/{name}").header for name in ("e.safetensors", "c.pth")}
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name, header in before.items():
        assert read_weights(f"hf://girih/encoders@main/{name}").header == header
    found = refused("hf://girih/encoders@v1.0/e.safetensors")
    assert "the Hub cannot be reached, and the file is not in the cache" in found


def test_without_the_extra_the_way_to_get_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    found = refused("hf://girih/encoders@main/e.safetensors")
    assert "needs huggingface_hub: pip install 'girih-backbones[hub]'" in found


def test_a_path_is_never_an_identifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: Path) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "hf:" / "girih" / "encoders@main"
    folder.mkdir(parents=True)
    (folder / "e.safetensors").write_bytes((written / "encoder.safetensors").read_bytes())
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert read_weights(Path("hf://girih/encoders@main/e.safetensors"))  # a Path is local, whatever it is called
    assert "needs huggingface_hub" in refused("hf://girih/encoders@main/e.safetensors")
