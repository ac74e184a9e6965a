"""The two losses against their definitions in float64."""

import pytest
import torch

from girih_detectors import FocalL1, HnmGiou, RetinaUNet, anchor_truth, decode, sample_anchors
from girih_detectors.flavours import Flavour
from girih_detectors.testing import TinyPyramid, toy_batch


def build(loss, **changes) -> RetinaUNet:
    settings = {"classes": ("a", "b"), "anchors_zyx": [[4, 4, 4], [6, 6, 6]], "levels": (1, 2), "head_channels": 16}
    return RetinaUNet(TinyPyramid(), loss=loss, **(settings | changes))


def giou_in_float64(a, b) -> float:
    shared = hull = one = two = 1.0
    for k in range(3):
        shared *= max(0.0, min(a[k + 3], b[k + 3]) - max(a[k], b[k]))
        hull *= max(a[k + 3], b[k + 3]) - min(a[k], b[k])
        one, two = one * (a[k + 3] - a[k]), two * (b[k + 3] - b[k])
    union = one + two - shared
    return shared / union - (hull - union) / hull


def test_hnm_giou_equals_its_definition_in_float64() -> None:
    loss = HnmGiou(per_image=8, classification=2.0, regression=3.0, segmentation=0.5)
    detector = build(loss)
    images, targets = toy_batch((3, 1))
    losses = detector(images, targets)
    logits, deltas, masks = (x.detach() for x in detector.tensors(images))
    truth = anchor_truth(targets, detector.anchors((24, 24, 24)))
    assert len(truth.positives) > 5  # more than the 5 that two images with 8 anchors have a right to
    kept, negatives = sample_anchors(
        logits.amax(-1),
        truth.positives,
        truth.background,
        torch.tensor([0, 1]),  # toy_batch: the image's number
        per_image=8,
        positive_fraction=0.33,
        pool=20,
    )
    assert (len(kept), len(negatives)) == (5, 10)
    logits, boxes = logits.double().flatten(0, 1), decode(deltas.flatten(0, 1)[truth.positives], truth.anchors)
    entropy = misfit = 0.0
    for row in negatives.tolist():
        entropy -= (1 - logits[row].sigmoid()).log().sum().item()
    for row in kept.tolist():
        i = truth.positives.tolist().index(row)
        for label in range(2):
            p = logits[row, label].sigmoid()
            entropy -= (p if label == truth.labels[i] else 1 - p).log().item()
        misfit += 1 - giou_in_float64(boxes[i].tolist(), truth.boxes[i].tolist())
    valid = torch.stack([target["valid"] for target in targets])
    wanted = torch.stack([target["instances"] > 0 for target in targets])[valid].double()
    guess = masks.double().softmax(1)[:, 1][valid]
    cross = -(wanted * guess.log() + (1 - wanted) * (1 - guess).log()).mean()
    dice = (2 * (guess * wanted).sum() + 1e-5) / (guess.sum() + wanted.sum() + 1e-5)
    assert losses["classification"].item() == pytest.approx(2 * entropy / 15 / 2, rel=1e-4)
    assert losses["regression"].item() == pytest.approx(3 * misfit / 5, rel=1e-4)
    assert losses["segmentation"].item() == pytest.approx(0.5 * 0.5 * (cross + 1 - dice).item(), rel=1e-4)


def test_boxes_that_are_right_cost_nothing_and_minus_giou_has_the_same_gradient() -> None:
    targets = toy_batch((2,))[1]
    truth = anchor_truth(targets, build(HnmGiou()).anchors((24, 24, 24)))
    n = truth.background.shape[1]
    deltas = torch.zeros(n, 6)
    size = truth.anchors[:, 3:] - truth.anchors[:, :3]
    wanted = truth.boxes[:, 3:] - truth.boxes[:, :3]
    deltas[truth.positives, :3] = (truth.boxes + truth.boxes.roll(3, 1) - truth.anchors - truth.anchors.roll(3, 1))[
        :, :3
    ] / (2 * size)
    deltas[truth.positives, 3:] = (wanted / size).log()
    _, regression = HnmGiou()(torch.zeros(1, n, 2), deltas[None], truth, targets)
    assert regression.item() == pytest.approx(0, abs=1e-6)  # nnDetection's -GIoU: -1 for each
    off = (deltas + 0.3)[None].requires_grad_()
    HnmGiou()(torch.zeros(1, n, 2), off, truth, targets)[1].backward()
    for row, anchor, box in zip(truth.positives, truth.anchors, truth.boxes, strict=True):
        for k in range(6):
            ends = []
            for step in (-1e-4, 1e-4):
                moved = off[0, row].detach().double().clone()
                moved[k] += step
                corner = decode(moved[None], anchor[None].double())[0]
                ends.append(-giou_in_float64(corner.tolist(), box.tolist()) / len(truth.positives))
            assert off.grad[0, row, k].item() == pytest.approx((ends[1] - ends[0]) / 2e-4, abs=1e-3)


def test_a_batch_without_objects_trains_the_hardest_background() -> None:
    detector = build(HnmGiou(), segmentation=False)
    images, targets = toy_batch((0, 0))
    losses = detector(images, targets)
    assert losses["regression"] == 0
    assert losses["classification"].item() == pytest.approx(0.01, rel=0.5)  # -log(1 - p) with p = 0.01
    optimiser = torch.optim.SGD(detector.parameters(), lr=0.05)
    before = detector.tensors(images)[0].amax(-1).sigmoid().topk(300).values.mean().item()
    for _ in range(10):
        optimiser.zero_grad()
        detector(images, targets)["loss"].backward()
        optimiser.step()
    assert detector.tensors(images)[0].amax(-1).sigmoid().topk(300).values.mean().item() < 0.97 * before


def test_a_resumed_training_with_hard_negatives_equals_an_uninterrupted_one() -> None:
    def steps(detector, optimiser, batches) -> None:
        for objects in batches:
            optimiser.zero_grad()
            detector(*toy_batch(objects))["loss"].backward()
            optimiser.step()

    loss = HnmGiou(per_image=8)
    torch.manual_seed(3)
    whole = build(loss)
    torch.manual_seed(3)
    first = build(loss)
    optimiser = torch.optim.SGD(whole.parameters(), lr=0.01)
    steps(whole, optimiser, [(3, 1), (2, 0), (1, 3), (0, 2)])
    steps(first, torch.optim.SGD(first.parameters(), lr=0.01), [(3, 1), (2, 0)])
    torch.rand(7)  # another process draws other numbers
    second = build(loss)
    second.load_state_dict(first.state_dict())
    steps(second, torch.optim.SGD(second.parameters(), lr=0.01), [(1, 3), (0, 2)])
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize("loss", [FocalL1(), HnmGiou()], ids=["focal_l1", "hnm_giou"])
def test_output_that_is_not_a_number_is_a_loss_that_is_not_a_number(loss) -> None:
    detector = build(loss, segmentation=False)
    torch.nn.init.constant_(detector.class_head.output.bias, torch.nan)
    for objects in ((2,), (0,)):
        assert not torch.isfinite(detector(*toy_batch(objects))["loss"])


@pytest.mark.parametrize("loss", [FocalL1(), HnmGiou()], ids=["focal_l1", "hnm_giou"])
def test_half_precision_output_is_scored_in_float32(loss) -> None:
    targets = toy_batch((2,))[1]
    truth = anchor_truth(targets, build(loss).anchors((24, 24, 24)))
    n = truth.background.shape[1]
    logits, deltas = torch.randn(1, n, 2).bfloat16(), torch.randn(1, n, 6).bfloat16()
    for a, b in zip(
        loss(logits, deltas, truth, targets), loss(logits.float(), deltas.float(), truth, targets), strict=True
    ):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


def test_a_patch_that_is_seen_again_trains_other_anchors() -> None:
    loss, (_, targets) = HnmGiou(per_image=8), toy_batch((4,))
    truth = anchor_truth(targets, build(loss).anchors((24, 24, 24)))
    trained = torch.zeros(truth.background.numel(), dtype=torch.bool)
    for step in range(40):
        logits = torch.zeros(1, len(trained), 2, requires_grad=True)
        loss(logits, torch.zeros(1, len(trained), 6), truth, [{**targets[0], "seed": step}])[0].backward()
        trained |= logits.grad[0].any(-1)
    assert len(truth.positives) > 2 * int(8 * 0.33)
    assert trained[truth.positives].all()


def test_a_seed_is_an_int_or_a_tensor_and_required() -> None:
    detector = build(HnmGiou(per_image=8), segmentation=False)
    images, targets = toy_batch((4, 4))
    losses = [
        detector(images, [{**target, "seed": seed} for target, seed in zip(targets, seeds, strict=True)])["loss"]
        for seeds in ((7, 2**63 - 1), torch.tensor([7, 2**63 - 1]), (8, 2**63 - 1))
    ]
    assert losses[0] == losses[1] != losses[2]
    del targets[1]["seed"]
    targets[1]["case_id"] = "LIDC-7"
    with pytest.raises(ValueError, match=r"target 1 \(case 'LIDC-7'\) has no `seed`, from which HnmGiou draws"):
        detector(images, targets)


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        (HnmGiou, {"positive_fraction": 0.0}, "positive_fraction is 0.0"),
        (HnmGiou, {"positive_fraction": 1.0}, "positive_fraction is 1.0"),
        (HnmGiou, {"per_image": 3}, "per_image is 3"),
        (HnmGiou, {"pool": 0}, "pool is 0"),
        (HnmGiou, {"classification": -1.0}, "classification is -1.0, wanted 0 or more"),
        (FocalL1, {"regression": torch.nan}, "regression is nan"),
        (FocalL1, {"segmentation": torch.inf}, "segmentation is inf"),
        (FocalL1, {"dice_numerator": -1e-5}, "dice_numerator is -1e-05"),
        (FocalL1, {"gamma": -1.0}, "gamma is -1.0, wanted 0 or more"),
        (FocalL1, {"alpha": 1.1}, "alpha is 1.1, wanted 0 to 1"),
        (FocalL1, {"beta": -0.1}, "beta is -0.1, wanted 0 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(loss, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        loss(**settings)


def test_a_loss_of_ones_own_is_a_flavour() -> None:
    class Mine(FocalL1):
        def __call__(self, logits, deltas, truth, targets):
            return logits.square().mean(), deltas.square().mean()

    assert isinstance(Mine(), Flavour)
    losses = build(Mine(), segmentation=False)(*toy_batch((1,)))
    assert losses["loss"] == losses["classification"] + losses["regression"]
