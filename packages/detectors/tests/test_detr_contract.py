"""DeformableDETR keeps the contract of detectors."""

import pytest

from girih_detectors import DeformableDETR
from girih_detectors.testing import CHECKS, TinyPyramid, check_detector


def deformable_detr(pyramid, classes, **changes) -> DeformableDETR:
    """On the pyramid without its finest map, which would be as many voxels as the image."""
    small = {"queries": 12, "dim": 48, "heads": 4, "points": 2, "feedforward": 96}
    layers = {"encoder_layers": 1, "decoder_layers": 2}
    coarse = TinyPyramid(pyramid.in_channels, pyramid.strides[1:])
    return DeformableDETR(coarse, classes=classes, **(small | layers | changes))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_deformable_detr(check) -> None:
    check_detector(deformable_detr, [check])
