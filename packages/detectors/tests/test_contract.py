"""RetinaUNet keeps the contract, and the contract notices who does not."""

import importlib
import re

import pytest
import torch

from girih_detectors import HnmGiou, RetinaUNet
from girih_detectors.testing import CHECKS, check_detector, two_processes

NAMED = {check.__name__: check for check in CHECKS}


def retina_unet(pyramid, classes, cls=RetinaUNet, **changes) -> RetinaUNet:
    settings = {"anchors_zyx": [[4, 4, 4], [6, 6, 6], [8, 8, 8]], "levels": (1, 2), "head_channels": 16}
    return cls(pyramid, classes=classes, **(settings | changes))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_retina_unet(check) -> None:
    check_detector(retina_unet, [check])


@pytest.mark.parametrize(
    "check",
    [
        "check_losses_are_finite",
        "check_gradients_reach_every_parameter",
        "check_bfloat16",
        "check_mirrored_objects_have_mirrored_boxes",
        "check_two_processes_equal_one",
        pytest.param("check_overfits_one_image", marks=pytest.mark.long),
    ],
)
def test_retina_unet_with_hard_negatives_and_giou(check) -> None:  # what has to do with the loss
    def make(pyramid, classes):
        # 8 anchors an image: fewer positives than there are, so that the ranks have to agree which
        loss = HnmGiou(per_image=8) if check == "check_two_processes_equal_one" else HnmGiou()
        return retina_unet(pyramid, classes, loss=loss, activation="relu")

    check_detector(make, [NAMED[check]])


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


class TakesAnyChannels(RetinaUNet):
    def forward(self, images, targets):
        return super().forward(images[:, : self.pyramid.in_channels], targets)


class SwapsAxes(RetinaUNet):
    def postprocess(self, tensors, image_zyx):
        return [one | {"boxes": one["boxes"][:, [2, 1, 0, 5, 4, 3]]} for one in super().postprocess(tensors, image_zyx)]


class ShiftsOut(RetinaUNet):
    def postprocess(self, tensors, image_zyx):
        return [one | {"boxes": one["boxes"] + 3} for one in super().postprocess(tensors, image_zyx)]


class Brightens(RetinaUNet):
    def detect(self, images):
        return super().detect(images.add_(0.5))


class Remembers(RetinaUNet):
    """Compares an image with the one before."""

    def detect(self, images):
        before, self.before = getattr(self, "before", 0), images
        return super().detect(images - before if getattr(before, "shape", None) == images.shape else images)


class OtherWhenCompiled(RetinaUNet):
    def tensors(self, images):
        return tuple(2 * x if torch.compiler.is_compiling() else x for x in super().tensors(images))


class OtherLossWhenCompiled(RetinaUNet):
    def forward(self, images, targets):
        losses = super().forward(images, targets)
        return losses | {"loss": 2 * losses["loss"]} if torch.compiler.is_compiling() else losses


class FiltersInDetectOnly(RetinaUNet):
    def detect(self, images):
        return [{key: value[:3] for key, value in one.items()} for one in super().detect(images)]


class LooksAtItsNeighbours(RetinaUNet):
    def detect(self, images):
        return super().detect(images - images.mean(0, keepdim=True) if len(images) > 1 else images)


class HidesWhatIsNotFinite(RetinaUNet):
    def detect(self, images):
        return super().detect(images.nan_to_num(0))


class LearnsNothing(RetinaUNet):
    def forward(self, images, targets):
        return {"loss": 0 * next(self.parameters()).sum()}

    def detect(self, images):
        return [{"boxes": torch.zeros(0, 6), "scores": torch.zeros(0), "labels": torch.zeros(0).long()} for _ in images]


class Shifted(RetinaUNet):
    def postprocess(self, tensors, image_zyx):
        limit = torch.tensor(image_zyx * 2)
        found = super().postprocess(tensors, image_zyx)
        return [one | {"boxes": torch.minimum(one["boxes"] + 0.5, limit)} for one in found]


class Knows(RetinaUNet):
    """Finds what it was last taught, so that a fault of the boxes needs no training to be seen."""

    def forward(self, images, targets):
        self.taught = targets
        return {"loss": 0 * next(self.parameters()).sum()}

    def detect(self, images):
        return [
            {
                "boxes": self.found(image, one["boxes"]),
                "scores": torch.ones(len(one["labels"])),
                "labels": one["labels"],
            }
            for image, one in enumerate(self.taught)
        ]

    def found(self, image, boxes):
        return boxes


class KnowsAndShifts(Knows):
    def found(self, image, boxes):
        return boxes + 0.5


class KnowsAndWidens(Knows):
    def found(self, image, boxes):
        return boxes + torch.tensor([-0.5, -0.5, -0.5, 0.5, 0.5, 0.5])


class KnowsAndMirrorsOneVoxelOff(Knows):
    def found(self, image, boxes):
        return boxes - torch.tensor([0, 0, 1.0, 0, 0, 1.0]) if image else boxes  # side - 1 - x instead of side - x


class NormsOverTheBatch(RetinaUNet):
    """Pickled by what is importable: the class of the instance is RetinaUNet."""

    def __new__(cls, pyramid, classes=(), **kwargs):
        detector = RetinaUNet(pyramid, classes=classes, **kwargs)
        detector.class_head.tower[1] = torch.nn.BatchNorm3d(16)
        return detector


BROKEN = [
    (NotANumber, "check_losses_are_finite"),
    (Idle, "check_gradients_reach_every_parameter"),
    (Trusting, "check_bad_targets_are_refused"),
    (Unsorted, "check_detections_are_sorted_and_inside"),
    (SwapsAxes, "check_anisotropic_patch"),
    (TakesAnyChannels, "check_one_and_four_channels"),
    (LooksAtItsNeighbours, "check_neighbours_in_the_batch_change_nothing"),
    (Brightens, "check_detect_leaves_its_images"),
    (HidesWhatIsNotFinite, "check_whole_volume"),
    (Unsorted, "check_whole_volume"),
    (SwapsAxes, "check_whole_volume"),
    (ShiftsOut, "check_whole_volume"),
    (Brightens, "check_whole_volume"),
    (Remembers, "check_whole_volume"),
    (Forgetful, "check_state_round_trip"),
    (BfloatLoss, "check_bfloat16"),
    (OtherWhenCompiled, "check_tensors_compile"),
    (OtherLossWhenCompiled, "check_loss_compiles"),
    (FiltersInDetectOnly, "check_tensors_export"),
    (LearnsNothing, "check_overfits_one_image"),
    (LearnsNothing, "check_mirrored_objects_have_mirrored_boxes"),
    (KnowsAndShifts, "check_mirrored_objects_have_mirrored_boxes"),
    (KnowsAndWidens, "check_mirrored_objects_have_mirrored_boxes"),
    (KnowsAndMirrorsOneVoxelOff, "check_mirrored_objects_have_mirrored_boxes"),
    pytest.param(Shifted, "check_mirrored_objects_have_mirrored_boxes", marks=pytest.mark.long),  # trains to the end
    (NormsOverTheBatch, "check_two_processes_equal_one"),
]


@pytest.mark.parametrize(("broken", "check"), BROKEN)
def test_a_broken_detector_fails_the_check_of_that_name(broken, check) -> None:
    def make(pyramid, classes):
        return retina_unet(pyramid, classes, cls=broken)

    with pytest.raises(AssertionError, match=rf"^{re.escape(check)}: "):
        check_detector(make, [NAMED[check]])


def test_every_check_has_been_seen_to_fail() -> None:
    assert {check for _, check in (one.values if hasattr(one, "values") else one for one in BROKEN)} == set(NAMED)


def test_boxes_where_they_are_pass() -> None:
    def make(pyramid, classes):
        return retina_unet(pyramid, classes, cls=Knows)

    check_detector(make, [NAMED["check_mirrored_objects_have_mirrored_boxes"]])


SKIPS = """
from girih_detectors import FocalL1

class SkipsWithoutObjects(FocalL1):
    def __call__(self, logits, deltas, truth, targets):
        if len(truth.positives):
            return super().__call__(logits, deltas, truth, targets)
        return 0 * logits.sum(), 0 * deltas.sum()  # and the other process waits for this one's number of positives
"""


def test_a_process_that_waits_in_vain_fails(monkeypatch, tmp_path) -> None:
    (tmp_path / "skips_without_objects.py").write_text(SKIPS)  # the processes have to import it
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(two_processes, "PATIENCE_S", 3.0)
    loss = importlib.import_module("skips_without_objects").SkipsWithoutObjects()

    def make(pyramid, classes):
        return retina_unet(pyramid, classes, loss=loss)

    wanted = r"(?s)^check_two_processes_equal_one: a process failed, or waited 3\.0 s for the other: .*gloo"
    with pytest.raises(AssertionError, match=wanted):
        check_detector(make, [NAMED["check_two_processes_equal_one"]])


def test_a_detector_that_is_not_exact_under_ddp_may_say_so() -> None:
    def make(pyramid, classes):
        detector = retina_unet(pyramid, classes, cls=NormsOverTheBatch)
        detector.ddp_exact = False
        return detector

    check_detector(make, [NAMED["check_two_processes_equal_one"]])
