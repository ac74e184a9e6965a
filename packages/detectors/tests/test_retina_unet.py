"""The assembled detector, without training it."""

import numpy as np
import pytest
import torch
from torch import nn

from girih_detectors import FocalL1, RetinaUNet, anchor_truth, encode, match_atss, pairwise_iou
from girih_detectors.targets import check_images
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
        stride = torch.tensor([2.0, 4]).repeat_interleave(torch.tensor(grid.level_lengths))
        counted = centre[:, 2] - 0.5 + stride <= 22 - row  # toy_batch: the last 2 + row voxels along x are invalid
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
        ({"levels": (2, 1)}, r"levels are \(2, 1\), wanted ascending"),
        ({"levels": (1, 1)}, r"levels are \(1, 1\), wanted ascending"),
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


def test_a_tiny_object_trains_its_nearest_anchor_and_no_other() -> None:
    detector = build(anchors_zyx=[[1, 1, 1]], segmentation=False, levels=(2,))  # a grid of specks, 4 voxels apart
    speck = torch.tensor([[6.0, 7, 9, 6.5, 7.5, 9.5]])  # between them; the nearest is at cell (1, 2, 2)
    images = toy_batch((0,))[0]
    losses = detector(images, [{"boxes": speck, "labels": torch.tensor([1])}])
    (gradient,) = torch.autograd.grad(losses["loss"], detector.class_head.output.bias)
    truth = anchor_truth([{"boxes": speck, "labels": torch.tensor([1])}], detector.anchors((24, 24, 24)))
    assert truth.positives.tolist() == [(1 * 6 + 2) * 6 + 2]
    assert truth.labels.tolist() == [1]
    assert gradient[1] < 0 < gradient[0]  # class 1 is pulled up, class 0 pushed down
    shift = 0.5 * (speck[:, :3] + speck[:, 3:]) - torch.tensor([4.5, 8.5, 8.5])
    off = torch.cat([shift, torch.full((1, 3), 0.5).log()], dim=1) - detector.tensors(images)[1][0, truth.positives]
    assert losses["regression"].item() == pytest.approx(
        torch.nn.functional.smooth_l1_loss(off, torch.zeros_like(off), reduction="sum").item(), rel=1e-4
    )


def test_mirrored_output_gives_mirrored_detections() -> None:
    # on the voxel grid anchors are symmetric, so mirrored maps with mirrored shifts are exactly the mirrored scene
    pyramid, shape = TinyPyramid(strides=((1, 1, 1), (1, 1, 1))), (5, 6, 7)
    detector = RetinaUNet(pyramid, classes=("a", "b"), anchors_zyx=ANCHORS, levels=(0, 1), head_channels=16)
    logits, deltas = torch.randn(2, *shape, 3, 2), 0.5 * torch.randn(2, *shape, 3, 6)
    (found,) = detector.postprocess((logits.reshape(1, -1, 2), deltas.reshape(1, -1, 6)), shape)
    for axis in range(3):
        sign = torch.ones(6)
        sign[axis] = -1
        flipped = logits.flip(1 + axis).reshape(1, -1, 2), (deltas.flip(1 + axis) * sign).reshape(1, -1, 6)
        (mirror,) = detector.postprocess(flipped, shape)
        wanted = found["boxes"].clone()
        wanted[:, axis], wanted[:, axis + 3] = (
            shape[axis] - found["boxes"][:, axis + 3],
            shape[axis] - found["boxes"][:, axis],
        )
        assert torch.equal(mirror["scores"], found["scores"])
        assert torch.equal(mirror["labels"], found["labels"])
        torch.testing.assert_close(mirror["boxes"], wanted, atol=1e-5, rtol=0)


def test_a_box_may_be_hidden_in_the_mask_by_smaller_objects() -> None:
    images, targets = toy_batch((3,))
    targets[0]["instances"][targets[0]["instances"] == 2] = 0
    assert torch.isfinite(build()(images, targets)["loss"])


def test_boxes_between_voxel_edges_hold_the_voxels_they_touch() -> None:
    images, targets = toy_batch((3,))
    targets[0]["boxes"] += torch.tensor([0.4, 0.4, 0.4, -0.4, -0.4, -0.4])
    assert torch.isfinite(build()(images, targets)["loss"])


def test_without_the_segmentation_head_masks_are_not_looked_at() -> None:
    images, targets = toy_batch((3,))
    targets[0]["instances"] += 7
    assert torch.isfinite(build(segmentation=False)(images, targets)["loss"])


def test_the_meta_device_builds_without_memory() -> None:
    with torch.device("meta"):
        detector = build()
    assert all(parameter.is_meta for parameter in detector.parameters())


def spoil(name):
    images, targets = toy_batch((1, 3))
    target = targets[1]
    match name:
        case "no boxes":
            del target["boxes"]
        case "no labels":
            del target["labels"]
        case "flat boxes":
            target["boxes"] = target["boxes"][:, :4]
        case "float labels":
            target["labels"] = target["labels"].float()
        case "float mask":
            target["instances"] = target["instances"].float()
        case "bool mask":
            target["instances"] = target["instances"] > 0
        case "integer valid":
            target["valid"] = target["valid"].int()
        case "16 unsigned bits":
            target["instances"] = target["instances"].to(torch.uint16)
        case "float seed":
            target["seed"] = 0.5
        case "long seed":
            target["seed"] = 2**63
        case "seed with an axis":
            target["seed"] = torch.zeros(1, dtype=torch.int64)
        case "short seed":
            target["seed"] = torch.zeros((), dtype=torch.int32)
        case "negative instance":
            target["instances"][0, 0, 0] = -1
        case "instance without any box":
            images, targets = toy_batch((1, 0))
            targets[1]["instances"][3, 3, 3] = 1
        case "instance out of its box":
            target["instances"][20, 1, 2] = 3
        case "masks in another order":
            target["instances"] = torch.tensor([0, 2, 1, 3])[target["instances"].long()]
        case "outside":
            target["boxes"][2, 4] = 25
        case "before the image":
            target["boxes"][2, 0] = -0.5
        case "inverted":
            target["boxes"][2, [0, 3]] = target["boxes"][2, [3, 0]]
        case "flat":
            target["boxes"][2, 3] = target["boxes"][2, 0]
        case "NaN":
            target["boxes"][2, 1] = torch.nan
        case "infinite":
            target["boxes"][2, 5] = torch.inf
        case "label":
            target["labels"][1] = 2
        case "negative label":
            target["labels"][1] = -1
        case "case":
            target["labels"][1], target["case_id"] = 2, "LIDC-7"
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
        ("no boxes", "target 1 has no `boxes`; an image without objects has 0 rows"),
        ("no labels", "target 1 has no `labels`"),
        ("flat boxes", r"target 1: boxes \(3, 4\) and labels \(3,\), wanted \(n, 6\) and \(n,\)"),
        ("float labels", "target 1: labels are torch.float32, wanted torch.int64"),
        ("float mask", "target 1: `instances` is torch.float32, wanted torch.uint8 or torch.int8 or"),
        ("bool mask", "target 1: `instances` is torch.bool, wanted torch.uint8"),
        ("integer valid", "target 1: `valid` is torch.int32, wanted torch.bool"),
        ("16 unsigned bits", "target 1: `instances` is torch.uint16, wanted torch.uint8"),
        ("float seed", "target 1: `seed` is 0.5, wanted an int64"),
        ("long seed", "target 1: `seed` is 9223372036854775808, wanted an int64"),
        ("seed with an axis", r"target 1: `seed` is torch.int64 \(1,\), wanted a torch.int64 without axes"),
        ("short seed", r"target 1: `seed` is torch.int32 \(\), wanted a torch.int64 without axes"),
        ("negative instance", r"target 1: `instances` holds -1\.\.3, wanted 0\.\.3"),
        ("instance without any box", r"target 1: `instances` holds 0\.\.1, wanted 0\.\.0"),
        (
            "instance out of its box",
            r"target 1, row 2: `instances` has number 3 at voxel \[20, 1, 2\], outside the box",
        ),
        ("masks in another order", "target 1, row 0: `instances` has number 1 at voxel .*, outside the box"),
        ("outside", r"target 1, row 2: box .*25.* reaches out of the image \(24, 24, 24\)"),
        ("before the image", "target 1, row 2: box .*-0.5.* reaches out of the image"),
        ("inverted", "target 1, row 2: box .* has a side <= 0, wanted z0 < z1"),
        ("flat", "target 1, row 2: box .* has a side <= 0"),
        ("NaN", "target 1, row 2: box .*nan.* is not finite"),
        ("infinite", "target 1, row 2: box .*inf.* is not finite"),
        ("label", r"target 1, row 1: label 2, wanted 0\.\.1"),
        ("negative label", r"target 1, row 1: label -1, wanted 0\.\.1"),
        ("case", r"target 1 \(case 'LIDC-7'\), row 1: label 2"),
        ("channels", "images have 2 channels, the encoder takes 1"),
        ("shape", "22 voxels along y, wanted a multiple of 4"),
        ("count", "1 targets for 2 images"),
        ("labels", r"target 1: boxes \(3, 6\) and labels \(2,\)"),
        ("mask", r"target 1: `instances` has shape \(4, 24, 24\)"),
        ("valid", r"target 1: `valid` has shape \(4, 24, 24\)"),
        ("instances", r"target 1: `instances` holds 0\.\.4, wanted 0\.\.3"),
    ],
)
def test_bad_batches_are_refused(name, message) -> None:
    with pytest.raises(ValueError, match=message):
        build()(*spoil(name))


def test_images_of_four_axes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images have shape \(1, 24, 24, 24\), wanted \(batch, channel, z, y, x\)"):
        check_images(torch.zeros(1, 24, 24, 24), ((1, 1, 1),), 1)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(0, 1, 24, 24, 24), r"images have shape \(0, 1, 24, 24, 24\), wanted 1 or more along each axis"),
        (torch.zeros(1, 1, 0, 24, 24), r"images have shape \(1, 1, 0, 24, 24\), wanted 1 or more"),
        (torch.zeros(1, 1, 24, 24, 24, dtype=torch.int16), "images are torch.int16, wanted torch.float32, torch.b"),
        (torch.zeros(1, 1, 24, 24, 24, dtype=torch.float64), "images are torch.float64, wanted torch.float32"),
    ],
)
def test_images_that_no_network_takes_are_refused(images, message) -> None:
    with pytest.raises(ValueError, match=message):
        check_images(images, ((1, 1, 1),), 1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int64])
def test_masks_may_be_of_any_integers(dtype) -> None:
    detector = build()
    images, targets = toy_batch((3,))
    want = detector(images, targets)["loss"]
    targets[0]["instances"] = targets[0]["instances"].to(dtype)
    assert detector(images, targets)["loss"] == want


@pytest.mark.parametrize("cast", ["bfloat16", "half", "double"])
def test_anchors_stay_exact_in_a_network_that_is_cast(cast) -> None:
    anchors = [[27.1, 33.3, 50.7]]
    for detector in (build(anchors_zyx=anchors), nn.Sequential(build(anchors_zyx=anchors))):
        getattr(detector, cast)()
        found = detector.get_buffer("anchors_zyx" if isinstance(detector, RetinaUNet) else "0.anchors_zyx")
        assert torch.equal(found, torch.tensor(anchors))
        assert next(detector.parameters()).dtype == getattr(torch, cast)
    assert build().to("meta").bfloat16().anchors_zyx.is_meta
    assert build().to("meta", torch.bfloat16).to_empty(device="cpu").anchors_zyx.dtype == torch.float32


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


@pytest.mark.parametrize("image_zyx", [(25, 24, 24), (28, 24, 24), (12, 48, 24), (24, 28, 20)])
def test_tensors_of_other_images_are_not_post_processed(image_zyx: tuple[int, int, int]) -> None:
    model = build(segmentation=True)
    with torch.no_grad():
        tensors = model.eval().tensors(torch.zeros(1, 1, 24, 24, 24))
    assert len(model.postprocess(tensors, (24, 24, 24))) == 1
    with pytest.raises(ValueError, match=r"image_zyx|logits have shape"):
        model.postprocess(tensors, image_zyx)
