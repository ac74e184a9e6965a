"""A detector trained one step by two processes is the detector trained one step by one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file


def train_one_step(store: Path, plan: str, out: Path, world: int) -> dict[str, torch.Tensor]:
    launcher = [] if world == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    done = subprocess.run(
        [
            sys.executable, *launcher, "-m", "girih.cli", "finetune",
            "--data", str(store), "--out", str(out), "--plan", plan,
            "--steps", "1", "--warmup-steps", "0", "--lr", "0.1", "--workers", "0", "--device", "cpu",
            "--object-fraction", "0.5",
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    checkpoint = out / "checkpoints" / "step_000000001"
    assert json.loads((checkpoint / "state.json").read_text())["world"] == world
    return load_file(checkpoint / "model.safetensors")


def test_two_processes_equal_one(store: Path, plan: str, tmp_path: Path) -> None:
    one = train_one_step(store, plan, tmp_path / "one", 1)
    two = train_one_step(store, plan, tmp_path / "two", 2)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=2e-6, rtol=2e-5)
