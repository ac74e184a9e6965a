"""Checks of what a detector finds, and of the images it takes."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..anchors import Triple
from ..inference import MIRRORINGS, collect, detect_volume, tile_grid
from ..interfaces import Detections, Detector
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


def check_neighbours_in_the_batch_change_nothing(make: Make) -> None:
    """`detect` finds in an image what it finds when the image is alone, within 1e-3."""
    detector = build(make).eval()
    images, _ = toy_batch((2, 0, 3))
    for row, together in enumerate(detector.detect(images)):
        (alone,) = detector.detect(images[row : row + 1])
        for key in ("boxes", "scores", "labels"):
            a, b = torch.as_tensor(together[key]), torch.as_tensor(alone[key])
            same = a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-3)
            require(same, f"image {row} has other {key} in a batch of {len(images)} than alone")


def check_detect_leaves_its_images(make: Make) -> None:
    """`detect` changes nothing in its images: others look at the same tiles, and at mirrored copies made later."""
    detector = build(make).eval()
    images, _ = toy_batch((2, 0))
    before = images.clone()
    detector.detect(images)
    require(torch.equal(images, before), "`detect` has changed its images")


def check_whole_volume(make: Make) -> None:
    """A volume has in every mirroring what `detect` finds in its tiles one by one; with a NaN it is an error.

    Compared are the boxes before they are merged, to the bit. The patch has three different sides. The error
    names the tile of the NaN.
    """
    detector, patch = build(make).eval(), (16, 24, 8)
    image = toy_batch((3,), shape=(16, 24, 20))[0][0].numpy()
    wanted = [_tile_by_tile(detector, image, patch, axes) for axes in MIRRORINGS]
    found = collect(detector, image, patch_zyx=patch, pool=max(len(scores) for _, scores, _ in wanted) or 1)
    for axes, one, columns in zip(MIRRORINGS, found, wanted, strict=True):
        for key, a, b in zip(
            ("boxes", "scores", "labels"), (one["boxes"], one["scores"], one["labels"]), columns, strict=True
        ):
            require(torch.equal(a, b), f"mirrored along {axes}, a volume has other {key} than its tiles one by one")
    image[:, 0, 0, -1] = np.nan
    try:
        detect_volume(detector, image, patch_zyx=patch, mirror=False)
    except ValueError as error:
        require("(0, 0, 12)" in str(error), f"wanted the tile (0, 0, 12) in the error: {error}")
        return
    raise AssertionError(
        "an image with a NaN was taken: `detect` has to raise ValueError where its output is not finite"
    )


def _tile_by_tile(
    detector: Detector, image: np.ndarray, patch: Triple, axes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and labels of all tiles, each flipped along these axes, in the volume, by descending score."""
    boxes, scores, labels = [], [], []
    for start in tile_grid((image.shape[1], image.shape[2], image.shape[3]), patch, 0.5):
        part = tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))
        tile = torch.from_numpy(image[(None, slice(None), *part)].copy()).flip([axis + 2 for axis in axes])
        (one,) = require_detections(detector, tile)
        straight = torch.as_tensor(one["boxes"]).clone()
        for axis in axes:
            straight[:, [axis, axis + 3]] = patch[axis] - straight[:, [axis + 3, axis]]
        boxes.append(straight + torch.tensor(start * 2))
        scores.append(torch.as_tensor(one["scores"]))
        labels.append(torch.as_tensor(one["labels"]))
    order = torch.cat(scores).argsort(descending=True, stable=True)
    return torch.cat(boxes)[order], torch.cat(scores)[order], torch.cat(labels)[order]


def require_detections(detector: Detector, images: Tensor) -> list[Detections]:
    """Return what `detect` finds in these images; raise AssertionError unless it keeps its promises."""
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
    return found
