"""`girih finetune`: train a detector on a labelled dataset, from scratch or from pre-trained weights."""

import argparse
import hashlib
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
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
from girih.batches import (
    content_sha256,
    images_and_targets,
    make_batches,
    plan_differences,
    require_labels,
    survey,
)
from girih.loop import Training, train, warn
from girih.networks import OPTIONS, encoder_of, initialise, make_detector
from girih.plans import Plan, load_plan
from girih.recipes import SCHEDULES, Recipe, Restart, require, sawtooth_lr
from girih.restarts import FailedStartError, has_restarted, judge
from girih.runs import RunFolder, run_config
from girih.validation import Validation, split_cases
from girih_detectors import parameter_groups

STEPS_PER_EPOCH = 2500  # as nnDetection counts
DEFAULT_SCHEDULES = {"retina_unet": "nndetection", "deformable_detr": "detr"}


@dataclass(frozen=True)
class Finetune:
    """Train a detector: Retina U-Net or Deformable DETR.

    The defaults are the study's, from scratch and from pre-trained weights (Eckstein et al. 2025: for Retina U-Net SGD
    1e-2, 50 x 2500 steps, for Deformable DETR AdamW 3e-4, 100 x 2500 steps; patch 128, batch 4). Other than there,
    precision is full unless asked for.

    --detector and --schedule change the defaults, and those below are the chosen ones'. nndetection: the study's for
    Retina U-Net. nnunet: a learning rate of 1e-3 after 12500 steps of warm-up, as nnU-Net is fine-tuned. sawtooth: the
    same with head_first. detr: the study's for Deformable DETR. In Python they are `girih.recipes.SCHEDULES`.
    """

    data: Path
    """A labelled dataset made by `girih prepare`."""
    out: Path
    """The run's folder: settings, metrics, plot, checkpoints, transfer.json."""
    detector: Literal["retina_unet", "deformable_detr"] = "retina_unet"
    """retina_unet: anchors on a feature pyramid, and a segmentation beside them. deformable_detr: a transformer on the
    last four maps of the plan's encoder; as many queries as the plan says, else 3 for each object of a full patch."""
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
    """How the anchors of retina_unet learn. focal_l1: focal loss and smooth L1, the study's; hnm_giou: cross-entropy on
    hard negatives and GIoU, as nnDetection v0.1 does."""
    object_fraction: float = 0.5
    """Share of patches placed on an object."""
    segmentation: bool = True
    """Train the segmentation head of retina_unet too; needs instance masks. Boxes and points do with
    --no-segmentation, and with deformable_detr."""
    augmentation: Literal["base_more", "none"] = "base_more"
    """base_more: geometry and nnDetection's intensity set; none: neither."""
    checkpointing: bool = False
    """Keep less of the encoders for the gradient, and run them again: the same numbers, less memory, a third more
    time."""
    validation: Path | None = None
    """Another labelled dataset, prepared in the same way. Its scans are searched and scored every so often, without
    any influence on the training but that of --restart."""
    split: Path | None = None
    """A split.json made by `girih-data3d split`: train on the cases of one of its folds, validate on the others of
    it."""
    fold: int | None = None
    """Which fold of --split, from 0."""
    validate_every: int = STEPS_PER_EPOCH
    """Steps between validations; the last step has one too."""
    restart: Restart = SCHEDULES["nndetection"].restart
    training: OmitArgPrefixes[Training] = field(default_factory=Training)

    def run(self) -> None:
        """Train the detector.

        Raises:
            ValueError: the data, plan, weights and run do not fit; the message says which and why.
        """
        self._check()
        folder = RunFolder(self.out)
        accelerator = self.training.make_accelerator(folder)
        plan, whole = load_plan(self.plan), girih_data3d.Store.open(self.data)
        if not whole.classes:
            raise ValueError(
                f"{self.data} declares no classes: a detector needs a labelled dataset; of --format nnunet, "
                "-o objects=NAME says which labels are objects"
            )
        warn(accelerator, plan_differences(plan, whole))
        store, others = split_cases(whole, validation=self.validation, split=self.split, fold=self.fold)
        found = survey(store)
        masks = self.detector == "retina_unet" and self.segmentation
        require_labels(store, {"instances"} if masks else (), objects=True)
        if self.detector == "deformable_detr":
            plan = _with_queries(plan, store)
        judged_at = self._judged_at(accelerator)
        weights = girih_backbones.read_weights(self.weights) if self.weights else None
        dataset = self._dataset(plan, store)
        config = run_config(
            self,
            plan=plan.to_json(),
            prepare=store.spec.to_json(),
            in_channels=found.in_channels,
            modality=found.modality,
            classes=store.classes,
            dataset_sha256=found.sha256,
            store_sha256=content_sha256(whole),
            validation_sha256=None if others is None else content_sha256(others),
            weights_sha256=hashlib.sha256(weights.path.read_bytes()).hexdigest() if weights and weights.path else None,
        )
        for name in _foreign(self.detector):
            del config["settings"][name]

        def start(accelerator: Accelerator, recipe: Recipe, *, resume: bool, restarted: bool) -> None:
            validation = None
            if others is not None:
                validation = Validation(others, store.classes, plan.patch_zyx, folder, accelerator)
            detector = make_detector(
                plan,
                in_channels=found.in_channels,
                classes=store.classes,
                seed=self.training.seed,
                detector=self.detector,
                segmentation=self.segmentation,
                flavour=self.flavour,
                checkpointing=self.checkpointing,
            )
            transfer = self._initialise(detector, weights, store.spec, plan.patch_zyx, accelerator) if weights else None

            def keep_transfer(model: nn.Module, step: int) -> None:
                if transfer is not None:
                    write_text(folder.path / "transfer.json", transfer)

            def validate(model: Any, step: int) -> None:
                if validation is not None:
                    validation(model, step)
                if step == judged_at:
                    judge(folder, self.restart, self.recipe, accelerator, restarted=restarted)

            train(
                detector,
                make_batches(
                    dataset,
                    batch_size=plan.batch_size,
                    steps=recipe.steps,
                    accelerator=accelerator,
                    workers=self.training.workers,
                ),
                lambda model, batch: model(*images_and_targets(batch)),
                recipe,
                _groups(detector, recipe.weight_decay),
                training=replace(self.training, resume=resume),
                accelerator=accelerator,
                folder=folder,
                config=config,
                batch_size=plan.batch_size,
                n_per_epoch=dataset.n_per_epoch,
                title="fine-tuning",
                on_checkpoint=keep_transfer,
                lr_at=partial(sawtooth_lr, recipe) if self.head_first else None,
                validate=validate,
                validate_every=0 if validation is None else self.validate_every,
            )

        restarted = has_restarted(folder, accelerator)
        if not restarted:
            with suppress(FailedStartError):
                start(accelerator, self.recipe, resume=self.training.resume, restarted=False)
                return
            for tracker in accelerator.trackers:
                tracker.finish()
            accelerator.free_memory()
            accelerator = self.training.make_accelerator(folder)  # a new one, as after a kill
        resume = self.training.resume or not restarted
        start(accelerator, self.restart.second(self.recipe), resume=resume, restarted=True)

    def _check(self) -> None:
        """Check the settings among themselves."""
        if self.weights is None:
            require("stem", self.stem, self.stem == "exact", "exact without --weights")
        if self.head_first:
            require("weights", self.weights, self.weights is not None, "some, as the head is to go first")
            _require_two_warmups(self.recipe)
        require("validate_every", self.validate_every, self.validate_every >= 1, "1 or more")
        for name in _foreign(self.detector):
            if (found := getattr(self, name)) != Finetune.__dataclass_fields__[name].default:
                raise ValueError(f"{name} is {found!r}, but {self.detector} has no such setting")
        if self.detector == "deformable_detr" and self.recipe == SCHEDULES["nndetection"].recipe:
            raise ValueError(
                "the recipe is that of Retina U-Net, SGD at 0.01; deformable_detr wants its own, which is "
                "girih.recipes.SCHEDULES['detr'], or --schedule detr"
            )

    def _judged_at(self, accelerator: Accelerator) -> int | None:
        """Return the step at which the start is judged; say so once if it is not, although it is meant to be."""
        if self.restart.below == 0:
            return None
        if self.validation is None and self.split is None:
            warn(accelerator, ["without --validation or --split nobody will notice if the training fails to start"])
            return None
        step = self.restart.judged_at(self.validate_every, self.recipe.steps)
        if step is None:
            found = f"it has {self.recipe.steps} steps, --restart.last-step is {self.restart.last_step}"
            warn(accelerator, [f"the training ends before its start can be judged: {found}"])
            return None
        second = self.restart.second(self.recipe)
        if self.head_first:
            _require_two_warmups(second)
        return step

    def _dataset(self, plan: Plan, store: girih_data3d.Store) -> girih_data3d.PatchDataset:
        augmentation = make_augmentation(self.augmentation)
        sampler = girih_data3d.PatchSampler(
            plan.patch_zyx,
            object_fraction=self.object_fraction,
            geometry=girih_data3d.Geometry() if augmentation else None,
            seed=self.training.seed,
        )
        n_per_epoch = STEPS_PER_EPOCH * plan.batch_size
        return girih_data3d.PatchDataset(store, sampler, n_per_epoch=n_per_epoch, transform=augmentation)

    def _initialise(
        self,
        detector: Any,
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
    """Return `Finetune` with the defaults of what --detector and --schedule name, and the other arguments.

    Raises:
        ValueError: a setting is given that this detector does not have.
    """
    parser = argparse.ArgumentParser(prog="girih finetune", add_help=False, allow_abbrev=False)
    parser.add_argument("--detector", choices=list(DEFAULT_SCHEDULES), default="retina_unet")
    parser.add_argument("--schedule", choices=list(SCHEDULES))
    found, others = parser.parse_known_args(arguments)
    given = {argument.partition("=")[0] for argument in others}
    for name in _foreign(found.detector):
        if given & {f"--{name}", f"--no-{name}"}:
            raise ValueError(f"--{name} is given, but {found.detector} has no such setting")
    recipe, head_first, restart = SCHEDULES[found.schedule or DEFAULT_SCHEDULES[found.detector]]
    defaults = {"detector": found.detector, "recipe": recipe, "head_first": head_first, "restart": restart}
    return partial(Finetune, **defaults, training=Training()), others  # tyro takes no default_factory from a partial


def _require_two_warmups(recipe: Recipe) -> None:
    require("warmup_steps", recipe.warmup_steps, recipe.warmup_steps > 0, "1 or more, for the head alone")
    warmups = 2 * recipe.warmup_steps
    require("steps", recipe.steps, recipe.steps > warmups, f"more than the {warmups} of both warm-ups")


def _foreign(detector: str) -> list[str]:
    """Return the settings that other detectors have and this one does not."""
    return sorted({name for names in OPTIONS.values() for name in names} - set(OPTIONS[detector]))


def _with_queries(plan: Plan, store: girih_data3d.Store) -> Plan:
    """Return a plan that says how many queries there are: its own, or as many as the objects in a patch ask for."""
    if plan.queries is not None:
        return plan
    p95 = plan.objects_per_patch_p95
    if p95 is None:
        p95 = girih_data3d.objects_per_patch(store.index, plan.patch_zyx)
    return replace(plan, objects_per_patch_p95=p95, queries=girih_data3d.queries_for(p95))


def _groups(detector: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Return the detector's parameter groups, each cut into those called "encoder" and "head"."""
    inside = {id(parameter) for parameter in encoder_of(detector).parameters()}
    groups = []
    for group in parameter_groups(detector, weight_decay):
        for name, wanted in (("encoder", True), ("head", False)):
            chosen = [parameter for parameter in group["params"] if (id(parameter) in inside) is wanted]
            if chosen:
                groups.append({**group, "name": name, "params": chosen})
    return groups
