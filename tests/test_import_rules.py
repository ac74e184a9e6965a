"""What importing a piece brings with it, and what it must not."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def imported_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import girih_metrics", {"torch", "girih", "girih_data3d"}),
        ("import girih_data3d", {"torch", "SimpleITK", "dask", "girih"}),
        ("import girih_backbones", {"girih", "girih_ssl", "girih_detectors", "girih_data3d"}),
        ("import girih_ssl", {"girih", "girih_backbones", "girih_detectors", "girih_data3d"}),
        ("import girih_detectors", {"girih", "girih_backbones", "girih_ssl", "girih_data3d", "triton"}),
        ("import girih", {"torch", "numpy"}),
    ],
)
def test_a_library_brings_neither_siblings_nor_heavy_packages(code: str, forbidden: set[str]) -> None:
    assert not imported_by(code) & forbidden


def test_help_is_instant_and_needs_no_torch() -> None:
    call = "import contextlib, io\nfrom girih.cli import main\n"
    call += "with contextlib.redirect_stdout(io.StringIO()): main(['--help'])"
    assert not imported_by(call) & {"torch", "numpy", "accelerate"}
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "girih.cli", "--help"], check=True, capture_output=True, text=True)
        times.append(time.perf_counter() - start)
    assert "finetune" in done.stdout
    assert min(times) < 1.0


@pytest.mark.parametrize(
    "folder", [ROOT, *ROOT.glob("packages/*"), *ROOT.glob("packages/*/src"), *ROOT.glob("packages/*/src/*")], ids=str
)
def test_import_ssl_is_the_standard_library_from_every_folder(folder: Path) -> None:
    if not folder.is_dir():
        return
    code = "import ssl; assert ssl.OPENSSL_VERSION; print(ssl.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True)
    assert str(ROOT) not in done.stdout
