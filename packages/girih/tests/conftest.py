import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from girih.samples import SampleSet, SamplesUnavailable, fetch

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")

PATIENCE_S = 60
"""What a browser may take for one answer."""


@pytest.fixture(scope="session")
def samples() -> SampleSet:
    """The real scans, fetched once. Away from the registry its tests are skips, or failures if they are required."""
    try:
        return fetch()
    except SamplesUnavailable as reason:
        if os.environ.get("GIRIH_REQUIRE_SAMPLES") == "1":
            raise
        pytest.skip(f"the sample scans cannot be had: {str(reason).splitlines()[0]}")


class Tab:
    """A page in headless Chromium, worked over the DevTools protocol through a pipe."""

    def __init__(self, program: str, profile: Path) -> None:
        ours, theirs = os.pipe(), os.pipe()  # theirs: what it writes
        self._to, self._from, self._read = os.fdopen(ours[1], "wb"), theirs[0], b""
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (ours[0], theirs[1])]
        redirect = ["bash", "-c", f'exec "$@" 3<&{high[0]} 4>&{high[1]}', "bash"]
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--remote-debugging-pipe", "--disable-background-networking", f"--user-data-dir={profile}"]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        self._process = subprocess.Popen([*redirect, program, *flags], pass_fds=high, **silent)
        for fd in (ours[0], theirs[1], *high):
            os.close(fd)
        self._sent, self._session = 0, None
        self.complaints: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; what the page complains of meanwhile is kept."""
        self._sent += 1
        session = {} if self._session is None else {"sessionId": self._session}
        message = {"id": self._sent, "method": method, "params": parameters, **session}
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            answer = self._receive()
            if answer.get("id") == self._sent:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def show(self, page: Path, width: int = 1280, height: int = 900, *, dark: bool = False) -> None:
        """Open a page, and wait until its viewer has all pictures of a case."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setScrollbarsHidden", hidden=True)
        self.ask("Emulation.setEmulatedMedia", features=scheme)
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.ask("Page.navigate", url=page.as_uri())
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")
        self.wait("document.querySelector('.viewer')?.getAttribute('aria-busy') !== 'true'")

    def wait(self, condition: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < until, f"{condition}; the page said {self.complaints}"
            time.sleep(0.02)

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def key(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if kind == "keyDown" and len(key) == 1 else {}
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def photograph(self, png: Path) -> None:
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        png.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        with contextlib.suppress(RuntimeError, OSError):
            self._session = None
            self.ask("Browser.close")
        self._to.close()
        os.close(self._from)
        self._process.wait(30)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._from], [], [], PATIENCE_S)
            more = os.read(self._from, 1 << 20) if ready else b""
            if not more:
                raise RuntimeError("the browser ended" if ready else f"the browser said nothing for {PATIENCE_S} s")
            self._read += more
        text, _, self._read = self._read.partition(b"\0")
        message = json.loads(text)
        if message.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(json.dumps(message["params"]))
        return message


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a browser. Without one its tests are skips, or failures if it is required."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        if os.environ.get("GIRIH_REQUIRE_BROWSER") == "1":
            pytest.fail("GIRIH_REQUIRE_BROWSER=1, but no Chromium is installed")
        pytest.skip("no Chromium is installed, the page was not looked at in a browser")
    return found


@pytest.fixture(scope="module")
def tab(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """An empty page in a browser."""
    opened = Tab(chromium, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def _fresh_page(request: pytest.FixtureRequest) -> None:
    if "tab" in request.fixturenames:
        request.getfixturevalue("tab").complaints.clear()
