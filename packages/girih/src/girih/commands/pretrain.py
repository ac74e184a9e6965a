"""`girih pretrain OBJECTIVE`: train an encoder without (or with) labels and write its weights."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from accelerate import Accelerator
from tyro.conf import OmitArgPrefixes

import girih_backbones
import girih_data3d
import girih_data3d.torch
import girih_ssl
from girih.augment import make_augmentation
from girih.batches import Survey, make_batches, open_stores, plan_differences, require_labels, survey
from girih.labels import LabelMeanings, read_meanings, unnamed_labels
from girih.loop import Training, to_device, train, warn
from girih.networks import make_objective
from girih.plans import load_plan
from girih.recipes import Recipe
from girih.report import reconstruction_png
from girih.runs import RunFolder, plain, run_config, versions

Objective = TypeVar("Objective")
STEPS_PER_EPOCH = 250  # as nnU-Net counts
LABELLED_SHARE = 1 / 3
"""Of patches centred on a labelled voxel, where the objective reads semantic labels, as nnU-Net draws them."""
SHOWN = 3
"""Samples in reconstruction.png: the first of the run, always the same."""


@dataclass(frozen=True)
class Pretrain(Generic[Objective]):
    """Pre-train an encoder on prepared datasets.

    The defaults are the study's schedule and sizes (Eckstein et al. 2025, section 2.2: 4000 epochs of 250 steps, SGD
    1e-2, patch 192, batch 12). Other than there, precision is full unless asked for, the rate falls at every step,
    not at every epoch, and supervised pre-training has nnDetection's intensity augmentation, not nnU-Net's.
    """

    data: tuple[Path, ...]
    """Datasets made by `girih prepare`. Supervised objectives draw each with a frequency that grows with the square
    root of its size, others draw all cases alike."""
    out: Path
    """The run's folder: settings, metrics, plots, checkpoints and encoder.safetensors."""
    objective: Objective
    held_out: tuple[Path, ...] = ()
    """Prepared datasets to evaluate on: a scan of theirs among --data is an error, whatever its name or file format."""
    datasets: Path | None = None
    """JSON that says which label values are which class, for supervised objectives; without it every value of the
    semantic labels is a class, see the README of girih."""
    plan: str = "resenc_l"
    """Preset (resenc_l, retina_unet, retina_unet_v001, demo) or a plan.json: which encoder."""
    neck: Literal["unet", "plan"] = "unet"
    """What decodes the encoder's maps: a U-Net decoder, or the plan's neck, such as the U-FPN of Retina U-Net."""
    patch_zyx: tuple[int, int, int] = (192, 192, 192)
    """Training patch, voxels."""
    batch_size: int = 12
    """Patches per step over all processes."""
    recipe: OmitArgPrefixes[Recipe] = field(
        default_factory=lambda: Recipe(steps=1_000_000, lr=1e-2, momentum=0.99, clip_norm=12.0)
    )
    augment: bool | None = None
    """Rotate, scale and mirror the patches; where the objective reads semantic labels, change their intensities too, as
    `girih finetune` does. None: yes, unless the objective has its own augmentation (models_genesis, voco)."""
    training: OmitArgPrefixes[Training] = field(default_factory=Training)

    def run(self) -> None:
        """Train, and write encoder.safetensors at every checkpoint.

        Raises:
            ValueError: the data, plan, objective and run do not fit; the message says which and why.
        """
        folder = RunFolder(self.out)
        accelerator = self.training.make_accelerator(folder)
        plan, stores = load_plan(self.plan), open_stores(self.data)
        for store in stores.values():
            warn(accelerator, plan_differences(replace(plan, classes=None), store))
            for held_out in self.held_out:
                girih_data3d.check_no_leak(store, girih_data3d.Store.open(held_out))
        found = {name: survey(store) for name, store in stores.items()}
        told = {} if self.datasets is None else read_meanings(self.datasets, tuple(stores.values()))
        meanings = LabelMeanings(tuple(stores.values()), told)
        objective: Any = make_objective(
            self.objective,
            plan,
            patch_zyx=self.patch_zyx,
            in_channels=next(iter(found.values())).in_channels,
            seed=self.training.seed,
            neck=self.neck,
            datasets=meanings,
        )
        for store in stores.values():
            require_labels(store, objective.requires & {"instances", "semantic"})
        by_dataset, labelled = "dataset" in objective.requires, "semantic" in objective.requires
        if not by_dataset:
            _refuse_mixed_channels(found)
        if told and not labelled:
            raise ValueError(f"{self.datasets} says what labels mean, but this objective reads no labels")
        for name, info in told.items():
            warn(accelerator, unnamed_labels(stores[name], info))
        header: dict[str, dict[str, Any]] = {
            "spacing_zyx_mm": {name: store.spec.target_zyx_mm for name, store in stores.items()},
            "normalisation": {name: store.spec.record for name, store in stores.items()},
            "modality": {name: one.modality for name, one in found.items()},
        }
        for what, by_name in header.items():
            if _differ(by_name.values()):
                warn(accelerator, [f"the datasets differ in {what}, the encoder's file will not name one: {by_name}"])
        augment = not getattr(objective, "own_augmentation", False) if self.augment is None else self.augment
        n_per_epoch = STEPS_PER_EPOCH * self.batch_size
        counts = {name: len(store) for name, store in stores.items()}
        sampler = girih_data3d.PatchSampler(
            self.patch_zyx,
            object_fraction=LABELLED_SHARE if labelled else 0.0,
            around="semantic",
            geometry=girih_data3d.Geometry(order=3) if augment else None,
            dataset_weights=girih_ssl.dataset_weights(counts) if by_dataset else None,
            seed=self.training.seed,
        )
        transform = make_augmentation("base_more") if augment and labelled else None
        dataset = girih_data3d.PatchDataset(
            tuple(stores.values()), sampler, n_per_epoch=n_per_epoch, transform=transform
        )
        config = run_config(
            self,
            plan=plan.to_json(),
            dataset_names=list(stores),
            augmented=augment,
            datasets={
                name: {
                    "prepare": store.spec.to_json(),
                    "in_channels": found[name].in_channels,
                    "sha256": found[name].sha256,
                    "labels": meanings.get(name) if labelled else None,
                }
                for name, store in stores.items()
            },
        )

        def export(model: Any, steps: int) -> None:
            girih_backbones.save_weights(
                folder.path / "encoder.safetensors",
                encoder=model.encoder,
                stems=getattr(model, "stems", None),
                patch_zyx=self.patch_zyx,
                **{what: _common(by_name.values()) for what, by_name in header.items()},
                objective=type(self.objective).__name__.removesuffix("Config"),
                objective_config=plain(self.objective),
                steps=steps,
                versions=versions(),
            )
            if hasattr(model, "reconstruct"):
                _picture(model, dataset, accelerator, folder.path / "reconstruction.png")

        train(
            objective,
            make_batches(
                dataset,
                batch_size=self.batch_size,
                steps=self.recipe.steps,
                accelerator=accelerator,
                workers=self.training.workers,
            ),
            lambda model, batch: model(batch),
            self.recipe,
            [parameter for parameter in objective.parameters() if parameter.requires_grad],
            training=self.training,
            accelerator=accelerator,
            folder=folder,
            config=config,
            batch_size=self.batch_size,
            n_per_epoch=n_per_epoch,
            title="pre-training",
            on_checkpoint=export,
        )


def choose_objective(arguments: list[str]) -> tuple[tuple[str, type[Any]], list[str]] | None:
    """Return the objective named by the first argument and the other arguments; for help, print the list, return None.

    Raises:
        ValueError: no installed distribution offers an objective of that name.
    """
    known = girih_ssl.objectives()
    if arguments and arguments[0] in known:
        return (arguments[0], known[arguments[0]]), arguments[1:]
    listing = "\n".join(f"  {name:<16}{_summary(known, name)}" for name in known)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            f"usage: girih pretrain OBJECTIVE --data DATASET --out RUN [OPTIONS]\n\nobjectives:\n{listing}\n\n"
            "girih pretrain OBJECTIVE --help tells the options. A package adds an objective by the entry-point group\n"
            "girih.objectives."
        )
        return None
    raise ValueError(f"unknown objective {arguments[0]!r}; installed:\n{listing}")


def _summary(known: Mapping[str, type[Any]], name: str) -> str:
    """First line of an objective's docstring; a plug-in that cannot be imported is listed with its error."""
    try:
        lines = (known[name].__doc__ or "").strip().splitlines()
    except girih_ssl.PluginError as error:
        return f"(unusable: {error})"
    return lines[0] if lines else ""


def _refuse_mixed_channels(found: Mapping[str, Survey]) -> None:
    channels = {name: one.in_channels for name, one in found.items()}
    if len(set(channels.values())) > 1:
        raise ValueError(
            f"the datasets have different numbers of channels, {channels}; this objective wants one number"
        )


def _common(values: Collection[Any]) -> Any:
    """The value that all share, None if they differ."""
    return None if _differ(values) else next(iter(values))


def _differ(values: Collection[Any]) -> bool:
    first, *others = values
    return any(other != first for other in others)


def _picture(model: Any, dataset: girih_data3d.PatchDataset, accelerator: Accelerator, png: Path) -> None:
    """Draw what the objective makes of the run's first samples; leaves the random state as it was."""
    batch = girih_data3d.torch.collate([dataset[g] for g in range(SHOWN)])
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), accelerator.autocast():
        pictures = model.reconstruct(to_device(batch, accelerator.device))
    reconstruction_png({name: volumes.float().cpu().numpy() for name, volumes in pictures.items()}, png)
