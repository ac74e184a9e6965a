"""Datasets behind any zarr store read as the local ones do, bit for bit, and are as loud about damage."""

import pickle
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
import zarr
from zarr.abc.store import Store as ZarrStore
from zarr.buffer import cpu
from zarr.storage import FsspecStore, LocalStore, MemoryStore, ObjectStore, WrapperStore

import girih_data3d as d3
from girih_data3d.layout import case_key


class WithRanges(SimpleHTTPRequestHandler):
    """A file server that answers requests for a range of bytes."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self.answer(200, content)
        elif wanted[1] == "":
            self.answer(206, content[-int(wanted[2]) :], max(0, len(content) - int(wanted[2])), len(content))
        else:
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            if first > last:
                self.send_error(416)
                return
            self.answer(206, content[first : last + 1], first, len(content))

    def answer(self, status: int, body: bytes, first: int = 0, whole: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{whole}")
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def served(overlapping: d3.Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server of the dataset `overlapping`."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(WithRanges, directory=str(overlapping.root)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def over_http(address: str) -> ZarrStore:
    return ObjectStore(obstore.store.HTTPStore.from_url(address, client_options={"allow_http": True}), read_only=True)


def in_memory(root: Path) -> ZarrStore:
    files = [path for path in root.rglob("*") if path.is_file()]
    return MemoryStore({p.relative_to(root).as_posix(): cpu.Buffer.from_bytes(p.read_bytes()) for p in files})


def assert_same(near: d3.Store, far: d3.Store) -> None:
    assert (far.name, far.classes, far.spec, far.case_ids) == (near.name, near.classes, near.spec, near.case_ids)
    ours, theirs = near["two"], far["two"]
    assert theirs.checksum == ours.checksum
    assert theirs.boxes.tolist() == ours.boxes.tolist()
    for start, size in [((0, 0, 0), ours.shape[1:]), ((-3, 20, 30), (20, 30, 20)), ((5, 33, 1), (1, 1, 40))]:
        for raw in (False, True):
            found = theirs.read_patch(start, size, raw=raw)
            np.testing.assert_array_equal(found, ours.read_patch(start, size, raw=raw), strict=True)
        for kind in ours.label_kinds:
            found = theirs.read_label_patch(kind, start, size)
            np.testing.assert_array_equal(found, ours.read_label_patch(kind, start, size), strict=True)
    np.testing.assert_array_equal(theirs.foreground, ours.foreground, strict=True)
    np.testing.assert_array_equal(theirs.lazy()[1:, 3:9, :, 4:], ours.lazy()[1:, 3:9, :, 4:], strict=True)
    with pytest.raises(ValueError, match="not on local disk"):
        theirs.folder  # noqa: B018


MAKERS: dict[str, Callable[[Path], ZarrStore]] = {
    "memory": in_memory,
    "zarr": LocalStore,
    "obstore": lambda root: ObjectStore(obstore.store.LocalStore(root)),
    "fsspec": lambda root: FsspecStore.from_url(f"file://{root}", read_only=True),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_stores_of_objects(overlapping: d3.Store, make: Callable[[Path], ZarrStore]) -> None:
    store = make(overlapping.root)
    far = d3.Store.open(store)
    assert_same(overlapping, far)
    theirs = zarr.open_array(store, path=f"{case_key('two')}/0", mode="r")
    np.testing.assert_array_equal(theirs[:, 3:20, 4:, :40], far["two"].read_patch((3, 4, 0), (17, 36, 40), raw=True))
    far["two"].export_nifti(overlapping.root / "far.nii.gz", channel=1)
    assert d3.read_scan(overlapping.root / "far.nii.gz").shape == (1, 37, 40, 45)


def test_http(overlapping: d3.Store, served: str) -> None:
    far = d3.Store.open(over_http(served))
    assert_same(overlapping, far)
    assert_same(overlapping, pickle.loads(pickle.dumps(far)))
    case = far["two"]
    case.read_patch((0, 0, 0), (2, 2, 2))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(case)).foreground, case.foreground)


def mean(case: d3.Case) -> float:
    return float(case.read_patch((0, 0, 0), case.shape[1:]).mean())


def test_http_from_another_process(served: str) -> None:
    case = d3.Store.open(over_http(served))["two"]
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(mean, case).result(60) == mean(case)


def read_all(store: d3.Store) -> None:
    case = store["two"]
    case.read_patch((0, 0, 0), case.shape[1:])
    for kind in case.label_kinds:
        case.read_label_patch(kind, (0, 0, 0), case.shape[1:])
    assert len(case.foreground)


@pytest.mark.parametrize("how", ["http", "memory"])
def test_every_damage_raises(overlapping: d3.Store, served: str, how: str) -> None:
    rng = np.random.default_rng(0)
    over = d3.Store.open(over_http(served))
    for path in sorted(p for p in overlapping["two"].folder.rglob("*") if p.is_file()):
        good = path.read_bytes()
        flipped = bytearray(good)
        flipped[int(rng.integers(len(good)))] ^= int(rng.integers(1, 256))
        for damage in (flipped, good[:-1], None):
            path.unlink()
            if damage is not None:
                path.write_bytes(damage)
            with pytest.raises(d3.CorruptCaseError) as caught:
                read_all(over if how == "http" else d3.Store.open(in_memory(overlapping.root)))
            assert caught.value.case_id == "two"
            array = path.parent.relative_to(overlapping.root).as_posix().partition("/c/")[0]
            assert f"/{array}" in caught.value.path
            path.write_bytes(good)
    read_all(over)


def test_shards_that_change_after_opening(overlapping: d3.Store, served: str) -> None:
    case = d3.Store.open(over_http(served))["two"]
    whole = case.read_patch((0, 0, 0), case.shape[1:])
    path = overlapping["two"].folder / "0/c/0/0/0/0"
    good = path.read_bytes()
    for damage in (good[: len(good) // 2], good[:10], b"", None):
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        with pytest.raises(d3.CorruptCaseError, match="0/c/0/0/0/0: not readable"):
            case.read_patch((0, 0, 0), case.shape[1:])
    path.write_bytes(good)
    np.testing.assert_array_equal(case.read_patch((0, 0, 0), case.shape[1:]), whole)


def test_what_a_remote_dataset_needs(overlapping: d3.Store) -> None:
    whole = in_memory(overlapping.root)
    with pytest.raises(KeyError, match="no case 'x' in memory://"):
        d3.Store.open(whole)["x"]
    for lost, message in [
        ("index.zarr/boxes/c/0/0", "boxes/c/0/0: missing"),
        ("dataset.json", "dataset.json: missing"),
    ]:
        del whole._store_dict[lost]
        with pytest.raises(d3.ManifestError, match=message):
            d3.Store.open(whole)


def test_network_trouble_is_not_called_damage(served: str) -> None:
    case = d3.Store.open(over_http(served))["two"]
    store = obstore.store.HTTPStore.from_url(
        "http://127.0.0.1:1", client_options={"allow_http": True}, retry_config={"max_retries": 0}
    )
    case._image._files._store = ObjectStore(store, read_only=True)
    with pytest.raises(obstore.exceptions.GenericError):
        case.read_patch((0, 0, 0), (2, 2, 2))


def test_windows_outside_are_refused(overlapping: d3.Store) -> None:
    reader = d3.Store.open(in_memory(overlapping.root))["two"]._image
    for start, size in [((0, 0, -1, 0), (1, 1, 1, 1)), ((0, 0, 0, 0), (3, 1, 1, 1)), ((0, 0, 0, 0), (0, 1, 1, 1))]:
        with pytest.raises(ValueError, match="leaves the array"):
            reader.read_into(np.zeros(size, np.float32), start)


def test_patches_for_training(overlapping: d3.Store, served: str) -> None:
    sampler = d3.PatchSampler((16, 16, 16), geometry=d3.Geometry())
    near, far = (
        d3.PatchDataset(store, sampler, n_per_epoch=4) for store in (overlapping, d3.Store.open(over_http(served)))
    )
    for g in range(4):
        one, other = near[g], far[g]
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_requests_of_a_patch(overlapping: d3.Store) -> None:
    asked: list[object] = []

    class Counting(WrapperStore[ZarrStore]):
        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            asked.append(byte_range)
            return await self._store.get(key, prototype, byte_range)

    case = d3.Store.open(Counting(in_memory(overlapping.root)))["two"]
    asked.clear()
    case.read_patch((0, 0, 0), case.shape[1:])
    assert len(asked) <= 6  # the index, and sixteen chunks in a few ranges
    asked.clear()
    case.read_patch((10, 10, 10), (2, 2, 2))
    assert len(asked) == 1
