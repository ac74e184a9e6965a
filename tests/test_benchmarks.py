"""A benchmark that nobody runs every day still runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def tiny(script: str) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, "--tiny"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_objectives_are_measured_against_their_references() -> None:
    found = tiny("objectives.py")
    for name in ("mae", "s3d", "models_genesis", "voco", "multitalent"):
        assert re.search(rf"^\| {name} \| [\dx ]+ \|", found, re.MULTILINE), found
    assert "| 4 x 16^3 |" in found
    assert re.search(r"^\| Models Genesis, speed .* \| >= 10 \|", found, re.MULTILINE), found


def test_inference_is_measured() -> None:
    found = tiny("inference.py")
    assert "| 256x256x256 | 64 | 37 | 27 | 2.4x |" in found
    assert re.search(r"^\| 200 boxes, scattered \| girih \| \d+ \| [\d.]+ \|", found, re.MULTILINE), found
    assert re.search(r"^\| retina_unet_v002 at 1/16 .* \| 64\^3, 64\^3 \| 1 x 8 \|", found, re.MULTILINE), found
    assert re.search(r"^\| 60x48x48 \| tiny \| 32\^3 \| 0.5 \| 12 \| \d+ \|", found, re.MULTILINE), found


def test_deformable_attention_is_held_against_grid_sample() -> None:  # without a GPU in Triton's interpreter
    found = tiny("deformable_attention.py")
    for case in ("encoder, tiny | 28, 28 | 16 | float32", "decoder, tiny | 28, 3 | 16 | bfloat16"):
        for op in ("plain", "fused"):
            row = re.escape(f"| {case} | {op} | girih |") + r"( [\d.]+ \|){3} nan \| [\d.]+ \|"
            assert re.search(row, found), found


def test_deformable_detr_is_held_against_grid_sample_and_its_memory_counted() -> None:
    found = tiny("detr.py")
    for what in ("training step", "inference"):
        assert re.search(rf"^\| {what} \| girih \| [\d.]+ \| [\d.]+x \| - \|", found, re.MULTILINE), found
    assert re.search(r"^\| matching \| [\d.]+ \| [\d.]+ % \| <= 3 % \|", found, re.MULTILINE), found
    for again in ("nothing", "encoder and backbone"):
        assert re.search(rf"^\| .* \| 32x32x64, 2 \| {again} \| ([\d.]+ \| ){{3}}[\d.]+ \|", found, re.MULTILINE), found
