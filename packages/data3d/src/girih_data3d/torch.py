"""Samples as torch batches, and a loader that can start at any step. The only module here that imports torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, default_collate

from girih_data3d.dataset import PatchDataset
from girih_data3d.errors import CorruptCaseError

LISTS = ("boxes", "labels")
TEXTS = ("case_id", "dataset")
PER_CHANNEL = ("image", "scale", "offset")


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join samples of `PatchDataset` into a batch.

    image is (B, C, Z, Y, X), or a list of B tensors if the numbers of channels differ (scale and offset likewise);
    boxes and labels are lists of B tensors, case_id and dataset lists of text, everything else is stacked. A key is in
    the batch only if every sample has it.

    Raises:
        ValueError: no samples.
    """
    if not samples:
        raise ValueError("no samples to join")
    batch: dict[str, Any] = {}
    for key in samples[0]:
        if not all(key in sample for sample in samples):
            continue
        values = [sample[key] for sample in samples]
        if key in TEXTS:
            batch[key] = values
            continue
        tensors = [torch.as_tensor(value) for value in values]
        apart = key in LISTS or (key in PER_CHANNEL and len({len(t) for t in tensors}) > 1)
        if apart:
            batch[key] = tensors
        elif len(tensors) == 1:
            batch[key] = tensors[0][None]  # nothing to copy
        else:
            batch[key] = default_collate(tensors)  # a worker stacks into shared memory
    return batch


def dequantise(batch: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    """Return the batch on a device, its image as float32 intensities (stored value * scale + offset)."""
    out = {key: _move(value, torch.device(device)) for key, value in batch.items()}
    scale, offset = out.pop("scale", None), out.pop("offset", None)
    images = out["image"] if isinstance(out["image"], list) else [*out["image"]]
    if scale is None or offset is None:
        images = [image.float() for image in images]
    else:
        images = [
            torch.addcmul(o[:, None, None, None], image.float(), s[:, None, None, None])
            for image, s, o in zip(images, scale, offset, strict=True)
        ]
    out["image"] = images if isinstance(out["image"], list) else torch.stack(images)
    return out


@dataclass(frozen=True)
class Steps:
    """Item numbers of the batches of one rank: step t holds t * batch_size * world + rank * batch_size + j."""

    batch_size: int
    start: int
    stop: int
    rank: int = 0
    world: int = 1

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            first = (step * self.world + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))

    def __len__(self) -> int:
        return self.stop - self.start


def make_loader(
    dataset: PatchDataset,
    *,
    batch_size: int,
    start: int,
    stop: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    context: str = "forkserver",
) -> DataLoader[dict[str, Any]]:
    """Return a loader of the batches of steps start..stop of one rank.

    The batch of a step depends on nothing but (step, rank, world, batch_size), so that a run resumed at any step, with
    any number of workers, sees what the uninterrupted one would have seen.

    Args:
        dataset: the samples.
        batch_size: samples per batch and rank.
        start: first step.
        stop: one past the last step.
        rank: of this process, from 0.
        world: number of processes.
        workers: processes that read; 0: read in this one.
        context: how workers start: "forkserver", "spawn" or "fork".

    Raises:
        ValueError: a number out of range.
        CorruptCaseError: while iterating, from whichever process read the damaged case, with its case and path.
    """
    if batch_size < 1 or workers < 0 or not 0 <= start <= stop or not 0 <= rank < world:
        given = f"batch_size={batch_size}, workers={workers}, start={start}, stop={stop}, rank={rank}, world={world}"
        raise ValueError(f"{given}: wanted batch_size >= 1, workers >= 0, 0 <= start <= stop, 0 <= rank < world")
    samples: Any = _Samples(dataset)  # has the two methods of a map-style dataset
    return _Loader(
        samples,
        batch_sampler=Steps(batch_size, start, stop, rank, world),
        collate_fn=_collate,
        num_workers=workers,
        multiprocessing_context=context if workers else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else the loader draws from the global one, and a resumed run draws once more
    )


class _Loader(DataLoader[dict[str, Any]]):
    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if isinstance(batch, CorruptCaseError):
                raise batch
            yield batch


@dataclass(frozen=True)
class _Samples:
    """The samples, and damage as a value: torch would carry an exception's text between processes, but not its case."""

    dataset: PatchDataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, g: int) -> dict[str, Any] | CorruptCaseError:
        try:
            return self.dataset[g]
        except CorruptCaseError as error:
            return error


def _collate(samples: Sequence[Any]) -> dict[str, Any] | CorruptCaseError:
    damage = [sample for sample in samples if isinstance(sample, CorruptCaseError)]
    return damage[0] if damage else collate(samples)


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, list):
        return [_move(item, device) for item in value]
    return value
