import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from girih.checkpoints import latest_checkpoint, load_checkpoint, load_model, save_checkpoint
from girih.loop import Training
from girih.runs import RunFolder


def make() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(), nn.Linear(4, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def step(model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    model(torch.randn(5, 3)).square().mean().backward()
    optimiser.step()
    optimiser.zero_grad()


def state(step: int, world: int = 1, sha256: str = "a") -> dict:
    return {"g": 0, "epoch": 0, "step": step, "seconds": 0.0, "world": world, "config_sha256": sha256}


@pytest.fixture
def accelerator(tmp_path: Path) -> Accelerator:
    return Training(device="cpu").make_accelerator(RunFolder(tmp_path))


def test_going_on_from_a_checkpoint_is_going_on(tmp_path: Path, accelerator: Accelerator) -> None:
    model, optimiser = make()
    step(model, optimiser)
    saved = save_checkpoint(tmp_path, accelerator, model, optimiser, state(1))
    step(model, optimiser)  # draws from the global generator, whose state is in the checkpoint
    wanted = [parameter.detach().clone() for parameter in model.parameters()]

    model, optimiser = make()
    torch.manual_seed(99)
    assert load_checkpoint(saved, accelerator, model, optimiser, "a")["step"] == 1
    step(model, optimiser)
    assert all(found.equal(expected) for found, expected in zip(model.parameters(), wanted, strict=True))


def test_latest_is_a_text_file_and_two_are_kept(tmp_path: Path, accelerator: Accelerator) -> None:
    model, optimiser = make()
    step(model, optimiser)
    assert latest_checkpoint(tmp_path) is None
    for number in (1, 2, 3):
        save_checkpoint(tmp_path, accelerator, model, optimiser, state(number))
    assert (tmp_path / "latest").read_text() == "step_000000003"
    assert sorted(path.name for path in tmp_path.glob("step_*")) == ["step_000000002", "step_000000003"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step_000000003"


def test_a_half_written_checkpoint_is_neither_found_nor_in_the_way(tmp_path: Path, accelerator: Accelerator) -> None:
    model, optimiser = make()
    step(model, optimiser)
    save_checkpoint(tmp_path, accelerator, model, optimiser, state(1))
    torn = tmp_path / ".step_000000002.partial"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) == tmp_path / "step_000000001"
    save_checkpoint(tmp_path, accelerator, model, optimiser, state(2))
    assert not torn.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "train.pt", "rng_0.pt", "state.json"])
def test_a_damaged_file_is_named(tmp_path: Path, accelerator: Accelerator, name: str) -> None:
    model, optimiser = make()
    step(model, optimiser)
    saved = save_checkpoint(tmp_path, accelerator, model, optimiser, state(1))
    path = saved / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=name):
        load_checkpoint(saved, accelerator, *make(), "a")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_no_code_of_a_checkpoint_runs(tmp_path: Path, accelerator: Accelerator, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, optimiser = make()
    step(model, optimiser)
    saved = save_checkpoint(tmp_path, accelerator, model, optimiser, state(1))
    torch.save({"optimizer": Bomb()}, saved / "train.pt")
    (saved / "rng_0.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"train\.pt: cannot be read"):
        load_checkpoint(saved, accelerator, *make(), "a")
    assert not (tmp_path / "exploded").exists()


def test_another_run_or_another_number_of_processes_is_refused(tmp_path: Path, accelerator: Accelerator) -> None:
    model, optimiser = make()
    step(model, optimiser)
    saved = save_checkpoint(tmp_path, accelerator, model, optimiser, state(1, world=2))
    with pytest.raises(ValueError, match="another configuration"):
        load_checkpoint(saved, accelerator, *make(), "b")
    with pytest.raises(ValueError, match="written by 2 processes, resumed by 1"):
        load_checkpoint(saved, accelerator, *make(), "a")


@pytest.mark.parametrize("name", ["step_000000009", "../step_000000001", ""])
def test_latest_must_name_a_checkpoint_of_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "latest").write_text(name)
    with pytest.raises(ValueError, match="latest names"):
        latest_checkpoint(tmp_path)


def test_the_model_of_a_checkpoint_is_plain_safetensors(tmp_path: Path, accelerator: Accelerator) -> None:
    model, optimiser = make()
    step(model, optimiser)
    saved = save_checkpoint(tmp_path, accelerator, model, optimiser, state(1))
    tensors = load_model(saved)
    assert all(tensors[name].equal(tensor) for name, tensor in model.state_dict().items())
    assert json.loads((saved / "state.json").read_text())["schema"] == "girih-state/1"
