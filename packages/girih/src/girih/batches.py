"""From a prepared store to this rank's batches, and from a batch to a detector's images and targets."""

from collections.abc import Callable, Iterable
from typing import Any

from accelerate import Accelerator
from torch import Tensor

import girih_data3d
import girih_data3d.torch


def first_case(store: girih_data3d.Store) -> girih_data3d.Case:
    """Return the first case, which stands for all: channels, spacing and modality are the same in one dataset.

    Raises:
        ValueError: the dataset has no case.
    """
    if not store.case_ids:
        raise ValueError(f"{store.root} holds no prepared case")
    return store[store.case_ids[0]]


def make_batches(
    dataset: girih_data3d.PatchDataset, *, batch_size: int, steps: int, accelerator: Accelerator, workers: int
) -> Callable[[int], Iterable[dict[str, Any]]]:
    """Return a function: step -> this rank's batches from that step to the last.

    Raises:
        ValueError: `batch_size`, which counts the samples of all processes, does not divide by their number.
    """
    world = accelerator.num_processes
    if batch_size % world:
        raise ValueError(f"batch_size {batch_size} does not divide by {world} processes")
    return lambda start: girih_data3d.torch.make_loader(
        dataset,
        batch_size=batch_size // world,
        start=start,
        stop=steps,
        rank=accelerator.process_index,
        world=world,
        workers=workers,
    )


def images_and_targets(batch: dict[str, Any]) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Return images (B, C, Z, Y, X) and one target per image: boxes, labels, and instances and valid where known."""
    optional = [key for key in ("instances", "valid") if key in batch]
    targets = [
        {"boxes": boxes, "labels": labels, **{key: batch[key][b] for key in optional}}
        for b, (boxes, labels) in enumerate(zip(batch["boxes"], batch["labels"], strict=True))
    ]
    return batch["image"], targets
