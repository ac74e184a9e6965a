"""`girih pretrain OBJECTIVE`: train an encoder without (or with) labels and write its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import girih_backbones
import girih_data3d
import girih_ssl
from girih.batches import first_case, make_batches
from girih.loop import Recipe, Training, train
from girih.networks import make_objective
from girih.plans import load_plan
from girih.runs import RunFolder, plain, run_config, versions

Objective = TypeVar("Objective")
STEPS_PER_EPOCH = 250  # as nnU-Net counts


@dataclass(frozen=True)
class Pretrain(Generic[Objective]):
    """Pre-train an encoder on a prepared dataset. The defaults are the study's (Eckstein et al. 2025, section 2.2)."""

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
    recipe: Recipe = field(default_factory=lambda: Recipe(steps=1_000_000, lr=1e-2, momentum=0.99, clip_norm=12.0))
    augment: bool = True
    """Rotate, scale and mirror the patches."""
    training: Training = field(default_factory=Training)

    def run(self) -> None:
        """Train, and write encoder.safetensors at every checkpoint.

        Raises:
            ValueError: the data, plan, objective and run do not fit; the message says which and why.
        """
        folder = RunFolder(self.out)
        accelerator = self.training.make_accelerator(folder)
        plan, store = load_plan(self.plan), girih_data3d.Store.open(self.data)
        first = first_case(store)
        in_channels = first.shape[0]
        objective = make_objective(
            self.objective, plan, patch_zyx=self.patch_zyx, in_channels=in_channels, seed=self.training.seed
        )
        n_per_epoch = STEPS_PER_EPOCH * self.batch_size
        sampler = girih_data3d.PatchSampler(
            self.patch_zyx,
            object_fraction=0.0,
            geometry=girih_data3d.Geometry() if self.augment else None,
            seed=self.training.seed,
        )
        dataset = girih_data3d.PatchDataset(store, sampler, n_per_epoch=n_per_epoch)
        config = run_config(self, plan=plan.to_json(), prepare=store.spec.to_json(), in_channels=in_channels)

        def export(model: Any, steps: int) -> None:
            girih_backbones.save_weights(
                folder.path / "encoder.safetensors",
                encoder=model.encoder,
                patch_zyx=self.patch_zyx,
                spacing_zyx_mm=first.spacing_zyx_mm,
                normalisation=store.spec.record,
                modality=first.modality,
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
    listing = "\n".join(f"  {name:<16}{_summary(known, name)}" for name in known)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            f"usage: girih pretrain OBJECTIVE --data DATASET --out RUN [OPTIONS]\n\nobjectives:\n{listing}\n\n"
            "girih pretrain OBJECTIVE --help tells the options. A package adds an objective by the entry-point group\n"
            "girih.objectives."
        )
        return None
    if arguments[0] not in known:
        raise ValueError(f"unknown objective {arguments[0]!r}; installed:\n{listing}")
    return (arguments[0], known[arguments[0]]), arguments[1:]


def _summary(known: Mapping[str, type[Any]], name: str) -> str:
    """First line of an objective's docstring; a plug-in that cannot be imported is listed with its error."""
    try:
        lines = (known[name].__doc__ or "").strip().splitlines()
    except girih_ssl.PluginError as error:
        return f"(unusable: {error})"
    return lines[0] if lines else ""
