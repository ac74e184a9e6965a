"""From a prepared store to this rank's batches, and from a batch to a detector's images and targets."""

import hashlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

import girih_data3d
import girih_data3d.torch
from girih.plans import Plan

WITHOUT = {"instances": "; boxes alone train with --no-segmentation"}
"""What to do about labels that are missing."""


@dataclass(frozen=True)
class Survey:
    """What a training has to know of a dataset as a whole."""

    in_channels: int
    modality: str | None
    """None: not known, or not the same in all cases."""
    sha256: str
    """See `content_sha256`."""


def open_stores(paths: Collection[Path]) -> dict[str, girih_data3d.Store]:
    """Open prepared datasets, by their names.

    Raises:
        ValueError: no path, or two datasets of one name.
    """
    stores: dict[str, girih_data3d.Store] = {}
    for path in paths:
        store = girih_data3d.Store.open(path)
        if store.name in stores:
            raise ValueError(
                f"{stores[store.name].root} and {path} are both of the name {store.name!r}, wanted each once"
            )
        stores[store.name] = store
    if not stores:
        raise ValueError("no dataset is given, wanted at least one")
    return stores


def survey(store: girih_data3d.Store) -> Survey:
    """Look at all cases at once, so that a training does not find out in its third hour.

    Raises:
        ValueError: no case, or another number of channels than the first; dataset and case are named.
    """
    index = store.index
    if not len(index):
        raise ValueError(f"{store.root} holds no prepared case")
    first, channels = index.case_ids[0], int(index.channels[0])
    for n in set(index.channels) - {channels}:
        _refuse(store, index.channels == n, f"has {n} channels, {first!r} has {channels}")
    modalities = set(index.modalities)
    return Survey(
        in_channels=channels,
        modality=modalities.pop() if len(modalities) == 1 else None,
        sha256=content_sha256(store),
    )


def content_sha256(store: girih_data3d.Store) -> str:
    """Return a hash of the cases' names and the checksums of what they hold."""
    pairs = zip(store.index.case_ids, store.index.contents.tolist(), strict=True)
    return hashlib.sha256("\n".join(f"{name} {crc}" for name, crc in pairs).encode()).hexdigest()


def require_labels(store: girih_data3d.Store, kinds: Collection[str], *, objects: bool = False) -> None:
    """Check that every case has label maps of these kinds, "instances" or "semantic".

    Args:
        store: the dataset.
        kinds: of label maps.
        objects: whether every case must say which objects it holds, even if none.

    Raises:
        ValueError: a case has not; dataset, case and kind are named.
    """
    for kind in sorted(kinds):
        why = f"has no {kind!r} labels, which this training requires{WITHOUT.get(kind, '')}"
        _refuse(store, ~getattr(store.index, kind), why)
    if objects:
        _refuse(store, ~store.index.annotated, "is unlabelled: whether it holds objects is not known")


def _refuse(store: girih_data3d.Store, rows: Any, why: str) -> None:
    if rows.any():
        case_id = store.index.case_ids[int(rows.argmax())]
        raise ValueError(f"dataset {store.name!r} ({store.root}), case {case_id!r} {why}")


def plan_differences(plan: Plan, store: girih_data3d.Store) -> list[str]:
    """Say where a plan was made for other data than these; a plan without classes may be used with any dataset.

    Raises:
        ValueError: the classes differ, so that labels would mean something else.
    """
    spec = store.spec
    if plan.classes is not None and plan.classes != store.classes:
        raise ValueError(f"the plan's classes are {plan.classes}, those of {store.root} are {store.classes}")
    pairs = (
        ("dataset", None if plan.classes is None else plan.dataset, store.name),
        ("spacing_zyx_mm", plan.spacing_zyx_mm, spec.target_zyx_mm),
        ("normalisation", plan.normalisation, spec.record),
    )
    return [
        f"the plan's {name} is {wanted}, that of {store.root} is {found}"
        for name, wanted, found in pairs
        if wanted is not None and found is not None and wanted != found
    ]


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


def images_and_targets(batch: dict[str, Any]) -> tuple[Tensor, list[dict[str, Any]]]:
    """Return images (B, C, Z, Y, X) and one target per image: boxes, labels, and of the rest what the batch has.

    The rest: instances, valid, seed (a loss may draw from it) and case_id (errors name it).
    """
    optional = [key for key in ("instances", "valid", "seed", "case_id") if key in batch]
    targets = [
        {"boxes": boxes, "labels": labels, **{key: batch[key][b] for key in optional}}
        for b, (boxes, labels) in enumerate(zip(batch["boxes"], batch["labels"], strict=True))
    ]
    return batch["image"], targets
