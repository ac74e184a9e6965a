"""Puts networks together from a plan: the one place where backbones meet objectives and detectors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import girih_backbones
import girih_ssl
import torch
from girih_detectors import RetinaUNet
from torch import nn

from girih.plans import Plan


def make_pyramid(plan: Plan, in_channels: int) -> girih_backbones.FeaturePyramid:
    """Return the plan's encoder and neck.

    Raises:
        ValueError: the plan has no neck, or describes an encoder or neck that does not exist.
    """
    if plan.neck is None:
        raise ValueError("the plan has no neck; Retina U-Net needs one, for example UFPN")
    encoder = girih_backbones.make_encoder(plan.encoder, in_channels)
    return girih_backbones.FeaturePyramid(encoder, girih_backbones.make_neck(plan.neck, encoder))


def make_detector(plan: Plan, *, in_channels: int, classes: tuple[str, ...], segmentation: bool, seed: int) -> RetinaUNet:
    """Return Retina U-Net on the plan's pyramid, with weights drawn from `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return RetinaUNet(
            make_pyramid(plan, in_channels),
            classes=classes,
            anchors_zyx=torch.tensor(plan.anchors["sizes_zyx_voxels"], dtype=torch.float32),
            levels=plan.levels,
            segmentation=segmentation,
            head_channels=int(plan.neck["kwargs"].get("out_channels", 128)) if plan.neck else 128,
        )


def make_objective(
    config: Any, plan: Plan, *, patch_zyx: tuple[int, int, int], in_channels: int, seed: int
) -> girih_ssl.Objective:
    """Return the objective on the plan's encoder, with a U-Net decoder as its neck, weights drawn from `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = girih_backbones.make_encoder(plan.encoder, in_channels)
        parts = girih_ssl.Parts(
            encoder=encoder,
            make_neck=lambda: girih_backbones.UNetDecoder(encoder.channels, encoder.strides),
            make_stem=lambda channels: girih_backbones.make_stem(encoder, channels),
            in_channels=in_channels,
            patch_zyx=patch_zyx,
            datasets={},
        )
        objective: girih_ssl.Objective = config.build(parts)
        return objective


def initialise(
    detector: nn.Module, weights: Path, *, scope: str, stem: str, allow: tuple[str, ...], normalisation: Mapping[str, Any] | None
) -> tuple[girih_backbones.TransferReport, list[str]]:
    """Load pre-trained weights into a detector's pyramid; return the report and what the user should be warned of.

    Raises:
        ValueError: the file cannot be read, or an expected tensor was not loaded and no pattern in `allow` matches it.
    """
    found = girih_backbones.read_weights(weights)
    pyramid: Any = detector.pyramid
    model = pyramid if scope == "all" else pyramid.encoder
    report = girih_backbones.load_weights(model, found, scope=scope, stem=stem, allow=allow)
    warnings = []
    before = found.header.get("normalisation")
    if before and normalisation and before["scheme"] != normalisation["scheme"]:
        warnings.append(
            f"pre-trained on {before['scheme']!r} intensities, fine-tuned on {normalisation['scheme']!r}: "
            "the encoder sees other values than it knows"
        )
    return report, warnings
