"""A benchmark that nobody runs every day still runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_objectives_are_measured_against_their_references() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "objectives.py", "--tiny"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name in ("mae", "s3d", "models_genesis", "voco", "multitalent"):
        assert re.search(rf"^\| {name} \| [\dx ]+ \|", done.stdout, re.MULTILINE), done.stdout
    assert "| 4 x 16^3 |" in done.stdout
    assert re.search(r"^\| Models Genesis, speed .* \| >= 10 \|", done.stdout, re.MULTILINE), done.stdout
