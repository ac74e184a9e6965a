"""RetinaUNet keeps the contract, and the contract notices who does not."""

import re

import pytest
import torch

from girih_detectors import RetinaUNet
from girih_detectors import testing as kit
from girih_detectors.testing import CHECKS, check_detector


def retina_unet(pyramid, classes, cls=RetinaUNet, **changes) -> RetinaUNet:
    settings = {"anchors_zyx": [[4, 4, 4], [6, 6, 6], [8, 8, 8]], "levels": (1, 2), "head_channels": 16}
    return cls(pyramid, classes=classes, **(settings | changes))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_retina_unet(check) -> None:
    check_detector(retina_unet, [check])


class Unsorted(RetinaUNet):
    def detect(self, images):
        return [{key: value.flip(0) for key, value in one.items()} for one in super().detect(images)]


class BfloatLoss(RetinaUNet):
    def forward(self, images, targets):
        losses = super().forward(images, targets)
        return losses | {
            "loss": losses["loss"].to(torch.get_autocast_dtype("cpu"))
            if torch.is_autocast_enabled("cpu")
            else losses["loss"]
        }


class NotANumber(RetinaUNet):
    def forward(self, images, targets):
        losses = super().forward(images, targets)
        empty = not any(len(target["boxes"]) for target in targets)
        return losses | {"loss": losses["loss"] * torch.nan} if empty else losses


class Forgetful(RetinaUNet):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.hidden = [torch.rand(())]

    def tensors(self, images):
        return tuple(x + self.hidden[0] for x in super().tensors(images))


class Idle(RetinaUNet):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.idle = torch.nn.Linear(1, 1)


class Trusting(RetinaUNet):
    def forward(self, images, targets):
        for target in targets:
            target["boxes"] = target["boxes"].nan_to_num(0).clamp(0, 24)
        return super().forward(images, targets)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (Unsorted, "check_detections_are_sorted_and_inside"),
        (BfloatLoss, "check_bfloat16"),
        (NotANumber, "check_losses_are_finite"),
        (Forgetful, "check_state_round_trip"),
        (Idle, "check_gradients_reach_every_parameter"),
        (Trusting, "check_bad_targets_are_refused"),
    ],
)
def test_a_broken_detector_fails_the_check_of_that_name(broken, check) -> None:
    with pytest.raises(AssertionError, match=rf"^{re.escape(check)}: "):
        check_detector(lambda pyramid, classes: retina_unet(pyramid, classes, cls=broken), [getattr(kit, check)])
