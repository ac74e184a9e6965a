"""The assembled detector, without training it."""

import numpy as np
import pytest
import torch
from torch import nn

from girih_detectors import FocalL1, RetinaUNet, encode, match_atss, pairwise_iou
from girih_detectors.testing import TinyPyramid, toy_batch

ANCHORS = [[4, 4, 4], [6, 6, 6], [8, 4, 4]]


def build(**changes) -> RetinaUNet:
    settings = {"classes": ("a", "b"), "anchors_zyx": ANCHORS, "levels": (1, 2), "head_channels": 16}
    return RetinaUNet(TinyPyramid(), **(settings | changes))


def test_loss_equals_its_definition_in_float64() -> None:
    detector = build()
    images, targets = toy_batch((2, 1))
    losses = detector(images, targets)
    logits, deltas, masks = (x.detach().double() for x in detector.tensors(images))
    grid = detector.anchors((24, 24, 24))
    matches = [match_atss(target["boxes"], grid) for target in targets]
    positives = sum(len(match.anchors) for match in matches)
    focal = l1 = 0.0
    for row, (target, match) in enumerate(zip(targets, matches, strict=True)):
        wanted = torch.zeros_like(logits[row])
        wanted[match.anchors, target["labels"][match.objects]] = 1
        p = logits[row].sigmoid()
        every = torch.where(wanted > 0, -0.75 * (1 - p) * p.log(), -0.25 * p * (1 - p).log()).mean(-1)
        centre = (grid.all_boxes()[:, :3] + grid.all_boxes()[:, 3:]) / 2
        counted = centre[:, 2] < 22 - row  # toy_batch: the last 2 + row voxels along x are invalid
        counted[match.anchors] = True
        focal += every[counted].sum()
        difference = (
            deltas[row, match.anchors] - encode(target["boxes"][match.objects], grid.boxes(match.anchors))
        ).abs()
        l1 += torch.where(difference < 1, difference**2 / 2, difference - 0.5).sum()
    valid = torch.stack([target["valid"] for target in targets])
    truth = torch.stack([target["instances"] > 0 for target in targets])[valid].double()
    guess = masks.softmax(1)[:, 1][valid]
    entropy = -(truth * guess.log() + (1 - truth) * (1 - guess).log()).mean()
    dice = 2 * (guess * truth).sum() / (guess.sum() + truth.sum() + 1e-5)
    want = {
        "classification": 0.3 * focal / positives,
        "regression": l1 / positives,
        "segmentation": 0.5 * entropy + 0.5 * (1 - dice),
    }
    for name, value in want.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-4), name
    assert losses["loss"].item() == pytest.approx(sum(want.values()).item(), rel=1e-4)


def test_background_in_invalid_voxels_teaches_nothing() -> None:
    detector = build()
    images, targets = toy_batch((1,))
    before = detector(images, targets)
    last_cell = (
        detector.anchors((24, 24, 24)).boxes(torch.arange(12 * 12 * 12 * 3)).reshape(-1, 2, 3).mean(1)[:, 2] > 22
    )
    hooked = detector.class_head.register_forward_hook(
        lambda module, inputs, output: output.clone().index_fill(1, last_cell.nonzero()[:, 0], 20.0)
    )
    after = detector(images, targets)
    hooked.remove()
    torch.testing.assert_close(before["classification"], after["classification"])


def test_anchors_of_an_object_count_in_invalid_voxels() -> None:
    detector = build(segmentation=False)
    images, targets = toy_batch((1,))
    everywhere = detector(images, targets)
    targets[0]["valid"] = torch.zeros(24, 24, 24, dtype=torch.bool)
    nowhere = detector(images, targets)
    torch.testing.assert_close(nowhere["regression"], everywhere["regression"])
    # 0.3 x 0.75 x (1 - p) x -log(p) of the right class alone, p about 0.01 at the start; mean over two classes
    assert 0.5 * 0.3 * 0.75 * 4 < nowhere["classification"].item() < 0.5 * 0.3 * 0.75 * 5


def test_weights_scale_their_parts() -> None:
    images, targets = toy_batch((2,))
    torch.manual_seed(0)
    one = build()(images, targets)
    torch.manual_seed(0)
    two = build(loss=FocalL1(classification=0.6, regression=3.0, segmentation=0.5))(images, targets)
    for name, factor in {"classification": 2, "regression": 3, "segmentation": 0.5}.items():
        torch.testing.assert_close(two[name], factor * one[name])


def test_boxes_alone_are_enough_without_the_segmentation_head() -> None:
    images, targets = toy_batch((2, 0))
    for target in targets:
        del target["instances"], target["valid"]
    losses = build(segmentation=False)(images, targets)
    assert set(losses) == {"loss", "classification", "regression"}
    with pytest.raises(ValueError, match=r"target 0 has no `instances`.*segmentation=False"):
        build()(images, targets)


def test_images_without_objects_push_every_score_down() -> None:
    detector = build()
    images, targets = toy_batch((0, 0))
    optimiser = torch.optim.SGD(detector.parameters(), lr=0.001)
    scores = []
    for _ in range(5):
        optimiser.zero_grad()
        scores.append(detector.tensors(images)[0].detach().sigmoid().mean().item())
        detector(images, targets)["loss"].backward()
        optimiser.step()
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < scores[0]


def test_tensors_line_up_with_the_anchors() -> None:
    detector = build()
    images, _ = toy_batch((1, 1), shape=(8, 24, 16))
    logits, deltas, masks = detector.tensors(images)
    n = len(detector.anchors((8, 24, 16)))
    assert logits.shape == (2, n, 2)
    assert deltas.shape == (2, n, 6)
    assert masks.shape == (2, 2, 8, 24, 16)


def test_a_planted_logit_and_delta_are_found_at_their_box() -> None:
    detector = build(segmentation=False)
    wanted = torch.tensor([[3.0, 5, 7, 9, 10, 15]])
    grid = detector.anchors((24, 24, 24))
    match = match_atss(wanted, grid)
    logits = torch.full((1, len(grid), 2), -20.0)
    logits[0, match.anchors, 1] = 3.0
    deltas = torch.zeros(1, len(grid), 6)
    deltas[0, match.anchors] = encode(wanted.expand(len(match.anchors), 6), grid.boxes(match.anchors))
    detector.class_head.forward = lambda maps: logits
    detector.box_head.forward = lambda maps: deltas
    found = detector.detect(torch.zeros(1, 1, 24, 24, 24))[0]
    assert pairwise_iou(found["boxes"][:1], wanted).item() == pytest.approx(1, abs=1e-5)
    assert found["labels"][0] == 1
    assert (found["scores"][1:] < 1e-6).all()


def test_anchors_are_part_of_the_state() -> None:
    first, second = build(), build(anchors_zyx=np.array(ANCHORS) * 2.0)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.anchors_zyx, torch.tensor(ANCHORS, dtype=torch.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": (1, 3)}, r"levels are \(1, 3\), the pyramid has maps 0..2"),
        ({"levels": ()}, r"levels are \(\)"),
        ({"classes": ()}, r"classes are \[\]"),
        ({"classes": ("a", "a")}, "each once"),
        ({"anchors_zyx": [[1, 2]]}, r"anchors_zyx have shape \(1, 2\)"),
        ({"anchors_zyx": [[1, 2, 0]]}, "not a positive number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_levels_of_different_width_are_refused() -> None:
    pyramid = TinyPyramid()
    pyramid.channels = (16, 16, 32)
    with pytest.raises(ValueError, match=r"levels \(1, 2\) have \[16, 32\] channels"):
        RetinaUNet(pyramid, classes=("a",), anchors_zyx=ANCHORS, levels=(1, 2))


def spoil(name):
    images, targets = toy_batch((1, 3))
    target = targets[1]
    match name:
        case "channels":
            images = images.repeat(1, 2, 1, 1, 1)
        case "shape":
            images = images[:, :, :, :22]
        case "count":
            targets = targets[:1]
        case "labels":
            target["labels"] = target["labels"][:2]
        case "mask":
            target["instances"] = target["instances"][:4]
        case "valid":
            target["valid"] = target["valid"][:4]
        case "instances":
            target["instances"][0, 0, 0] = 4
    return images, targets


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("channels", "images have 2 channels, the encoder takes 1"),
        ("shape", "22 voxels along y, wanted a multiple of 4"),
        ("count", "1 targets for 2 images"),
        ("labels", r"target 1: boxes \(3, 6\) and labels \(2,\)"),
        ("mask", r"target 1: `instances` has shape \(4, 24, 24\)"),
        ("valid", r"target 1: `valid` has shape \(4, 24, 24\)"),
        ("instances", r"target 1: `instances` holds 1\.\.4, wanted 0\.\.3"),
    ],
)
def test_bad_batches_are_refused(name, message) -> None:
    with pytest.raises(ValueError, match=message):
        build()(*spoil(name))


def test_a_coarse_finest_map_is_segmented_on_the_input_grid() -> None:
    detector = RetinaUNet(
        TinyPyramid(strides=((1, 2, 2), (2, 4, 4))),
        classes=("a", "b"),
        anchors_zyx=ANCHORS,
        levels=(0, 1),
        head_channels=16,
    )
    assert isinstance(detector.pyramid, nn.Module)
    images, targets = toy_batch((2,))
    assert detector.tensors(images)[2].shape == (1, 2, 24, 24, 24)
    assert torch.isfinite(detector(images, targets)["loss"])
