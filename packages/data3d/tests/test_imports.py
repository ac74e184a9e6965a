"""What the library pulls in, and that the README's lines run."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

import girih_data3d as d3

README = Path(__file__).parents[1] / "README.md"


def run(program: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_heavy_imports(tmp_path: Path) -> None:
    heavy = "torch", "SimpleITK", "monai", "dask", "matplotlib"
    program = f"import sys, girih_data3d; print([m for m in {heavy} if m in sys.modules])"
    assert run(program, tmp_path).strip() == "[]"


def test_public_names_exist() -> None:
    assert sorted(d3.__all__) == d3.__all__
    assert all(hasattr(d3, name) for name in d3.__all__)


def test_readme_runs(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    for name in ("a", "b"):
        volume = np.random.default_rng(0).normal(size=(40, 50, 60)).astype(np.float32)
        d3.write_nifti(volume, tmp_path / "scans" / f"{name}.nii.gz", affine=np.eye(4))
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert snippets
    for snippet in snippets:
        run(snippet, tmp_path)
