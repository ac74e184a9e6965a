"""`girih pretrain OBJECTIVE`: train an encoder without (or with) labels and write its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from tyro.conf import OmitArgPrefixes

import girih_backbones
import girih_data3d
import girih_ssl
from girih.batches import make_batches, plan_differences, survey
from girih.loop import Recipe, Training, train, warn
from girih.networks import make_objective
from girih.plans import load_plan
from girih.runs import RunFolder, plain, run_config, versions

Objective = TypeVar("Objective")
STEPS_PER_EPOCH = 250  # as nnU-Net counts


@dataclass(frozen=True)
class Pretrain(Generic[Objective]):
    """Pre-train an encoder on a prepared dataset.

    The defaults are the study's schedule and sizes (Eckstein et al. 2025, section 2.2: 4000 epochs of 250 steps, SGD
    1e-2, patch 192, batch 12). Other than there, precision is full unless asked for, and the rate falls at every step,
    not at every epoch.
    """

    data: Path
    """A dataset made by `girih prepare`."""
    out: Path
    """The run's folder: settings, metrics, plot, checkpoints and encoder.safetensors."""
    objective: Objective
    plan: str = "resenc_l"
    """Preset (resenc_l, retina_unet, demo) or a plan.json: which encoder."""
    patch_zyx: tuple[int, int, int] = (192, 192, 192)
    """Training patch, voxels."""
    batch_size: int = 12
    """Patches per step over all processes."""
    recipe: OmitArgPrefixes[Recipe] = field(
        default_factory=lambda: Recipe(steps=1_000_000, lr=1e-2, momentum=0.99, clip_norm=12.0)
    )
    augment: bool = True
    """Rotate, scale and mirror the patches."""
    training: OmitArgPrefixes[Training] = field(default_factory=Training)

    def run(self) -> None:
        """Train, and write encoder.safetensors at every checkpoint.

        Raises:
            ValueError: the data, plan, objective and run do not fit; the message says which and why.
        """
        folder = RunFolder(self.out)
        accelerator = self.training.make_accelerator(folder)
        plan, store = load_plan(self.plan), girih_data3d.Store.open(self.data)
        warn(accelerator, plan_differences(replace(plan, classes=None), store))
        found = survey(store)
        objective: Any = make_objective(
            self.objective, plan, patch_zyx=self.patch_zyx, in_channels=found.in_channels, seed=self.training.seed
        )
        survey(store, labels=objective.requires & {"instances", "semantic"})
        n_per_epoch = STEPS_PER_EPOCH * self.batch_size
        sampler = girih_data3d.PatchSampler(
            self.patch_zyx,
            object_fraction=0.0,
            geometry=girih_data3d.Geometry(order=3) if self.augment else None,
            seed=self.training.seed,
        )
        dataset = girih_data3d.PatchDataset(store, sampler, n_per_epoch=n_per_epoch)
        config = run_config(
            self,
            plan=plan.to_json(),
            prepare=store.spec.to_json(),
            in_channels=found.in_channels,
            dataset_sha256=found.sha256,
        )

        def export(model: Any, steps: int) -> None:
            girih_backbones.save_weights(
                folder.path / "encoder.safetensors",
                encoder=model.encoder,
                patch_zyx=self.patch_zyx,
                spacing_zyx_mm=store.spec.target_zyx_mm,
                normalisation=store.spec.record,
                modality=found.modality,
                objective=type(self.objective).__name__.removesuffix("Config"),
                objective_config=plain(self.objective),
                steps=steps,
                versions=versions(),
            )

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
            objective.parameters(),
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
