"""Puts networks together from a plan: the one place where backbones meet objectives and detectors."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

import girih_backbones
import girih_data3d
import girih_ssl
from girih.plans import Plan
from girih_detectors import DeformableDETR, Flavour, FocalL1, HnmGiou, RetinaUNet

FLAVOURS: Mapping[str, type[FocalL1] | type[HnmGiou]] = {"focal_l1": FocalL1, "hnm_giou": HnmGiou}
"""Losses of Retina U-Net by name."""
OPTIONS: Mapping[str, tuple[str, ...]] = {"retina_unet": ("flavour", "segmentation"), "deformable_detr": ()}
"""Detectors by name, and the settings of `girih finetune` that only this one has."""


def make_encoder(plan: Plan, in_channels: int) -> girih_backbones.Encoder:
    """Return the plan's encoder."""
    return girih_backbones.make_encoder(_description(plan.encoder), in_channels)


def make_pyramid(plan: Plan, in_channels: int, outputs: Sequence[int]) -> girih_backbones.FeaturePyramid:
    """Return the plan's encoder and neck; the maps not in `outputs`, which nobody reads, are not computed.

    Raises:
        ValueError: the plan has no neck, or describes an encoder or neck that does not exist.
    """
    if plan.neck is None:
        raise ValueError("the plan has no neck; Retina U-Net needs one, for example UFPN")
    encoder, neck = make_encoder(plan, in_channels), _description(plan.neck)
    if neck["class"] == "UFPN":
        neck["kwargs"]["outputs"] = list(outputs)
    return girih_backbones.FeaturePyramid(encoder, girih_backbones.make_neck(neck, encoder))


def make_detector(
    plan: Plan,
    *,
    in_channels: int,
    classes: tuple[str, ...],
    seed: int,
    detector: str = "retina_unet",
    segmentation: bool = True,
    flavour: str = "focal_l1",
    checkpointing: bool = False,
) -> RetinaUNet | DeformableDETR:
    """Return the detector that a plan describes, with weights drawn from `seed`.

    Retina U-Net has the plan's neck, and in its heads the encoder's activation. Deformable DETR reads the last four
    maps of the plan's encoder alone; `segmentation` and `flavour` mean nothing to it. With `checkpointing` the encoders
    keep less for the gradient: the same numbers.

    Raises:
        ValueError: there is no such detector, or the plan lacks what it needs.
    """
    if detector not in OPTIONS:
        raise ValueError(f"detector is {detector!r}, wanted one of {', '.join(OPTIONS)}")
    with _seeded(seed):
        made: RetinaUNet | DeformableDETR
        if detector == "retina_unet":
            made = _retina_unet(plan, in_channels, classes, segmentation, FLAVOURS[flavour]())
        elif plan.queries is None:
            raise ValueError("the plan has no queries, which Deformable DETR needs: a whole number of at least 1")
        else:
            encoder = make_encoder(plan, in_channels)
            made = DeformableDETR(encoder, classes=classes, queries=plan.queries, checkpoint_encoder=checkpointing)
    if checkpointing:
        girih_backbones.set_checkpointing(encoder_of(made))
    return made


def encoder_of(detector: RetinaUNet | DeformableDETR) -> girih_backbones.Encoder:
    """Return a detector's encoder, under a neck or alone."""
    pyramid: Any = detector.pyramid
    encoder: girih_backbones.Encoder = getattr(pyramid, "encoder", pyramid)
    return encoder


def make_objective(
    config: Any,
    plan: Plan,
    *,
    patch_zyx: tuple[int, int, int],
    in_channels: int,
    seed: int,
    neck: Literal["unet", "plan"] = "unet",
    datasets: Mapping[str, girih_ssl.DatasetInfo] | None = None,
) -> nn.Module:
    """Return the objective on the plan's encoder and a U-Net decoder or the plan's neck, with weights from `seed`.

    A U-FPN makes the maps that the objective reads by its `neck_maps`; without that all of them, or those of the plan.

    Raises:
        ValueError: the plan's neck is asked for, but it has none, or the parts do not suit the objective.
    """
    decoder: girih_backbones.Description = {"class": "UNetDecoder", "kwargs": {}}
    if neck == "plan":
        if plan.neck is None:
            raise ValueError("neck is 'plan', but the plan has no neck")
        decoder = _description(plan.neck)
        if decoder["class"] == "UFPN" and (read := getattr(config, "neck_maps", None)) is not None:
            levels = {"finest": 1, "deep": len(plan.encoder["kwargs"]["channels"]) - 1}
            if read not in levels:
                raise ValueError(f"{type(config).__name__}.neck_maps is {read!r}, wanted 'finest' or 'deep'")
            decoder["kwargs"]["outputs"] = list(range(levels[read]))
    with _seeded(seed):
        encoder = make_encoder(plan, in_channels)
        parts = girih_ssl.Parts(
            encoder=encoder,
            make_neck=lambda: girih_backbones.make_neck(decoder, encoder),
            make_stem=lambda channels: girih_backbones.make_stem(encoder, channels),
            in_channels=in_channels,
            patch_zyx=patch_zyx,
            datasets={} if datasets is None else datasets,
        )
        objective: nn.Module = config.build(parts)
        return objective


def initialise(
    detector: RetinaUNet | DeformableDETR,
    weights: girih_backbones.Weights,
    spec: girih_data3d.PrepareSpec,
    patch_zyx: tuple[int, int, int],
    *,
    stem: str,
    allow: tuple[str, ...],
    skip_deeper: bool = False,
    average_kernels: bool = False,
) -> tuple[girih_backbones.TransferReport, list[str]]:
    """Load a pre-trained encoder into a detector; return the report and what the user should be warned of.

    Raises:
        ValueError: an expected tensor was not loaded and no pattern in `allow` matches it.
    """
    report = girih_backbones.load_weights(
        encoder_of(detector),
        weights,
        stem=stem,
        allow=allow,
        skip_deeper=skip_deeper,
        average_kernels=average_kernels,
    )
    warnings, changed = list(report.differences), []
    for name, now in (("normalisation", spec.record), ("spacing_zyx_mm", spec.target_zyx_mm), ("patch_zyx", patch_zyx)):
        before = weights.header[name]  # type: ignore[literal-required]  # three keys of the header
        if before is not None and now is not None and _plain(before) != _plain(now):
            changed.append(f"{name} {_plain(before)}, now {_plain(now)}")
    if changed:
        warnings.append(f"pre-trained with {'; '.join(changed)}")
    return report, warnings


def _retina_unet(
    plan: Plan, in_channels: int, classes: tuple[str, ...], segmentation: bool, loss: Flavour
) -> RetinaUNet:
    pyramid = make_pyramid(plan, in_channels, outputs=[0, *plan.levels] if segmentation else plan.levels)
    return RetinaUNet(
        pyramid,
        classes=classes,
        anchors_zyx=torch.tensor(plan.anchors["sizes_zyx_voxels"], dtype=torch.float32),
        levels=plan.levels,
        segmentation=segmentation,
        head_channels=pyramid.channels[plan.levels[0]],
        loss=loss,
        activation=plan.encoder["kwargs"].get("activation", "leaky_relu"),
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generator of the CPU, where networks are built, and put it back; those of GPUs are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _description(content: Mapping[str, Any]) -> girih_backbones.Description:
    return {"class": content["class"], "kwargs": dict(content["kwargs"])}
