"""`girih finetune`: train Retina U-Net on a labelled dataset, from scratch or from pre-trained weights."""

import argparse
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from torch import nn
from tyro.conf import OmitArgPrefixes

import girih_backbones
import girih_data3d
from girih.atomic import write_text
from girih.augment import make_augmentation
from girih.batches import images_and_targets, make_batches, plan_differences, require_labels, survey
from girih.loop import Training, train, warn
from girih.networks import initialise, make_detector
from girih.plans import load_plan
from girih.recipes import SCHEDULES, Recipe, require, sawtooth_lr
from girih.runs import RunFolder, run_config
from girih_detectors import parameter_groups

STEPS_PER_EPOCH = 2500  # as nnDetection counts


@dataclass(frozen=True)
class Finetune:
    """Train Retina U-Net.

    The defaults are the study's, from scratch and from pre-trained weights (Eckstein et al. 2025: SGD 1e-2, 50 x 2500
    steps, patch 128, batch 4). Other than there, precision is full unless asked for.

    --schedule NAME changes the defaults, and those below are the chosen one's. nndetection: the study's. nnunet:
    a learning rate of 1e-3 after 12500 steps of warm-up, as nnU-Net is fine-tuned. sawtooth: the same with
    head_first. In Python they are `girih.recipes.SCHEDULES`.
    """

    data: Path
    """A labelled dataset made by `girih prepare`."""
    out: Path
    """The run's folder: settings, metrics, plot, checkpoints, transfer.json."""
    weights: str | None = None
    """Pre-trained encoder: encoder.safetensors of a pre-training run, a checkpoint of nnU-Net, nnssl, MultiTalent or
    nnDetection, or hf://owner/name@revision/file; without it: from scratch."""
    stem: str = "exact"
    """First layer when the number of channels differs: exact, random, replicate, or dataset:<name>."""
    allow: tuple[str, ...] = ()
    """Patterns of tensors that may stay unloaded; any other one is an error."""
    skip_deeper: bool = False
    """Load the stages that both encoders have, when their numbers differ."""
    average_kernels: bool = False
    """Average a kernel along the axes on which the plan's is 1, for anisotropic plans."""
    plan: str = "resenc_l"
    """Preset (resenc_l, retina_unet, retina_unet_v001, demo) or a plan.json: network, patch, batch, anchors."""
    recipe: OmitArgPrefixes[Recipe] = SCHEDULES["nndetection"].recipe
    head_first: bool = False
    """Warm up twice: first all but the encoder, which stays as it was loaded, then everything. Needs --weights and
    --warmup-steps."""
    flavour: Literal["focal_l1", "hnm_giou"] = "focal_l1"
    """How anchors learn. focal_l1: focal loss and smooth L1, the study's; hnm_giou: cross-entropy on hard negatives and
    GIoU, as nnDetection v0.1 does."""
    object_fraction: float = 0.5
    """Share of patches placed on an object."""
    segmentation: bool = True
    """Train the segmentation head too; needs instance masks. Boxes and points do with --no-segmentation."""
    augmentation: Literal["base_more", "none"] = "base_more"
    """base_more: geometry and nnDetection's intensity set; none: neither."""
    training: OmitArgPrefixes[Training] = field(default_factory=Training)

    def run(self) -> None:
        """Train the detector.

        Raises:
            ValueError: the data, plan, weights and run do not fit; the message says which and why.
        """
        if self.weights is None:
            require("stem", self.stem, self.stem == "exact", "exact without --weights")
        if self.head_first:
            require("weights", self.weights, self.weights is not None, "some, as the head is to go first")
            require(
                "warmup_steps", self.recipe.warmup_steps, self.recipe.warmup_steps > 0, "1 or more, for the head alone"
            )
            warmups = 2 * self.recipe.warmup_steps
            require(
                "steps", self.recipe.steps, self.recipe.steps > warmups, f"more than the {warmups} of both warm-ups"
            )
        lr_at = partial(sawtooth_lr, self.recipe) if self.head_first else None
        folder = RunFolder(self.out)
        accelerator = self.training.make_accelerator(folder)
        plan, store = load_plan(self.plan), girih_data3d.Store.open(self.data)
        if not store.classes:
            raise ValueError(f"{self.data} declares no classes: a detector needs a labelled dataset")
        warn(accelerator, plan_differences(plan, store))
        found = survey(store)
        require_labels(store, {"instances"} if self.segmentation else (), objects=True)
        weights = girih_backbones.read_weights(self.weights) if self.weights else None
        detector = make_detector(
            plan,
            in_channels=found.in_channels,
            classes=store.classes,
            segmentation=self.segmentation,
            seed=self.training.seed,
            flavour=self.flavour,
        )
        transfer = self._initialise(detector, weights, store.spec, plan.patch_zyx, accelerator) if weights else None
        augmentation = make_augmentation(self.augmentation)
        n_per_epoch = STEPS_PER_EPOCH * plan.batch_size
        sampler = girih_data3d.PatchSampler(
            plan.patch_zyx,
            object_fraction=self.object_fraction,
            geometry=girih_data3d.Geometry() if augmentation else None,
            seed=self.training.seed,
        )
        dataset = girih_data3d.PatchDataset(store, sampler, n_per_epoch=n_per_epoch, transform=augmentation)
        config = run_config(
            self,
            plan=plan.to_json(),
            prepare=store.spec.to_json(),
            in_channels=found.in_channels,
            modality=found.modality,
            classes=store.classes,
            dataset_sha256=found.sha256,
            weights_sha256=hashlib.sha256(weights.path.read_bytes()).hexdigest() if weights and weights.path else None,
        )

        def keep_transfer(model: nn.Module, step: int) -> None:
            if transfer is not None:
                write_text(folder.path / "transfer.json", transfer)

        train(
            detector,
            make_batches(
                dataset,
                batch_size=plan.batch_size,
                steps=self.recipe.steps,
                accelerator=accelerator,
                workers=self.training.workers,
            ),
            lambda model, batch: model(*images_and_targets(batch)),
            self.recipe,
            _groups(detector, self.recipe.weight_decay),
            training=self.training,
            accelerator=accelerator,
            folder=folder,
            config=config,
            batch_size=plan.batch_size,
            n_per_epoch=n_per_epoch,
            title="fine-tuning",
            on_checkpoint=keep_transfer,
            lr_at=lr_at,
        )

    def _initialise(
        self,
        detector: nn.Module,
        weights: girih_backbones.Weights,
        spec: girih_data3d.PrepareSpec,
        patch_zyx: tuple[int, int, int],
        accelerator: Accelerator,
    ) -> str:
        report, warnings = initialise(
            detector,
            weights,
            spec,
            patch_zyx,
            stem=self.stem,
            allow=self.allow,
            skip_deeper=self.skip_deeper,
            average_kernels=self.average_kernels,
        )
        counts = ", ".join(f"{n} {status}" for status, n in report.counts.items() if n)
        for line in (counts, *report.notes):
            accelerator.print(f"{self.weights}: {line}", file=sys.stderr)
        warn(accelerator, warnings)
        return report.to_json()


def choose_schedule(arguments: list[str]) -> tuple[Callable[..., Finetune], list[str]]:
    """Return `Finetune` with the defaults of the schedule that --schedule names, and the other arguments."""
    parser = argparse.ArgumentParser(prog="girih finetune", add_help=False, allow_abbrev=False)
    parser.add_argument("--schedule", choices=list(SCHEDULES), default="nndetection")
    found, others = parser.parse_known_args(arguments)
    recipe, head_first = SCHEDULES[found.schedule]
    # tyro takes no default_factory from a partial, hence `training`.
    return partial(Finetune, recipe=recipe, head_first=head_first, training=Training()), others


def _groups(detector: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the detector's parameter groups, each cut into those called "encoder" and "head"."""
    pyramid: Any = detector.pyramid
    inside = {id(parameter) for parameter in pyramid.encoder.parameters()}
    groups = []
    for group in parameter_groups(detector, weight_decay):
        for name, wanted in (("encoder", True), ("head", False)):
            chosen = [parameter for parameter in group["params"] if (id(parameter) in inside) is wanted]
            if chosen:
                groups.append({**group, "name": name, "params": chosen})
    return groups
