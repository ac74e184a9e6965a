"""Neuroglancer, in a headless Chromium, shows a prepared case: image and objects, in millimetres."""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import neuroglancer
import numpy as np
import pytest
from PIL import Image

import girih_data3d as d3

CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
FLAGS = ("--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
PATIENCE_S = 120


class Handler(SimpleHTTPRequestHandler):
    """Byte ranges and pages of other origins, as object stores allow them."""

    asked: list[str]

    def end_headers(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Access-Control-Allow-Headers", "*")
        super().end_headers()

    def do_OPTIONS(self) -> None:
        self.send_response(204)
        self.end_headers()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = Path(self.translate_path(self.path))
        wanted = self.headers.get("Range")
        if wanted is None or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        first, last = wanted.removeprefix("bytes=").split("-")
        low = int(first) if first else len(content) - int(last)
        high = min(int(last), len(content) - 1) if first and last else len(content) - 1
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {low}-{high}/{len(content)}")
        self.send_header("Content-Length", str(high + 1 - low))
        self.end_headers()
        self.wfile.write(content[low : high + 1])

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def served(prepared: d3.Store) -> Iterator[tuple[str, list[str]]]:
    """The address of a prepared case, and the paths that were asked for."""
    asked: list[str] = []
    handler = type("Recording", (Handler,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(prepared["case0"].folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of neuroglancer's own server
def test_neuroglancer_shows_a_case(served: tuple[str, list[str]], prepared: d3.Store, tmp_path: Path) -> None:
    address, asked = served
    layers = [
        {
            "type": "image",
            "source": f"{address}/|zarr3:",
            "name": "scan",
            "shaderControls": {"normalized": {"range": [-500, 500]}},
        },
        {"type": "segmentation", "source": f"{address}/labels/instances/|zarr3:", "name": "objects"},
    ]
    neuroglancer.set_server_bind_address("127.0.0.1")
    viewer = neuroglancer.Viewer()
    viewer.set_state(neuroglancer.ViewerState({"layers": layers, "layout": "4panel", "showSlices": False}))
    browser = subprocess.Popen(
        [str(CHROMIUM), *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={tmp_path}", viewer.get_viewer_url()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    shots: list[bytes] = []
    try:
        waiting = threading.Thread(
            target=lambda: shots.append(viewer.screenshot(size=[600, 600]).screenshot.image), daemon=True
        )
        waiting.start()
        waiting.join(PATIENCE_S)
        until = time.monotonic() + PATIENCE_S
        while "z" not in viewer.state.dimensions.names and time.monotonic() < until:  # the state follows the picture
            time.sleep(0.1)
        dimensions = viewer.state.dimensions
    finally:
        browser.terminate()
        browser.wait()
        neuroglancer.stop()
    assert shots, f"no picture within {PATIENCE_S} s; asked for {asked}"
    assert any("/0/c/" in path for path in asked)
    assert any("/labels/instances/0/c/" in path for path in asked)
    picture = np.asarray(Image.open(BytesIO(shots[0])).convert("RGB")).astype(int)
    grey = picture[(np.ptp(picture, axis=2) == 0) & (picture[..., 0] != 128)]  # 128: around the volume
    assert len(np.unique(grey[:, 0])) > 50  # noise, not an empty frame
    metres = [dimensions[axis].scale for axis in "zyx"]
    assert metres == pytest.approx([mm / 1000 for mm in prepared["case0"].spacing_zyx_mm])
