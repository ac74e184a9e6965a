"""Checks of what a detector finds, and of the images it takes."""

import torch
from torch import Tensor

from ..interfaces import Detector
from .subject import Make, build, require
from .tiny import toy_batch


def check_detections_are_sorted_and_inside(make: Make) -> None:
    """`detect` returns float32 boxes inside the image, descending float32 scores in [0, 1] and int64 labels."""
    require_detections(build(make), toy_batch((2, 0))[0])


def check_anisotropic_patch(make: Make) -> None:
    """A patch of three different sides and a pyramid with strides that differ per axis train and detect."""
    detector = build(make, strides=((1, 1, 1), (1, 2, 2), (2, 4, 4)))
    images, targets = toy_batch((2, 1), shape=(8, 32, 24))
    require(bool(torch.isfinite(detector(images, targets)["loss"])), "the loss is not finite")
    require_detections(detector, images)


def check_one_and_four_channels(make: Make) -> None:
    """Images of one and of four channels fit; a wrong number raises ValueError."""
    for channels in (1, 4):
        detector = build(make, in_channels=channels)
        require(bool(torch.isfinite(detector(*toy_batch((1,), channels=channels))["loss"])), "the loss is not finite")
        try:
            detector(*toy_batch((1,), channels=channels + 1))
        except ValueError:
            continue
        raise AssertionError(f"{channels + 1} channels were taken by a detector for {channels}")


def require_detections(detector: Detector, images: Tensor) -> None:
    """Raise AssertionError unless `detect` keeps its promises for these images."""
    found = detector.detect(images)
    require(len(found) == len(images), f"{len(found)} results for {len(images)} images")
    limit = torch.tensor(images.shape[2:] * 2)
    for one in found:
        boxes, scores, labels = (torch.as_tensor(one[key]) for key in ("boxes", "scores", "labels"))
        require(boxes.shape == (len(scores), 6), f"boxes have shape {tuple(boxes.shape)} for {len(scores)} scores")
        require(labels.shape == scores.shape, f"{len(labels)} labels for {len(scores)} scores")
        require((boxes.dtype, scores.dtype, labels.dtype) == (torch.float32, torch.float32, torch.int64), "wrong dtype")
        require(not any(x.requires_grad for x in (boxes, scores)), "detections carry a gradient")
        require(bool((scores[1:] <= scores[:-1]).all()), "scores do not descend")
        require(bool(((scores >= 0) & (scores <= 1)).all()), "a score lies outside [0, 1]")
        require(bool(((boxes >= 0) & (boxes <= limit)).all()), "a box reaches out of the image")
        require(bool((boxes[:, :3] <= boxes[:, 3:]).all()), "a box is inverted")
        require(bool(((labels >= 0) & (labels < len(detector.classes))).all()), "a label has no class")
