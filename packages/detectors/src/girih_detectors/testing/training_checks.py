"""Checks of the training loss: finite, reaching every parameter, refusing nonsense, and able to learn."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..interfaces import Detector, Target
from ..ops import pairwise_iou
from .subject import Make, build, require
from .tiny import CLASSES, toy_batch

STEPS = 400
HIT = 0.5
"""IoU from which a box has found its object."""
BIAS = 0.15
"""Voxels; by half of one differ the usual conventions of what a coordinate means."""


def check_losses_are_finite(make: Make) -> None:
    """`forward` returns a finite scalar loss with gradient and finite detached parts, with and without objects."""
    detector = build(make)
    for objects in ((2, 3), (3, 0), (0, 0)):
        losses = detector(*toy_batch(objects))
        require("loss" in losses, f"`forward` returned {sorted(losses)}, wanted the key `loss`")
        for name, value in losses.items():
            require(value.shape == (), f"`{name}` has shape {tuple(value.shape)}")
            require(bool(torch.isfinite(value)), f"objects {objects}: `{name}` is {value}")
            require(value.requires_grad == (name == "loss"), f"`{name}`: requires_grad is {value.requires_grad}")


def check_gradients_reach_every_parameter(make: Make) -> None:
    """Every parameter has a finite gradient, also from images without objects (or DDP waits for it forever)."""
    for objects in ((2, 1), (0, 0)):
        detector = build(make)
        detector(*toy_batch(objects))["loss"].backward()
        for name, parameter in detector.named_parameters():
            if parameter.grad is None:
                raise AssertionError(f"objects {objects}: no gradient at `{name}`")
            finite = bool(torch.isfinite(parameter.grad).all())
            require(finite, f"objects {objects}: gradient of `{name}` is not finite")


def check_bad_targets_are_refused(make: Make) -> None:
    """Boxes outside, inverted or NaN and labels out of range raise a ValueError that names target 1 and row 2."""
    detector = build(make)
    faults: dict[str, Callable[[Target], Tensor]] = {
        "outside": lambda target: target["boxes"][2, 5].add_(1000),
        "inverted": lambda target: target["boxes"][2].copy_(target["boxes"][2].roll(3)),
        "NaN": lambda target: target["boxes"][2, 0].fill_(torch.nan),
        "label": lambda target: target["labels"][2].fill_(len(CLASSES)),
    }
    for name, spoil in faults.items():
        images, targets = toy_batch((1, 3))
        spoil(targets[1])
        message = "no error"
        try:
            detector(images, targets)
        except ValueError as error:
            message = str(error)
        require("target 1" in message, f"{name}: wanted `target 1` in the error: {message}")
        require("row 2" in message, f"{name}: wanted `row 2` in the error: {message}")


def check_overfits_one_image(make: Make) -> None:
    """Within 400 steps of Adam the n best boxes of a training image are its n objects, one to one."""
    _overfit(build(make), *toy_batch((3,)))


def check_mirrored_objects_have_mirrored_boxes(make: Make) -> None:
    """What learns an image and its mirror finds every object of both, and no coordinate is off to one side.

    Within 400 steps the mean error of each of the six coordinates, over the objects of both images, falls below 0.15
    voxels. Boxes that are decoded half a voxel too far, or too wide, have a mean error of that size, however well the
    network learns; so has the mirror image's, if only its boxes are off. The patch has three different sides, so an
    axis that is taken for another shows.
    """
    images, (target,) = toy_batch((3,), shape=(16, 24, 32))
    _overfit(build(make), torch.cat([images, images.flip((2, 3, 4))]), [target, mirrored(target)], bias=BIAS)


def mirrored(target: Target) -> Target:
    """Return the target of the image mirrored along all three axes."""
    sides = torch.tensor(target["instances"].shape)
    return {
        "boxes": torch.cat([sides - target["boxes"][:, 3:], sides - target["boxes"][:, :3]], dim=1),
        "labels": target["labels"],
        "instances": target["instances"].flip((0, 1, 2)),
        "valid": target["valid"].flip((0, 1, 2)),
    }


def _overfit(detector: Any, images: Tensor, targets: Sequence[Target], bias: float = torch.inf) -> None:
    optimiser = torch.optim.Adam(detector.parameters(), lr=3e-3)
    fault = ""
    for step in range(1, STEPS + 1):
        seeded: list[Target] = [{**target, "seed": step * len(targets) + i} for i, target in enumerate(targets)]
        optimiser.zero_grad()
        detector(images, seeded)["loss"].backward()
        optimiser.step()
        if step % 20 == 0:
            fault = _mismatch(detector, images, targets, bias)
            if not fault:
                return
    raise AssertionError(f"after {STEPS} steps: {fault}")


def _mismatch(detector: Detector, images: Tensor, targets: Sequence[Target], bias: float) -> str:
    """Say what is wrong with the n best detections of the first image that is not right, or of all; or nothing."""
    errors = []
    for image, (found, target) in enumerate(zip(detector.detect(images), targets, strict=True)):
        n = len(target["boxes"])
        boxes, labels = torch.as_tensor(found["boxes"])[:n], torch.as_tensor(found["labels"])[:n]
        if len(boxes) < n:
            return f"image {image}: {len(boxes)} boxes for {n} objects"
        overlap = pairwise_iou(boxes, target["boxes"])
        hit = overlap.argmax(1)
        if sorted(hit.tolist()) != list(range(n)):
            return f"image {image}: the {n} best boxes hit objects {hit.tolist()}"
        if float(overlap.max(1).values.min()) < HIT:
            return f"image {image}: IoU of the {n} best boxes with their objects is {overlap.max(1).values.tolist()}"
        if not torch.equal(labels, target["labels"][hit]):
            return f"image {image}: labels are {labels.tolist()}, wanted {target['labels'][hit].tolist()}"
        errors.append(boxes - target["boxes"][hit])
    mean = torch.cat(errors).mean(0)
    if float(mean.abs().max()) >= bias:
        off = [round(value, 2) for value in mean.tolist()]
        return f"(z0, y0, x0, z1, y1, x1) are off by {off} voxels on average, wanted less than {bias}"
    return ""
