"""A training killed in the middle and resumed is, bit for bit, the training that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from girih.checkpoints import latest_checkpoint
from girih.cli import main

STEPS = 6
KILL_AFTER = 3  # a checkpoint stands at step 2; the kill falls between it and the next


def command(kind: str, store: Path, plan: str, out: Path, world: int, steps: int = STEPS) -> list[str]:
    program = ["-m", "girih.cli"] if world == 1 else [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world), "-m", "girih.cli"
    ]  # fmt: skip
    arguments = {
        "pretrain": ["pretrain", "mae", "--patch-zyx", "32", "32", "32", "--batch-size", "2", "--momentum", "0.9"],
        "finetune": ["finetune", "--augmentation", "base_more", "--warmup-steps", "2"],
    }[kind]
    return [
        sys.executable, *program, *arguments, "--data", str(store), "--out", str(out), "--plan", plan,
        "--steps", str(steps), "--lr", "0.01", "--workers", "0", "--checkpoint-every", "2",
        "--device", "cpu", "--resume",
    ]  # fmt: skip


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def run(*args) -> None:
    done = subprocess.run(command(*args), env=environment(), capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr


def run_and_kill(kind: str, store: Path, plan: str, out: Path, world: int) -> None:
    process = subprocess.Popen(
        command(kind, store, plan, out, world), env=environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    metrics = out / "metrics.jsonl"
    for _ in range(2400):
        if metrics.exists() and metrics.read_text().count("\n") >= KILL_AFTER:
            break
        assert process.poll() is None, "the training ended before it could be killed"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def losses(run: Path, steps: int = STEPS) -> list[float]:
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    return [row["loss"] for row in rows]


def same_weights(one: Path, other: Path) -> bool:
    expected, found = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return expected.keys() == found.keys() and all(expected[name].equal(found[name]) for name in expected)


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
@pytest.mark.parametrize("world", [1, 2])
def test_killed_and_resumed_equals_uninterrupted(kind: str, world: int, store: Path, plan: str, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(kind, store, plan, whole, world)
    run_and_kill(kind, store, plan, broken, world)
    stopped_at = latest_checkpoint(broken / "checkpoints")
    assert stopped_at is not None
    assert json.loads((stopped_at / "state.json").read_text())["step"] < STEPS
    run(kind, store, plan, broken, world)

    assert losses(broken) == losses(whole)
    last = f"step_{STEPS:09d}"
    assert same_weights(whole / "checkpoints" / last, broken / "checkpoints" / last)
    state = json.loads((broken / "checkpoints" / last / "state.json").read_text())
    assert state["world"] == world  # torchrun really started this many
    assert not list((broken / "checkpoints").glob(".*"))


def test_a_moved_plan_is_the_same_run_and_a_changed_one_another(
    store: Path, plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, out = json.loads(Path(plan).read_text()), tmp_path / "run"
    first, moved = tmp_path / "first.json", tmp_path / "moved.json"
    arguments = [
        "finetune", "--data", store, "--out", out, "--steps", 1, "--warmup-steps", 0, "--augmentation", "none",
        "--workers", 0, "--device", "cpu", "--resume", "--plan",
    ]  # fmt: skip
    for path, content, code in ((first, own, 0), (moved, own, 0), (moved, own | {"batch_size": 4}, 2)):
        path.write_text(json.dumps(content))
        assert main([str(argument) for argument in (*arguments, path)]) == code
    assert "cannot resume with another plan.batch_size" in capsys.readouterr().err


@pytest.mark.long
def test_twenty_kills_at_random_times_change_nothing(store: Path, plan: str, tmp_path: Path) -> None:
    steps, whole, broken = 400, tmp_path / "whole", tmp_path / "broken"
    run("finetune", store, plan, whole, 1, steps)
    rng = random.Random(0)
    for _ in range(20):
        process = subprocess.Popen(
            command("finetune", store, plan, broken, 1, steps), env=environment(), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(rng.uniform(1, 10))
        assert process.poll() is None, "the training ended before it could be killed twenty times: raise `steps`"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    run("finetune", store, plan, broken, 1, steps)
    assert losses(broken, steps) == losses(whole, steps)
    last = f"checkpoints/step_{steps:09d}"
    assert same_weights(whole / last, broken / last)
