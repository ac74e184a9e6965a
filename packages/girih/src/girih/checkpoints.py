"""Run checkpoints: written aside, synced, renamed; no pickle is ever loaded. Each rank keeps its own random state."""

import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.swa_utils import AveragedModel

from girih.atomic import write_json, write_text
from girih.runs import read_json

FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
KEEP = 2  # the newest, and one before it should a disk lose the newest


def save_checkpoint(
    folder: Path,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    *,
    average: AveragedModel | None = None,
) -> Path:
    """Write `folder/step_<9 digits>/` and point `folder/latest` to it. Called by every process.

    `state` holds g, epoch, step, world and config_sha256; `average` is the moving average of the model, if one is kept.
    """
    final = folder / f"step_{state['step']:09d}"
    partial = folder / f".{final.name}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    torch.save(_random_state(), partial / f"rng_{accelerator.process_index}.pt")
    weights: dict[str, Any] = get_model_state_dict(model, options=FULL)
    train = {"optimizer": get_optimizer_state_dict(model, optimizer, options=FULL)}
    if accelerator.scaler is not None:
        train["scaler"] = accelerator.scaler.state_dict()
    if average is not None:
        train["average"] = average.state_dict()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        content = save({name: tensor.contiguous() for name, tensor in weights.items()})
        (partial / "model.safetensors").write_bytes(content)  # save_file would make a file that nobody else may read
        torch.save(train, partial / "train.pt")
        write_json(partial / "state.json", {"schema": "girih-state/1", **state})
        for file in partial.iterdir():
            _sync(file)
        _sync(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.replace(final)
        _sync(folder)
        write_text(folder / "latest", final.name)
        for old in sorted(folder.glob("step_*"))[:-KEEP]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def load_checkpoint(
    checkpoint: Path,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config_sha256: str,
    *,
    average: AveragedModel | None = None,
) -> dict[str, Any]:
    """Put a checkpoint's state into its owners and return its state.json. Called by every process.

    Raises:
        ValueError: it was written by another configuration or another number of processes, or a file is damaged.
    """
    state = read_json(checkpoint / "state.json", "girih-state", "a checkpoint")
    if state["config_sha256"] != config_sha256:
        raise ValueError(f"{checkpoint}: written by another configuration")
    if state["world"] != accelerator.num_processes:
        raise ValueError(
            f"{checkpoint}: written by {state['world']} processes, resumed by {accelerator.num_processes}; "
            "the batches depend on their number"
        )
    weights: dict[str, Any] = dict(load_model(checkpoint))
    set_model_state_dict(model, weights, options=FULL)
    train = _load(checkpoint / "train.pt")
    # torch cannot spread an optimiser state without tensors (SGD without momentum) over processes, nor does it have to.
    options = FULL if train["optimizer"]["state"] else StateDictOptions()
    set_optimizer_state_dict(model, optimizer, train["optimizer"], options=options)
    if accelerator.scaler is not None and "scaler" in train:
        accelerator.scaler.load_state_dict(train["scaler"])
    if average is not None:
        average.load_state_dict(train["average"])
    random = _load(checkpoint / f"rng_{accelerator.process_index}.pt")
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])
    return state


def load_model(checkpoint: Path, *, averaged: bool = False) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint's model, or of its moving average.

    Raises:
        ValueError: the file is missing or damaged, or holds no average.
    """
    if averaged:
        path = checkpoint / "train.pt"
        tensors = _load(path, mmap=True).get("average")
        if tensors is None:
            raise ValueError(f"{path}: holds no moving average of the weights")
        return {name.removeprefix("module."): t for name, t in tensors.items() if name.startswith("module.")}
    path = checkpoint / "model.safetensors"
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of `folder`, or None.

    Raises:
        ValueError: `latest` names a checkpoint that is not there.
    """
    pointer = folder / "latest"
    if not pointer.exists():
        return None
    name = pointer.read_text(encoding="utf-8").strip()
    if Path(name).name != name or not (folder / name / "state.json").is_file():
        raise ValueError(f"{pointer} names {name!r}, which is not a complete checkpoint in {folder}")
    return folder / name


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _load(path: Path, *, mmap: bool = False) -> Any:
    """Read what torch.save wrote; with `mmap` only what is used of it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def _sync(path: Path) -> None:
    """Force a file or folder to disk. Windows cannot open folders; there the rename alone has to do."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
